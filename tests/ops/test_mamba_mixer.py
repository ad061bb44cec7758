"""The mixer as one operation: what it refuses, which path it takes, and that it is the operations one after another."""

import itertools
import sys

import pytest
import torch
import torch.nn.functional as F

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.made_once import weights_stay
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.layers.mamba import MambaLayer, MambaState
from mamba_bio_audio.ops import MixerWeights, calls, causal_conv1d, mamba_mixer, selective_scan

_ready = sys.modules[mamba_mixer.__module__]._ready

B, L, D, N = 2, 6, 4, 3
KINDS = list(itertools.product([False, True], [True, False, "dt", "bc"]))


def make(complex_states, selective, **options):
    torch.manual_seed(0)
    layer = MambaLayer(D, SsmConfig(complex=complex_states, selective=selective, d_state=N, **options))
    return layer, [torch.randn_like(t).requires_grad_() for t in layer.init_state(B)]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"x": torch.zeros(B, L, D + 1)}, r"x must be \(B, L, M=4\)"),
        ({"x": torch.zeros(B, 0, D)}, r"L >= 1"),
        ({"tail": torch.zeros(B + 1, 3, 8)}, r"tail must be \(2, 3, 8\), not \(3, 3, 8\)"),
        ({"h0": torch.zeros(1, 8, 3)}, r"h0 must be \(2, 8, 3\), not \(1, 8, 3\)"),
        ({"h0": torch.zeros(B, 8, 3, device="meta")}, "h0 is on meta"),
        ({"reset": torch.zeros(B, L + 1, dtype=torch.bool)}, "reset must be bool"),
    ],
)
def test_the_mixer_refuses_a_state_that_its_kernels_would_read_beyond(changes, shown):
    shapes = ((16, D), None, (8, 4), (8,), (1 + 2 * N, 8), (8, 1), (8,), (8, N), (8,), (D, 8), None)
    weights = MixerWeights(*(None if shape is None else torch.zeros(shape) for shape in shapes))
    with pytest.raises(InputError, match=shown):
        mamba_mixer(**{"x": torch.zeros(B, L, D), "weights": weights, **changes})


def one_after_another(layer, x, tail, h0, reset):
    """The layer's own modules and the other operations, as in figure 3 of the paper."""
    config = layer.config
    u, z = layer.in_proj(x).chunk(2, dim=-1)
    conv = layer.conv1d
    u, tail = causal_conv1d(u, conv.weight.squeeze(1), conv.bias, tail=tail, return_tail=True, reset=reset)
    sizes = [layer.dt_rank] * layer.selective_dt + [N * (1 + config.complex)] * 2 * layer.selective_b
    parts = list(layer.x_proj(u).split(sizes, dim=-1)) if sizes else []
    dt = F.linear(parts.pop(0), layer.dt_proj.weight) if layer.selective_dt else layer.dt
    maps = parts if layer.selective_b else (layer.B, layer.C)
    if config.complex and layer.selective_b:
        maps = [part.unflatten(-1, (N, 2)) for part in parts]
    A = -torch.exp(layer.A_log)
    y, h = selective_scan(
        u,
        dt,
        torch.stack([A, layer.A_imag], dim=-1) if config.complex else A,
        *maps,
        layer.D,
        z,
        layer.dt_proj.bias if layer.selective_dt else None,
        h0=h0,
        return_state=True,
        reset=reset,
        exact_zoh=config.exact_zoh,
        precise=config.precise,
    )
    return layer.out_proj(y), tail, h


