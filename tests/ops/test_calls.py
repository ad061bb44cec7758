"""What operations ask of a call: validation, choice of backend, return values."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.layers.mamba import MambaLayer
from mamba_bio_audio.ops import calls, causal_conv1d, linear_cross_entropy, plain_torch, rms_norm, selective_scan
from mamba_bio_audio.ops.mamba_mixer import _not_fused

B, L, D, N = 2, 6, 4, 3


def scan_inputs():
    return {
        "u": torch.randn(B, L, D),
        "dt": torch.randn(B, L, D),
        "A": -torch.rand(D, N),
        "B": torch.randn(B, L, N),
        "C": torch.randn(B, L, N),
    }


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("u", torch.zeros(B, D), r"u must be \(B, L, D\).*\(2, 4\)"),
        ("u", torch.zeros(B, 0, D), r"L >= 1"),
        ("u", torch.zeros(B, L, D, dtype=torch.int64), "floating-point"),
        ("dt", torch.zeros(B, L, 1), r"dt must be \(2, 6, 4\), not \(2, 6, 1\)"),
        ("dt", torch.zeros(D + 1), r"dt must be \(4,\), not \(5,\)"),
        ("A", torch.zeros(N, D), r"A must be \(D=4, N\).*\(3, 4\)"),
        ("A", torch.zeros(D, N, 3), r"complex"),
        ("B", torch.zeros(B, L, N + 1), r"B must be \(2, 6, 3\), or \(4, 3\)"),
        ("C", torch.zeros(B, L, N, 2), r"C must be .* real A"),
        ("D", torch.zeros(D, 1), r"D must be \(4,\)"),
        ("z", torch.zeros(B, L), r"z must be \(2, 6, 4\)"),
        ("dt_bias", torch.zeros(1), r"dt_bias must be"),
        ("h0", torch.zeros(B, N, D), r"h0 must be \(2, 4, 3\), not \(2, 3, 4\)"),
        ("reset", torch.zeros(B, L), r"reset must be bool"),
        ("reset", torch.zeros(L, B, dtype=torch.bool), r"\(2, 6\)"),
        ("z", torch.zeros(B, L, D, device="meta"), "z is on meta"),
    ],
)
def test_selective_scan_says_what_is_wrong(name, value, shown):
    with pytest.raises(InputError, match=shown):
        selective_scan(**{**scan_inputs(), name: value})


def test_selective_scan_returns():
    out = selective_scan(**scan_inputs())
    assert out.shape == (B, L, D)
    out, state = selective_scan(**scan_inputs(), return_state=True)
    assert state.shape == (B, D, N)
    assert state.dtype == torch.float32
    inputs = {name: t.bfloat16() for name, t in scan_inputs().items()}
    out, state = selective_scan(**inputs, return_state=True)
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_backends():
    inputs = scan_inputs()
    arguments_of = {
        selective_scan: inputs,
        causal_conv1d: {"x": inputs["u"], "weight": torch.zeros(D, 4)},
        rms_norm: {"x": inputs["u"], "weight": torch.ones(D)},
        linear_cross_entropy: {
            "x": inputs["u"],
            "weight": torch.zeros(5, D),
            "targets": torch.zeros(B, L, dtype=torch.long),
        },
    }
    for op, arguments in arguments_of.items():
        for backend in ("auto", "torch", "reference"):
            op(**arguments, backend=backend)
        with pytest.raises(InputError, match="triton"):
            op(**arguments, backend="triton")
        with pytest.raises(InputError, match="unknown backend 'cuda'"):
            op(**arguments, backend="cuda")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"x": torch.zeros(L, D)}, r"x must be \(B, L, D\)"),
        ({"weight": torch.zeros(D + 1, 4)}, r"weight must be \(D=4"),
        ({"weight": torch.zeros(D, 9)}, r"<= 8"),
        ({"bias": torch.zeros(1)}, "bias must be"),
        ({"tail": torch.zeros(B, 4, D)}, r"tail must be \(2, 3, 4\), not \(2, 4, 4\)"),
        ({"reset": torch.zeros(B, L)}, "reset must be bool"),
        ({"activation": "relu"}, "'relu'"),
    ],
)
def test_causal_conv1d_says_what_is_wrong(arguments, shown):
    with pytest.raises(InputError, match=shown):
        causal_conv1d(**{"x": torch.zeros(B, L, D), "weight": torch.zeros(D, 4), **arguments})


def test_rms_norm_says_what_is_wrong():
    x = torch.zeros(B, L, D)
    with pytest.raises(InputError, match=r"weight must be \(4,\), not \(5,\)"):
        rms_norm(x, torch.ones(5))
    with pytest.raises(InputError, match="residual must be"):
        rms_norm(x, torch.ones(D), residual=x[0])


def test_linear_cross_entropy_says_what_is_wrong():
    x, weight, targets = torch.zeros(B, L, D), torch.zeros(5, D), torch.zeros(B, L, dtype=torch.long)
    with pytest.raises(InputError, match=r"weight must be \(V, D=4\), not \(4, 5\)"):
        linear_cross_entropy(x, weight.t(), targets)
    with pytest.raises(InputError, match=r"targets must be \(2, 6\)"):
        linear_cross_entropy(x, weight, targets[0])
    with pytest.raises(InputError, match="integers"):
        linear_cross_entropy(x, weight, targets.float())
    targets[1, 2] = 5
    with pytest.raises(InputError, match=r"target 5 is outside \[0, 5\)"):
        linear_cross_entropy(x, weight, targets)


def test_everything_in_mixed_dtypes_gets_gradients_in_its_own():
    inputs = {name: t.bfloat16() if name in ("u", "B") else t for name, t in scan_inputs().items()}
    inputs = {name: t.requires_grad_() for name, t in inputs.items()}
    selective_scan(**inputs).float().sum().backward()
    assert all(t.grad.dtype == t.dtype for t in inputs.values())


class _OnGpu:
    """Stands for a tensor on a GPU where only its device is asked for."""

    device = torch.device("cuda", 0)


def test_a_fallback_is_said_once_for_the_device_and_once_for_each_call_that_cannot(monkeypatch):
    calls._say_once.cache_clear()
    monkeypatch.setattr(calls, "no_triton", lambda device: "there is no C compiler")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        chosen = [calls.choose(name, "auto", _OnGpu(), lambda: None) for name in ("selective_scan", "rms_norm") * 2]
    assert chosen == ["torch"] * 4
    assert [str(w.message) for w in said] == ["everything runs on the plain PyTorch path: there is no C compiler"]
    monkeypatch.setattr(calls, "no_triton", lambda device: None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            assert calls.choose("selective_scan", "auto", _OnGpu(), lambda: "float64 inputs") == "torch"
    assert [str(w.message) for w in said] == ["selective_scan runs on the plain PyTorch path: float64 inputs"]
    assert calls.choose("rms_norm", "auto", _OnGpu(), lambda: None) == "triton"


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_an_empty_batch_gives_an_empty_result(backend):
    u = torch.zeros(0, L, D)
    B_or_C = torch.zeros(0, L, N)
    out, state = selective_scan(u, u, -torch.ones(D, N), B_or_C, B_or_C, return_state=True, backend=backend)
    assert (out.shape, state.shape) == ((0, L, D), (0, D, N))
    assert causal_conv1d(u, torch.zeros(D, 4), backend=backend).shape == u.shape
    assert rms_norm(u, torch.ones(D), backend=backend).shape == u.shape


@pytest.mark.parametrize("name", ["D", "z", "dt_bias", "h0"])
def test_triton_refuses_any_fp64_input_of_a_scan(monkeypatch, name):
    pytest.importorskip("triton")
    monkeypatch.setattr(calls, "no_triton", lambda device: None)
    shape = {"D": (D,), "z": (B, L, D), "dt_bias": (D,), "h0": (B, D, N)}[name]
    with pytest.raises(InputError, match="float64"):
        selective_scan(**scan_inputs(), **{name: torch.zeros(shape, dtype=torch.float64)}, backend="triton")


def test_the_kernels_are_not_for_amd(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "NVIDIA" in calls.no_triton.__wrapped__(torch.device("cuda", 0))


def test_plain_torch_asks_for_the_path_without_kernels(monkeypatch):
    monkeypatch.setattr(calls, "no_triton", lambda device: None)
    with plain_torch():
        assert calls.choose("selective_scan", "auto", _OnGpu(), lambda: None) == "torch"
        assert calls.choose("selective_scan", "triton", _OnGpu(), lambda: None) == "triton"
        assert calls.choose("mamba_mixer", "auto", _OnGpu(), lambda: None, announce=False) == "torch"
    assert calls.choose("selective_scan", "auto", _OnGpu(), lambda: None) == "triton"


@pytest.mark.parametrize("op", ["selective_scan", "causal_conv1d", "rms_norm", "linear_cross_entropy"])
def test_a_second_derivative_is_refused_with_what_to_do(op):
    x = torch.randn(B, L, D, requires_grad=True)
    out = {
        "selective_scan": lambda: selective_scan(**{**scan_inputs(), "u": x}),
        "causal_conv1d": lambda: causal_conv1d(x, torch.randn(D, 4)),
        "rms_norm": lambda: rms_norm(x, torch.ones(D)),
        "linear_cross_entropy": lambda: linear_cross_entropy(x, torch.randn(5, D), torch.zeros(B, L, dtype=torch.long))[
            0
        ],
    }[op]()
    (g,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f'{op}: this backend has no second derivative; .* backend="reference"'):
        g.square().sum().backward()


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_gpus_that_run_the_kernels(monkeypatch, capability):
    """From the A100 on; an H100 on the plain path would be ten times slower and say so once, in a warning."""
    device = gpu(monkeypatch, capability)
    assert calls.no_triton.__wrapped__(device) is None
    monkeypatch.setattr(calls, "no_triton", calls.no_triton.__wrapped__)
    x = SimpleNamespace(device=device, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calls.choose("rms_norm", "auto", x, lambda: None) == "triton"
    weights = MambaLayer(8, SsmConfig(complex=False, selective=True)).weights()
    assert calls.choose("mamba_mixer", "auto", x, lambda: _not_fused(x, weights, None, False)) == "triton"
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert calls.live_backend("cuda").startswith("triton")


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (6, 1)])
def test_gpus_that_do_not(monkeypatch, capability):
    device = gpu(monkeypatch, capability)
    assert "older than compute capability 8.0" in calls.no_triton.__wrapped__(device)


def gpu(monkeypatch, capability):
    """A device of that compute capability, as far as anyone asks."""
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    return torch.device("cuda", 0)
