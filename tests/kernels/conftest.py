"""What the tests of Triton kernels share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch

if os.environ.get("CI") == "true":
    import triton  # noqa: F401  # where it is missing, CI must not skip what needs it

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton.language.semantic import TritonSemantic

    load = TritonSemantic.load

    def load_or_anything(self: Any, ptr: Any, mask: Any, other: Any, *rest: Any) -> Any:
        """Where nothing is loaded and no other value is given, a GPU has anything; the interpreter has 0 by itself."""
        found = load(self, ptr, mask, other, *rest)
        if mask is not None and other is None:
            values = found.handle.data
            # All bits set are NaN in bf16, which the interpreter holds as integers.
            anything = np.nan if values.dtype.kind == "f" else np.array(-1).astype(values.dtype)
            found.handle.data = np.where(mask.handle.data, values, anything).astype(values.dtype)
        return found

    TritonSemantic.load = load_or_anything


@pytest.fixture
def states_written(monkeypatch):
    """`states_written(module)` lists, call by call, whether the module's forward scan wrote the states for backward."""

    def record(module) -> list[bool]:
        scan_forward, written = module.scan_forward, []

        def forward(call, h0, write_states):
            written.append(write_states)
            return scan_forward(call, h0, write_states)

        monkeypatch.setattr(module, "scan_forward", forward)
        return written

    return record


def cannot_interpret() -> str | None:
    """Why Triton's interpreter cannot run here, or None; range(runtime integer) fails below Triton 3.7 with NumPy 2.4."""
    triton = pytest.importorskip("triton")
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        return "Triton's interpreter below 3.7 needs numpy < 2.4"
    return None


