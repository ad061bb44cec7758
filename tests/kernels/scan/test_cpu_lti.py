"""The time-invariant scan in matrix products; `test_cases.py` compares it with the reference in every case."""

import pytest
import torch

from mamba_bio_audio.kernels.scan import cpu_lti
from mamba_bio_audio.kernels.scan.inputs import ScanInputs
from mamba_bio_audio.kernels.scan.reference import scan_reference


def make(length, is_complex, dtype=torch.float64, rows=2, channels=3, states=4):
    draw = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    pair = (2,) if is_complex else ()
    A = -torch.rand(channels, states, generator=draw, dtype=torch.float64) - 0.1
    if is_complex:
        A = torch.stack([A, torch.arange(states).expand(channels, states).double()], -1)
    return ScanInputs(
        normal(rows, length, channels),
        normal(channels),
        A.to(dtype).requires_grad_(),
        normal(channels, states, *pair),
        normal(channels, states, *pair),
        normal(channels),
        normal(rows, length, channels),
        normal(channels),
        normal(rows, channels, states, *pair),
    )


def values_and_gradients(scan, inputs):
    out, state = scan(inputs)
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(t.shape, generator=draw, dtype=torch.float64).to(t.dtype) for t in (out, state)]
    wanted = [t for t in inputs.tensors if t is not None]
    return [out, state, *torch.autograd.grad((out * weights[0]).sum() + (state * weights[1]).sum(), wanted)]


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("length", [16, 17, 64, 95, 301])
@pytest.mark.parametrize("exact", [False, True], ids=["Euler", "exact"])
def test_equals_the_reference(length, is_complex, exact):
    """Whole blocks, and what is left over behind them, an odd number of steps as well."""
    inputs = make(length, is_complex)._replace(exact_zoh=exact)
    assert cpu_lti.suits(inputs)
    found, expected = values_and_gradients(cpu_lti.scan_lti, inputs), values_and_gradients(scan_reference, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


def test_is_left_to_the_other_path():
    inputs = make(64, True)
    assert not cpu_lti.suits(inputs._replace(reset=torch.zeros(2, 64, dtype=torch.bool)))
    assert not cpu_lti.suits(inputs._replace(precise=True))
    assert not cpu_lti.suits(inputs._replace(dt=inputs.dt.expand(2, 64, 3)))
    assert not cpu_lti.suits(make(8, True))


def test_has_no_second_derivative():
    inputs = make(32, False)
    grad = torch.autograd.grad(cpu_lti.scan_lti(inputs)[0].square().sum(), inputs.u, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="selective_scan: this backend has no second derivative"):
        grad.sum().backward()
