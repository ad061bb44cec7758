"""`mba doctor`: versions, devices, C compiler, and each operation against its sequential reference."""

from __future__ import annotations

from mamba_bio_audio.jobs.contract import Options, Result

COMMAND = "doctor"
PANEL = "Start"
PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "lightning",
    "pydantic",
    "pyfaidx",
    "biopython",
    "pybigtools",
    "soundfile",
    "torchaudio",
)


class DoctorOptions(Options):
    """Options of `mba doctor`."""


class SelfTest(Result):
    """One operation on one device."""

    device: str
    operation: str
    error: float
    passed: bool
    failure: str | None


class DoctorResult(Result):
    """Findings on this machine."""

    mamba_bio_audio: str
    python: str
    platform: str
    packages: dict[str, str | None]
    cpu_threads: int
    cuda: list[str]
    c_compiler: str | None
    c_compiler_problem: str | None
    backend: dict[str, str]
    self_test: list[SelfTest]

    def text(self) -> str:
        """Format the report as text for people."""
        lines = [f"mamba-bio-audio {self.mamba_bio_audio}, Python {self.python}, {self.platform}"]
        lines += [f"  {name:<12} {version or 'not installed'}" for name, version in self.packages.items()]
        lines.append(f"CPU threads: {self.cpu_threads}")
        lines.append(f"CUDA devices: {', '.join(self.cuda) or 'none'}")
        lines.append(f"C compiler: {self.c_compiler or 'none'}, {self.c_compiler_problem or 'compiles for Triton'}")
        lines += [f"kernels on {device}: {backend}" for device, backend in self.backend.items()]
        lines.append("self-test against the sequential reference in fp32, error relative to the largest value:")
        for test in self.self_test:
            found = f"{test.error:.1e}  {'ok' if test.passed else 'WRONG'}" if test.failure is None else "FAILED"
            lines.append(f"  {test.device:<5} {test.operation:<29} {found}")
            if test.failure is not None:
                lines.append(f"        {test.failure}")
        return "\n".join(lines)

    @property
    def exit_code(self) -> int:
        """1 if an operation is wrong or broken."""
        return 0 if all(test.passed for test in self.self_test) else 1


def run(options: DoctorOptions) -> DoctorResult:
    """Show versions, devices, the C compiler and the kernels in use, and test every operation numerically."""
    import platform

    import torch

    from mamba_bio_audio import __version__, ops
    from mamba_bio_audio.run.environment import installed
    from mamba_bio_audio.run.self_test import c_compiler, self_test

    compiler = c_compiler()
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return DoctorResult(
        mamba_bio_audio=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: installed(name) for name in PACKAGES},
        cpu_threads=torch.get_num_threads(),
        cuda=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        c_compiler=compiler.path,
        c_compiler_problem=compiler.problem,
        backend={device: ops.live_backend(device) for device in devices},
        self_test=[SelfTest(**test) for device in devices for test in self_test(device)],
    )
