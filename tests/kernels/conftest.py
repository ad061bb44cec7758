"""What the tests of Triton kernels share."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest


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


@pytest.fixture
def run_interpreted(request):
    """Runs the test's own file once more in a process in which Triton interprets, and requires that it passes.

    Skips the test in that process, and where range(runtime integer) fails in the interpreter: in that of Triton below
    3.7 with NumPy 2.4 and later.
    """
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is the outer process")
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("Triton's interpreter below 3.7 needs numpy < 2.4")

    def run() -> None:
        env = {**os.environ, "TRITON_INTERPRET": "1"}
        env.pop("PYTEST_XDIST_WORKER", None)
        file = str(request.node.path)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", file]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert " passed" in done.stdout

    return run


@pytest.fixture
def compile_for():
    """Compiles a Triton kernel for a GPU that is not there; skips where Triton's assembler does not know it.

    Arguments: kernel, its constants (others are left out), architecture, types of pointers that are not fp32, then
    options such as num_warps. Pointers and batch strides are divisible by 16, as in a training step.
    """
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def run(kernel, constants: dict[str, Any], arch: int, pointers: dict[str, str], **options: Any):
        signature, attributes = {}, {}
        for i, argument in enumerate(kernel.arg_names):
            if argument in constants:
                signature[argument] = "constexpr"
                continue
            pointer = argument == "p" or argument.endswith("_p")
            signature[argument] = pointers.get(argument, "*fp32" if pointer else "i32")
            if pointer or argument.endswith("_batch"):
                attributes[(i,)] = [["tt.divisibility", 16]]
        values = {(i,): constants[name] for i, name in enumerate(kernel.arg_names) if name in constants}
        source = ASTSource(kernel, signature, values, attributes)
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
