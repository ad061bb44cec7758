"""Selective scan: the oracle against closed forms, the torch backend against the oracle."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mamba_bio_audio.kernels.scan import cpu_blocks
from mamba_bio_audio.ops import selective_scan

# max |difference| / max |reference|
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
BF16_ERROR_RATIO = 1.5

ODD_LENGTHS = (1, 2, 7, 63, 64, 65, 257)
EXTRAS = ("D", "z", "dt_bias", "h0", "reset")


def make_inputs(
    batch=2,
    length=65,
    channels=5,
    states=3,
    *,
    is_complex=False,
    lti=(),
    extras=EXTRAS,
    dtype=torch.float64,
    seed=0,
):
    """Keyword arguments of selective_scan; `lti` names which of dt, B, C do not depend on time."""
    generator = torch.Generator().manual_seed(seed)
    pair = (2,) if is_complex else ()

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    A = torch.rand(channels, states, *pair, generator=generator, dtype=torch.float64) * 2
    A = torch.stack([-A[..., 0], 3 * A[..., 1]], dim=-1) if is_complex else -A
    inputs = {
        "u": normal(batch, length, channels),
        "dt": normal(channels) if "dt" in lti else normal(batch, length, channels),
        "A": A.to(dtype),
        "B": normal(channels, states, *pair) if "B" in lti else normal(batch, length, states, *pair),
        "C": normal(channels, states, *pair) if "C" in lti else normal(batch, length, states, *pair),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "dt_bias": normal(channels),
        "h0": normal(batch, channels, states, *pair),
        "reset": torch.rand(batch, length, generator=generator) < 0.1,
    }
    kept = {name: t for name, t in inputs.items() if name not in EXTRAS or name in extras}
    return {name: t if t.dtype == torch.bool else t.requires_grad_() for name, t in kept.items()}


def weights_like(out):
    """Different everywhere, and exact in bf16, so that the gradient of a bf16 output is not rounded."""
    return torch.linspace(-1, 1, out.numel()).bfloat16().view(out.shape).to(out.dtype)


def run(inputs, backend, **options):
    """Output, final state and the gradient of every input, through output and state alike."""
    out, state = selective_scan(**inputs, return_state=True, backend=backend, **options)
    loss = (out.to(state.dtype) * weights_like(out).to(state.dtype)).sum() + (state * torch.cos(state)).sum()
    names = [name for name, t in inputs.items() if t.requires_grad]
    grads = torch.autograd.grad(loss, [inputs[name] for name in names])
    return {"out": out, "state": state, **dict(zip(names, grads, strict=True))}


def assert_close(ours, reference, tolerance):
    for name, expected in reference.items():
        scale = expected.abs().max().item() or 1.0
        error = (ours[name] - expected).abs().max().item() / scale
        assert error <= tolerance, f"{name}: {error:.2e} > {tolerance:.0e}"
        assert ours[name].dtype == expected.dtype, name


def test_reference_equals_hand_loop():
    torch.manual_seed(0)
    u, raw, B, C = (torch.randn(6).tolist() for _ in range(4))
    a, skip, bias, h = -0.7, 0.3, 0.2, 0.5
    column = lambda values: torch.tensor(values, dtype=torch.float64).view(1, -1, 1)  # noqa: E731
    out, state = selective_scan(
        column(u),
        column(raw),
        torch.tensor([[a]], dtype=torch.float64),
        column(B),
        column(C),
        torch.tensor([skip], dtype=torch.float64),
        column(u),
        torch.tensor([bias], dtype=torch.float64),
        h0=torch.tensor([[[h]]], dtype=torch.float64),
        return_state=True,
        backend="reference",
    )
    for t in range(6):
        dt = math.log1p(math.exp(raw[t] + bias))
        h = math.exp(dt * a) * h + dt * B[t] * u[t]
        y = (C[t] * h + skip * u[t]) * u[t] / (1 + math.exp(-u[t]))
        assert out[0, t, 0].item() == pytest.approx(y, rel=1e-12)
    assert state.item() == pytest.approx(h, rel=1e-12)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_impulse_response_is_geometric(backend):
    """LTI, no softplus: the answer to an impulse is 2 Re(C exp(k dt A) dt B)."""
    A, B, C, dt = complex(-0.3, 1.1), complex(0.5, -0.2), complex(1.5, 0.4), 0.25
    pair = lambda v: torch.tensor([[[v.real, v.imag]]], dtype=torch.float64)  # noqa: E731
    u = torch.zeros(1, 70, 1, dtype=torch.float64)
    u[0, 0] = 1
    dts = torch.tensor([dt], dtype=torch.float64)
    out = selective_scan(u, dts, pair(A), pair(B), pair(C), dt_softplus=False, backend=backend)
    k = torch.arange(70, dtype=torch.float64)
    expected = 2 * (C * dt * B * torch.exp(k * dt * torch.tensor(A, dtype=torch.complex128))).real
    torch.testing.assert_close(out[0, :, 0], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_theorem_1_gating(backend):
    """Paper section 3.5.1: N = 1, A = -1, B = 1, exact hold: h_t = (1 - g) h_(t-1) + g x_t, g = sigmoid."""
    torch.manual_seed(0)
    x, raw = torch.randn(2, 2, 9, 3, dtype=torch.float64).unbind(0)
    one = torch.ones(3, 1, dtype=torch.float64)
    out = selective_scan(x, raw, -one, one, one, exact_zoh=True, backend=backend)
    gate, h = torch.sigmoid(raw), torch.zeros(2, 3, dtype=torch.float64)
    for t in range(9):
        h = (1 - gate[:, t]) * h + gate[:, t] * x[:, t]
        torch.testing.assert_close(out[:, t], h, rtol=1e-12, atol=1e-14)
    euler = selective_scan(x, raw, -one, one, one, backend=backend)
    assert not torch.allclose(euler, out)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_complex_with_zero_imaginary_part_is_twice_real(backend):
    real = make_inputs(extras=("h0", "reset", "dt_bias"))
    with_zeros = {
        name: torch.stack([t, torch.zeros_like(t)], -1) if name in ("A", "B", "C", "h0") else t
        for name, t in real.items()
    }
    ours = selective_scan(**with_zeros, backend=backend)
    torch.testing.assert_close(ours, 2 * selective_scan(**real, backend=backend), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_dt_zero_freezes_and_large_dt_forgets(backend):
    inputs = make_inputs(length=70, extras=("h0",))
    still = {**inputs, "dt": torch.full((5,), 0.0, dtype=torch.float64)}
    _, state = selective_scan(**still, dt_softplus=False, return_state=True, backend=backend)
    torch.testing.assert_close(state, inputs["h0"], rtol=0, atol=0)
    fast = {**inputs, "dt": torch.full((2, 70, 5), 1e4, dtype=torch.float64).requires_grad_()}
    result = run({**fast, "A": (inputs["A"].detach() - 0.1).requires_grad_()}, backend)
    assert all(t.isfinite().all() for t in result.values())
    assert result["h0"].abs().max() == 0


LTI = [(), ("dt",), ("B",), ("C",), ("B", "C"), ("dt", "B", "C")]


@pytest.mark.parametrize("length", ODD_LENGTHS)
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_torch_equals_reference_at_every_length(length, is_complex):
    inputs = make_inputs(length=length, is_complex=is_complex)
    assert_close(run(inputs, "torch"), run(inputs, "reference"), TOLERANCE[torch.float64])


@pytest.mark.parametrize("precise", [False, True], ids=["", "precise"])
@pytest.mark.parametrize("exact_zoh", [False, True], ids=["euler", "zoh"])
@pytest.mark.parametrize("lti", LTI, ids=lambda lti: "lti_" + "_".join(lti))
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_torch_equals_reference_in_every_mode(is_complex, lti, exact_zoh, precise):
    for length, extras in ((7, EXTRAS), (72, ("h0",))):
        inputs = make_inputs(length=length, is_complex=is_complex, lti=lti, extras=extras)
        options = {"exact_zoh": exact_zoh, "precise": precise}
        assert_close(run(inputs, "torch", **options), run(inputs, "reference", **options), TOLERANCE[torch.float64])


@pytest.mark.parametrize("extras", [(), ("D",), ("z",), ("dt_bias",), ("h0",), ("reset",), EXTRAS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torch_equals_reference_with_each_extra(extras, dtype):
    inputs = make_inputs(length=130, extras=extras, dtype=dtype)
    wide = {name: t if t.dtype == torch.bool else t.detach().double().requires_grad_() for name, t in inputs.items()}
    expected = {name: t.to(dtype) for name, t in run(wide, "reference").items()}
    assert_close(run(inputs, "torch"), expected, TOLERANCE[dtype])


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 140),
    channels=st.integers(1, 7),
    states=st.integers(1, 5),
    is_complex=st.booleans(),
    lti=st.sets(st.sampled_from(["dt", "B", "C"])),
    extras=st.sets(st.sampled_from(EXTRAS)),
    flags=st.tuples(*[st.booleans()] * 3),
    seed=st.integers(0, 1000),
)
def test_torch_equals_reference_on_anything(batch, length, channels, states, is_complex, lti, extras, flags, seed):
    inputs = make_inputs(batch, length, channels, states, is_complex=is_complex, lti=lti, extras=extras, seed=seed)
    options = dict(zip(("exact_zoh", "precise", "dt_softplus"), flags, strict=True))
    if not options["dt_softplus"]:
        inputs["dt"] = inputs["dt"].detach().abs().requires_grad_()
        inputs.pop("dt_bias", None)
    assert_close(run(inputs, "torch", **options), run(inputs, "reference", **options), TOLERANCE[torch.float64])


def test_torch_walks_groups_and_segments(monkeypatch):
    """Small limits, so that rows fall into several groups and time into several segments."""
    sizes = cpu_blocks._Sizes(fewest=8, most=8, numbers=8 * 15, segment=5 * 16, joins=3)
    monkeypatch.setattr(cpu_blocks, "_CPU_SIZES", sizes)
    for is_complex in (False, True):
        inputs = make_inputs(batch=3, length=53, is_complex=is_complex)
        assert_close(run(inputs, "torch"), run(inputs, "reference"), TOLERANCE[torch.float64])


@pytest.mark.parametrize("length", [256, 300])
def test_torch_in_the_blocks_of_a_gpu(monkeypatch, length):
    """Few large blocks with a deep tree, all rows together."""
    monkeypatch.setattr(cpu_blocks, "_CPU_SIZES", cpu_blocks._GPU_SIZES)
    for is_complex in (False, True):
        inputs = make_inputs(batch=3, length=length, is_complex=is_complex, extras=("D", "z", "dt_bias", "h0"))
        assert_close(run(inputs, "torch"), run(inputs, "reference"), TOLERANCE[torch.float64])


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("cuts", [(1,), (63, 64), (5, 70, 71)])
def test_split_equals_whole(is_complex, cuts):
    inputs = make_inputs(length=90, is_complex=is_complex)
    whole = run(inputs, "torch")
    timed = [name for name, t in inputs.items() if t.ndim >= 2 and t.shape[1] == 90]

    outs, state = [], inputs["h0"]
    for start, stop in itertools.pairwise((0, *cuts, 90)):
        piece = {name: t[:, start:stop] if name in timed else t for name, t in inputs.items()}
        out, state = selective_scan(**{**piece, "h0": state}, return_state=True, backend="torch")
        outs.append(out)
    out = torch.cat(outs, dim=1)
    loss = (out * weights_like(out)).sum() + (state * torch.cos(state)).sum()
    names = [name for name in inputs if name != "reset"]
    grads = torch.autograd.grad(loss, [inputs[name] for name in names])
    assert_close({"out": out, "state": state, **dict(zip(names, grads, strict=True))}, whole, 1e-10)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("extras", [(), EXTRAS])
@torch.no_grad()
def test_steps_without_gradient_equal_one_call(is_complex, extras):
    inputs = make_inputs(length=9, is_complex=is_complex, extras=extras)
    whole, last = selective_scan(**inputs, return_state=True)
    state = inputs.pop("h0", None)
    for t in range(9):
        step = {n: x[:, t : t + 1] if x.ndim >= 2 and x.shape[1] == 9 else x for n, x in inputs.items()}
        out, state = selective_scan(**step, h0=state, return_state=True)
        torch.testing.assert_close(out, whole[:, t : t + 1], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(state, last, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"exact_zoh": True}, {"precise": True}], ids=str)
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_gradcheck(is_complex, options):
    inputs = make_inputs(1, 5, 2, 2, is_complex=is_complex)
    names = list(inputs)
    assert torch.autograd.gradcheck(
        lambda *tensors: selective_scan(
            **dict(zip(names, tensors, strict=True)), return_state=True, backend="torch", **options
        ),
        tuple(inputs.values()),
    )


def test_exact_zoh_where_A_vanishes():
    """b -> dt B u as A -> 0, with a finite gradient of A from the series."""
    for backend in ("reference", "torch"):
        inputs = make_inputs(length=20, extras=())
        inputs["A"] = (inputs["A"].detach() * 1e-9).requires_grad_()
        exact, euler = run(inputs, backend, exact_zoh=True), run(inputs, backend)
        torch.testing.assert_close(exact["out"], euler["out"], rtol=1e-6, atol=1e-6)
        assert exact["A"].isfinite().all()
        assert exact["A"].abs().max() > 0
    zero = {**inputs, "A": torch.zeros_like(inputs["A"]).requires_grad_()}
    assert_close(run(zero, "torch", exact_zoh=True), run(zero, "reference", exact_zoh=True), 1e-10)


def test_precise_keeps_long_memory():
    """A decay half-way between two fp32 numbers: rounding it changes the memory, expm1 does not."""
    length, step = 4096, 1677.5 * 2.0**-24
    one, u = torch.ones(1, 1), torch.zeros(1, length, 1)
    options = {"h0": torch.full((1, 1, 1), 1.9), "dt_softplus": False, "return_state": True}
    expected = 1.9 * math.exp(-step * length)
    for backend in ("reference", "torch"):
        # A step size for each position: a fixed one lets the torch backend take powers, which round once in a block.
        arguments = (u, torch.full((1, length, 1), step), -one, one, one)
        _, coarse = selective_scan(*arguments, **options, backend=backend)
        _, fine = selective_scan(*arguments, **options, precise=True, backend=backend)
        assert abs(fine.item() / expected - 1) < 1e-5
        assert abs(coarse.item() / expected - 1) > 5e-5


def test_nan_before_a_reset_does_not_leak():
    clean = make_inputs(length=80, extras=("reset", "h0"))
    clean["reset"] = torch.zeros(2, 80, dtype=torch.bool)
    clean["reset"][:, 40] = True
    clean["reset"][1, 0] = True
    dirty = {name: t.detach().clone() for name, t in clean.items()}
    dirty["u"][:, 39] = float("nan")
    dirty["h0"][0] = float("inf")
    for backend in ("reference", "torch"):
        expected = selective_scan(**clean, backend=backend)
        out = selective_scan(**dirty, backend=backend)
        assert out[:, 39].isnan().all()
        torch.testing.assert_close(out[:, 40:], expected[:, 40:], rtol=0, atol=0)
        torch.testing.assert_close(out[1, :39], expected[1, :39], rtol=0, atol=0)
    leaf = {name: t if t.dtype == torch.bool else t.requires_grad_() for name, t in dirty.items()}
    selective_scan(**leaf, backend="torch")[:, 40:].sum().backward()
    assert leaf["u"].grad[:, 40:].isfinite().all()


def test_packed_equals_separate():
    inputs = make_inputs(batch=1, length=100, extras=("D", "z", "dt_bias", "reset"))
    inputs["reset"] = torch.zeros(1, 100, dtype=torch.bool)
    inputs["reset"][0, [0, 37]] = True
    packed = selective_scan(**inputs)
    for start, stop in ((0, 37), (37, 100)):
        piece = {n: t[:, start:stop] if t.ndim >= 2 and t.shape[1] == 100 else t for n, t in inputs.items()}
        piece.pop("reset")
        torch.testing.assert_close(packed[:, start:stop], selective_scan(**piece), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_bf16_error_is_that_of_rounding(is_complex):
    inputs = make_inputs(length=130, is_complex=is_complex, dtype=torch.float32)
    low = {
        n: t.detach().bfloat16().requires_grad_() if n in ("u", "dt", "B", "C", "z") else t for n, t in inputs.items()
    }
    wide = {n: t if t.dtype == torch.bool else t.detach().double().requires_grad_() for n, t in low.items()}
    single = {n: t if t.dtype == torch.bool else t.detach().float().requires_grad_() for n, t in low.items()}
    truth, rounded, ours = run(wide, "reference"), run(single, "reference"), run(low, "torch")
    assert ours["out"].dtype == torch.bfloat16
    assert ours["state"].dtype == torch.float32
    for name, expected in truth.items():
        assert ours[name].dtype == (low[name].dtype if name in low else ours[name].dtype)
        best = (rounded[name].to(ours[name].dtype).double() - expected).norm() / expected.norm()
        error = (ours[name].double() - expected).norm() / expected.norm()
        assert error <= BF16_ERROR_RATIO * best + 1e-6, name


def test_autocast_changes_nothing():
    inputs = make_inputs(dtype=torch.float32)
    plain = run(inputs, "torch")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for backend in ("torch", "reference"):
            assert_close(run(inputs, backend), plain, 1e-5)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_strided_inputs(is_complex):
    inputs = make_inputs(is_complex=is_complex)
    expected = run(inputs, "torch")
    strided = {}
    for name, t in inputs.items():
        if t.dtype == torch.bool:
            strided[name] = t
            continue
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), float("nan"), dtype=t.dtype)
        wide[..., ::2] = t.detach()
        strided[name] = wide[..., ::2].requires_grad_()
    strided["u"] = inputs["u"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    assert_close(run(strided, "torch"), expected, 1e-12)


def test_inputs_are_not_mutated_and_results_repeat():
    inputs = make_inputs()
    before = {name: t.detach().clone() for name, t in inputs.items()}
    first, second = run(inputs, "torch"), run(inputs, "torch")
    for name, t in inputs.items():
        assert torch.equal(t, before[name]), name
    for name, t in first.items():
        assert torch.equal(t, second[name]), name


def test_second_order_names_the_reference():
    inputs = make_inputs(1, 4, 2, 2)
    (grad,) = torch.autograd.grad(selective_scan(**inputs, backend="torch").sum(), inputs["u"], create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        grad.sum().backward()
    (grad,) = torch.autograd.grad(selective_scan(**inputs, backend="reference").sum(), inputs["u"], create_graph=True)
    grad.sum().backward()
    assert inputs["A"].grad.abs().max() > 0


class LargestTensor(TorchDispatchMode):
    """Watches every tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.untyped_storage().nbytes() // t.element_size())
        return result


