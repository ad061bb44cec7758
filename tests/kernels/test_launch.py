"""Launches go Triton's way once for each kind of arguments, and then straight to what was compiled."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")

from triton import language as tl  # noqa: E402
from triton.runtime import driver  # noqa: E402

from mamba_bio_audio.kernels import launch as module  # noqa: E402
from mamba_bio_audio.kernels.launch import launch, on, power_of_2  # noqa: E402

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled there")


@triton.jit(do_not_specialize=["rows"])
def kernel(x_p, y_p, rows, scale, WIDTH: tl.constexpr, CASE: tl.constexpr):
    """Never run here."""


class Compiled:
    """What Triton would return, with a note of every launch."""

    function, packed_metadata = 7, "metadata"

    def __init__(self, name, log):
        self.name, self.log = name, log

    def run(self, *given):
        self.log.append((self.name, *given))


@pytest.fixture
def log(monkeypatch):
    """Every launch: those of Triton's own way as ("triton", ...), the others as (which was compiled, arguments)."""
    found = []

    class Driver:
        device, stream = 0, 5

        def get_current_device(self):
            return self.device

        def get_current_stream(self, device):
            return self.stream

    compiled = []

    def run(self, *given, grid, warmup, **constants):
        found.append(("triton", grid, *given, constants))
        compiled.append(Compiled(f"compiled {len(compiled)}", found))
        return compiled[-1]

    monkeypatch.setattr(driver, "_active", Driver())
    monkeypatch.setattr(type(kernel), "run", run)
    monkeypatch.setattr(module, "_known", {})
    return found


def tensor(dtype=torch.float32, odd=False):
    whole = torch.zeros(32, dtype=dtype)
    assert whole.data_ptr() % 16 == 0
    return whole[1:] if odd else whole


def call(x, y, rows=3, scale=0.5, width=4, case=False, programs=2):
    launch(kernel, programs, x, y, rows, scale, CASE=case, WIDTH=width, num_warps=1)


def test_the_second_launch_knows_what_was_compiled(log):
    x, y, again = tensor(), tensor(), tensor()
    call(x, y)
    assert log == [("triton", (2,), x, y, 3, 0.5, {"CASE": False, "WIDTH": 4, "num_warps": 1})]
    log.clear()
    call(again, y, programs=9)
    # Grid, stream, function, metadata, no hooks; then all arguments in the kernel's order, tensors as addresses.
    given = (again.data_ptr(), y.data_ptr(), 3, 0.5, 4, False)
    assert log == [("compiled 0", 9, 1, 1, 5, 7, "metadata", None, None, None, *given)]


def test_other_kinds_of_arguments_are_other_kernels(log):
    x, y = tensor(), tensor()
    for change in ({}, {"rows": 4}, {"scale": 2.0}, {"width": 8}, {"case": True}, {"x": tensor(torch.bfloat16)}):
        for _ in range(2):
            call(**{"x": x, "y": y, **change})
    assert [entry[0] for entry in log] == [name for i in range(6) for name in ("triton", f"compiled {i}")]
    log.clear()
    driver._active.device = 1
    call(x, y)
    assert log[0][0] == "triton"


def test_odd_addresses_and_profilers_go_tritons_way(log, monkeypatch):
    x, odd = tensor(), tensor(odd=True)
    # What is compiled for an odd address is not taken for another.
    call(odd, x)
    call(x, x)
    call(x, odd)
    call(x, x)
    assert [entry[0] for entry in log] == ["triton", "triton", "triton", "compiled 1"]
    log.clear()
    monkeypatch.setattr(module.runtime, "launch_enter_hook", lambda metadata: None)
    call(x, x)
    assert log[0][0] == "triton"


def test_what_is_known_stays_small(log, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 3)
    x = tensor()
    for rows in range(7):
        call(x, x, rows=rows)
    assert len(module._known[id(kernel)].compiled) <= 3


def test_only_another_device_is_chosen(monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 1, raising=False)
    assert on(torch.device("cuda", 1)) is on(torch.device("cpu"))
    assert isinstance(on(torch.device("cuda", 0)), torch.cuda.device)


def test_powers_of_two():
    assert [power_of_2(n) for n in range(1, 10)] == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert all(power_of_2(n) == triton.next_power_of_2(n) for n in range(1, 3000))
