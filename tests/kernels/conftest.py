"""What the tests of Triton kernels share."""

import os
import subprocess
import sys
from pathlib import Path

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
    """Runs the test's own file once more in a process in which Triton interprets, and requires that it passes."""

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
