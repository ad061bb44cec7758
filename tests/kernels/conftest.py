"""What the tests of Triton kernels share."""

import os
import subprocess
import sys
from pathlib import Path

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
