"""Uniform numbers that a GPU makes are those of the host, bit for bit."""

import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from mamba_bio_audio.inference.uniforms import uniforms
from mamba_bio_audio.kernels.decode.uniforms import device_uniforms

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
# Seed, first row, rows, first position, positions: every place within a counter's four words, more than a program, all 64 bits.
CASES = [
    (0, 0, 1, 0, 1),
    (7, 3, 2, 5, 11),
    (7, 0, 37, 6, 14),
    (2**63 + 5, 1, 3, 2, 4),
    (2**64 - 1, 2**40, 3, 2**50 + 3, 9),
]


def equal(seed, first_row, rows, start, count, device):
    found = device_uniforms(seed, first_row, rows, start, count, torch.device(device))
    expected = uniforms(seed, range(first_row, first_row + rows), start, count)
    return np.array_equal(found.cpu().numpy(), expected.T)


def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_equal(self, case):
        assert equal(*case, "cpu")

    def test_none(self):
        assert device_uniforms(1, 0, 3, 5, 0, torch.device("cpu")).shape == (0, 3)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", [*CASES, (3, 0, 2048, 1, 1024)], ids=str)
def test_on_a_gpu(case):
    assert equal(*case, "cuda")


@pytest.mark.skipif(INTERPRETING, reason="compiles for a GPU")
def test_on_hopper(launches, compile_for, machine_code):
    device_uniforms(3, 1, 2048, 5, 1024, torch.device("meta"))
    (launch,) = launches
    assert machine_code(compile_for(launch, 90)).stack == 0