@pytest.fixture
def run_interpreted(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Runs class TestInterpreted of the test's own file in a process in which Triton interprets; all of it must pass.

    Skips where the interpreter cannot run, which on CI (`CI=true`) is an error: nothing else there runs the kernels.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is the outer process")
    reason = cannot_interpret()
    if reason is not None:
        assert os.environ.get("CI") != "true", f"CI must interpret the kernels: {reason}"
        pytest.skip(reason)

    def run() -> None:
        env = {**os.environ, "TRITON_INTERPRET": "1"}
        env.pop("PYTEST_XDIST_WORKER", None)
        file = str(request.node.path)
        options = ["-q", "-x", "-k", "TestInterpreted", "-p", "no:cacheprovider", "-p", "no:xdist"]
        command = [sys.executable, "-m", "pytest", *options, file]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        summary = done.stdout.splitlines()[-1]
        assert re.search(r"\d+ passed", summary)
        assert "skipped" not in summary, done.stdout[-2000:]

    return run


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device that an H100 seems to be: 132 multiprocessors, compute capability 9.0. Nothing can lie on it."""
    pytest.importorskip("triton")
    from mamba_bio_audio.kernels.scan import inputs

    properties = SimpleNamespace(multi_processor_count=132, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    caches = (inputs.schedulers, inputs.make_plan)
    for cached in caches:
        cached.cache_clear()
    yield torch.device("cuda", 0)
    for cached in caches:
        cached.cache_clear()


class Launch(NamedTuple):
    """One launch of a Triton kernel."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # at run time: tensors and numbers
    constants: dict[str, Any]
    options: dict[str, Any]  # num_warps and others

    @property
    def name(self) -> str:
        return self.kernel.__name__


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Every launch of a Triton kernel from now on; none runs. Works on meta tensors, so any size costs nothing."""
    pytest.importorskip("triton")
    from triton.runtime.jit import JITFunction

    from mamba_bio_audio.kernels import launch

    found: list[Launch] = []

    def run(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **given: Any) -> None:
        options = {name: given.pop(name) for name in list(given) if name not in self.arg_names}
        values = dict(zip(self.arg_names, args, strict=False)) | given
        assert values.keys() == set(self.arg_names), "arguments are missing"
        constants = {p.name: values.pop(p.name) for p in self.params if p.is_constexpr}
        found.append(Launch(self, grid, values, constants, options))

    monkeypatch.setattr(JITFunction, "run", run)
    # What a test on a GPU compiled before would be launched straight away.
    monkeypatch.setattr(launch, "_known", {})
    return found


class LaunchScan:
    """`launch_scan(kind, shape)`: the launches of a scan in training on an H100, (plan, forward, backward).

    bf16, with all optional inputs but a state before the span and resets, the gate in rows `gate_rows` times its width.
    Not to `train` leaves out what only backward needs, and backward.
    """

    # complex, time-invariant, exactly held
    kinds: ClassVar = {
        "real selective": (False, False, False),
        "complex selective": (True, False, False),
        "real LTI": (False, True, False),
        "complex LTI": (True, True, False),
        "real, exactly held": (False, False, True),
        "complex, exactly held": (True, False, True),
    }

    def __init__(self, device: torch.device, launches: list[Launch]) -> None:
        self.device, self.launches = device, launches

    def __call__(
        self, kind: str, shape: tuple[int, int, int, int], gate_rows: int = 2, train: bool = True
    ) -> tuple[Any, list[Launch], list[Launch]]:
        """`shape` is batch, length, channels, states."""
        from mamba_bio_audio.kernels.scan.autograd import scan_triton
        from mamba_bio_audio.kernels.scan.inputs import ScanInputs, make_plan

        is_complex, fixed, exact = self.kinds[kind]
        batch, length, channels, states = shape
        parts = (2,) if is_complex else ()

        def meta(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(*size, dtype=dtype, device="meta", requires_grad=True)

        maps = [
            meta(channels, states, *parts) if fixed else meta(batch, length, states, *parts, dtype=torch.bfloat16)
            for _ in "BC"
        ]
        inputs = ScanInputs(
            u=meta(batch, length, channels, dtype=torch.bfloat16),
            dt=meta(channels) if fixed else meta(batch, length, channels, dtype=torch.bfloat16),
            A=meta(channels, states, *parts),
            B=maps[0],
            C=maps[1],
            D=meta(channels),
            z=meta(batch, length, gate_rows * channels, dtype=torch.bfloat16)[..., -channels:],
            dt_bias=meta(channels),
            exact_zoh=exact,
        )
        self.launches.clear()
        plan = make_plan(*shape, self.device, inputs.case)
        with torch.set_grad_enabled(train):
            out, _ = scan_triton(inputs, plan)
        forward = list(self.launches)
        if train:
            torch.autograd.grad(out, [t for t in inputs.tensors if t is not None], torch.empty_like(out))
        return plan, forward, self.launches[len(forward) :]


@pytest.fixture
def launch_scan(hopper: torch.device, launches: list[Launch]) -> LaunchScan:
    return LaunchScan(hopper, launches)


TYPES = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.uint8: "*u8", torch.int32: "*i32",
    torch.int64: "*i64", torch.float64: "*fp64",
}  # fmt: skip


@pytest.fixture
def compile_for() -> Callable[[Launch, int], Any]:
    """Compiles what was launched for a GPU that is not there; skips where Triton's assembler does not know it.

    As Triton would: pointers and numbers that 16 divides are known to be, those that are 1 are constants.
    """
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def run(launch: Launch, arch: int) -> Any:
        kernel, constants = launch.kernel, dict(launch.constants)
        signature, attributes = {}, {}
        for i, parameter in enumerate(kernel.params):
            name = parameter.name
            value: Any = launch.arguments.get(name)
            if isinstance(value, int) and value == 1 and not parameter.do_not_specialize:
                constants[name] = 1
            if name in constants:
                signature[name] = "constexpr"
                continue
            if isinstance(value, torch.Tensor):
                signature[name] = TYPES[value.dtype]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32" if abs(value) < 1 << 31 else "i64"
            if isinstance(value, torch.Tensor) or (
                isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize
            ):
                attributes[(i,)] = [["tt.divisibility", 16]]
        values = {(i,): constants[name] for i, name in enumerate(kernel.arg_names) if name in constants}
        source = ASTSource(kernel, signature, values, attributes)
        options = {name: value for name, value in launch.options.items() if value is not None}
        try:
            return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        except Exception as error:
            if "is not defined for option 'gpu-name'" in str(error):
                pytest.skip(f"this Triton's ptxas does not know sm_{arch}")
            raise

    return run


class Code(NamedTuple):
    """Machine code of a kernel."""

    registers: int
    stack: int  # bytes of local memory of a thread: spills
    text: str


@pytest.fixture
def machine_code(tmp_path):
    """Resources and instructions of a compiled kernel."""
    triton = pytest.importorskip("triton")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def of(compiled) -> Code:
        path = tmp_path / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])

        def output(tool: str, option: str) -> str:
            return subprocess.run([tools / tool, option, path], capture_output=True, text=True, check=True).stdout

        usage = output("cuobjdump", "-res-usage")
        registers, stack = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK"))
        return Code(registers, stack, output("nvdisasm", "-c"))

    return of