def test_states_of_all_positions_never_exist():
    batch, length, channels, states = 2, 4096, 32, 16
    inputs = make_inputs(batch, length, channels, states, dtype=torch.float32)
    saved = {}

    def keep(t):
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // t.element_size()
        return t

    everything = batch * length * channels * states
    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = selective_scan(**inputs, backend="torch")
        out.sum().backward()
    assert largest.numbers < everything / 8
    inputs_saved = sum(t.numel() for t in inputs.values())
    assert sum(saved.values()) <= inputs_saved + everything / 16
    assert out.shape == (batch, length, channels)


def test_softplus_is_linear_above_20():
    dt = torch.tensor([19.0, 21.0, 30.0], dtype=torch.float64).view(1, 3, 1)
    one = torch.ones(1, 1, dtype=torch.float64)
    for backend in ("reference", "torch"):
        u = torch.ones(1, 3, 1, dtype=torch.float64)
        out = selective_scan(u, dt, -100 * one, one, one, backend=backend)
        assert torch.equal(out[0, 1:, 0], dt[0, 1:, 0])
        assert out[0, 0, 0] == F.softplus(dt)[0, 0, 0]


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_complex_maps_at_odd_places(backend):
    """B and C of a single position are parts of a row, contiguous and yet not aligned to pairs."""
    inputs = make_inputs(1, 1, 3, 2, is_complex=True)
    expected = selective_scan(**inputs, backend=backend)
    row = torch.cat([torch.zeros(1, 1, 1), inputs["B"].flatten(2), inputs["C"].flatten(2)], dim=-1)
    B, C = (part.unflatten(-1, (2, 2)) for part in row[..., 1:].split(4, dim=-1))
    assert torch.equal(selective_scan(**{**inputs, "B": B, "C": C}, backend=backend), expected)


def test_gradient_of_a_complex_state_at_an_odd_place():
    inputs = make_inputs(1, 5, 3, 2, is_complex=True, extras=("h0",))
    _, last = selective_scan(**inputs, return_state=True, backend="torch")
    row = torch.randn(13, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(last, inputs["h0"], g.view(1, 3, 2, 2), retain_graph=True)[0]
        for g in (row[1:], row[1:].clone())
    )
    assert torch.equal(found, expected)