@pytest.mark.parametrize("options", [{}, {"exact_zoh": True, "precise": True, "proj_bias": True, "conv_bias": False}])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("complex_states", "selective"), KINDS)
def test_a_layer_is_its_operations_one_after_another_bit_for_bit(complex_states, selective, autocast, options):
    layer, state = make(complex_states, selective, **options)
    x = torch.randn(B, L, D, requires_grad=True)
    reset = torch.rand(B, L) < 0.2
    leaves = [x, *state, *layer.parameters()]
    found = []
    for run in (lambda: layer(x, state, reset=reset), lambda: one_after_another(layer, x, *state, reset)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, *after = run()
        after = after[0] if len(after) == 1 else after
        loss = y.float().square().sum() + sum(t.float().sin().sum() for t in after)
        found.append([y, *after, *torch.autograd.grad(loss, leaves)])
    assert found[0][0].dtype == (torch.bfloat16 if autocast else torch.float32)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize(("complex_states", "selective"), KINDS)
def test_every_backend_is_the_layer(complex_states, selective, backend):
    """What `mba doctor` compares the fused mixer with on a GPU equals the layer."""
    layer, (tail, h0) = make(complex_states, selective)
    x = torch.randn(B, L, D)
    with torch.no_grad():
        found = mamba_mixer(x, layer.weights(), tail=tail, h0=h0, backend=backend)
        expected, state = layer(x, (tail, h0))
    for a, b in zip(found, (expected, *state), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("exact_zoh", [False, True])
@pytest.mark.parametrize("selective", ["b", "c"])
def test_one_of_B_and_C_that_depends_on_the_input_is_the_recurrence(selective, exact_zoh):
    """Table 7 of the paper: h = exp(dt A) h + dt B u, y = C h + D u, with one of B (B, L, N) and C (E, N) fixed."""
    torch.manual_seed(1)
    config = SsmConfig(complex=False, selective=selective, d_state=N, exact_zoh=exact_zoh)
    layer = MambaLayer(D, config).double()
    assert sum(p.numel() for p in layer.parameters()) == config.num_parameters(D)
    tail, h = (torch.randn_like(t) for t in layer.init_state(B, dtype=torch.float64))
    x = torch.randn(B, L, D, dtype=torch.float64)
    found, (_, state) = layer(x, (tail, h))
    u, z = layer.in_proj(x).chunk(2, dim=-1)
    u = causal_conv1d(u, layer.conv1d.weight.squeeze(1), layer.conv1d.bias, tail=tail)
    selected = layer.x_proj(u)
    dt, A = F.softplus(layer.dt)[:, None], -torch.exp(layer.A_log)
    held = torch.expm1(dt * A) / A if exact_zoh else dt
    rows = []
    for at in range(L):
        b = selected[:, at, None] if selective == "b" else layer.B
        c = selected[:, at, None] if selective == "c" else layer.C
        h = torch.exp(dt * A) * h + held * b * u[:, at, :, None]
        rows.append((c * h).sum(-1) + layer.D * u[:, at])
    expected = layer.out_proj(torch.stack(rows, 1) * F.silu(z))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(state, h)


@pytest.fixture
def fused(monkeypatch):
    """Calls of the one function that a GPU would get, on a machine that seems to run Triton."""
    pytest.importorskip("triton")
    from mamba_bio_audio.kernels.mixer import recompute

    def take(x, weights, **options):
        taken.append((x, weights, options))
        return x, options["tail"], options["h0"]

    taken = []
    monkeypatch.setattr(calls, "no_triton", lambda device: None)
    monkeypatch.setattr(recompute, "mixer_triton", take)
    return taken


@pytest.mark.parametrize("autocast", [False, True])
def test_the_one_function_gets_what_the_layer_has(fused, monkeypatch, autocast):
    monkeypatch.setattr(sys.modules[mamba_mixer.__module__], "choose", lambda *given, **options: "triton")
    layer, (tail, h0) = make(False, True, precise=True, proj_bias=True)
    x, reset = torch.randn(B, L, D), torch.zeros(B, L, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        layer(x, (tail, h0), reset=reset)
    ((found, weights, options),) = fused
    assert found is x
    dtype = torch.bfloat16 if autocast else torch.float32
    assert options == {"tail": tail, "h0": h0, "reset": reset, "precise": True, "dtype": dtype}
    named = layer.weights()._asdict()
    for name, weight in weights._asdict().items():
        assert torch.equal(weight, named[name]), name


def test_which_layers_the_one_function_runs(fused):
    """The published one; whoever asks for it with another one is told why not."""
    layer, _ = make(False, True)
    x = torch.randn(B, L, D)
    mamba_mixer(x, layer.weights(), backend="triton")
    assert len(fused) == 1
    for complex_states, selective in KINDS:
        if complex_states or selective is not True:
            with pytest.raises(InputError, match="cannot run this call: complex, time-invariant or exactly held"):
                mamba_mixer(x, make(complex_states, selective)[0].weights(), backend="triton")
    with pytest.raises(InputError, match="exactly held"):
        mamba_mixer(x, layer.weights(), exact_zoh=True, backend="triton")
    with pytest.raises(InputError, match="a float64 state"):  # which it would narrow
        mamba_mixer(x, layer.weights(), h0=torch.zeros(B, 2 * D, N, dtype=torch.float64), backend="triton")
    with pytest.raises(InputError, match="float64"):
        mamba_mixer(x.double(), layer.double().weights(), backend="triton")
    assert len(fused) == 1


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(("complex_states", "selective"), KINDS)
def test_what_is_made_of_weights_is_made_once_where_they_stay(complex_states, selective, dtype, monkeypatch):
    layer, state = make(complex_states, selective)
    x = torch.randn(B, 1, D)
    made = []
    monkeypatch.setattr(MixerWeights, "A", (lambda own: lambda w: made.append(1) or own(w))(MixerWeights.A))
    with torch.no_grad(), torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        state = [t.detach() for t in state]
        expected = [layer(x, MambaState(*state)) for _ in range(3)]
        assert len(made) == 3
        kept = {}
        for _ in range(2):
            with weights_stay(kept):
                found = [layer(x, MambaState(*state)) for _ in range(3)]
            assert len(made) == 4
            for (y, after), (own_y, own) in zip(found, expected, strict=True):
                assert all(map(torch.equal, (y, *after), (own_y, *own)))
        # Behind it, weights may change.
        layer.A_log.add_(1)
        assert not torch.equal(layer(x, MambaState(*state))[0], expected[0][0])


def test_weights_lie_as_the_kernels_read_them():
    pytest.importorskip("triton")
    from mamba_bio_audio.kernels.scan.launch import planes_of

    layer, _ = make(True, False)
    w = layer.weights()
    ready, A = _ready(w, torch.float32, True)
    assert all(map(torch.equal, (ready.conv, A, ready.B, ready.C), (w.conv, w.A(), w.B, w.C)))
    assert all(planes_of(t, True).data_ptr() == t.data_ptr() for t in (A, ready.B, ready.C))
    layer, _ = make(False, True)
    A = _ready(layer.weights(), torch.float32, True)[1]
    assert torch.equal(A, layer.weights().A())
    assert planes_of(A, False).data_ptr() == A.data_ptr()
