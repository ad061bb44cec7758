"""The fused Mamba-2 mixer against its operations in fp64, in Triton's interpreter (a process of its own) and on a GPU."""

import os

import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.mixer.inputs import Mamba2Settings
from mamba_bio_audio.layers.mamba2 import Mamba2Config, Mamba2Layer
from mamba_bio_audio.ops import mamba2_mixer

triton = pytest.importorskip("triton")

from mamba_bio_audio.kernels.mixer.dual import dual_triton, unsupported_reason  # noqa: E402

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
# Relative L2 against fp64 on the same inputs; as of the dual, and the roundings of projections, convolution and norm.
ERROR = {torch.float32: 3e-5, torch.bfloat16: 3e-2}
# Gradients of decays are sums of what positions receive less what they give, some ten times as large where decays are fast.
DECAYS = {"A_log", "dt_bias"}


def make(width, length, batch=2, *, state=True, reset=True, dtype=torch.float32, device="cpu", **config):
    torch.manual_seed(0)
    settings = Mamba2Config(**config)
    layer = Mamba2Layer(width, settings).to(device)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    inputs = {"x": torch.randn(batch, length, width).to(device, dtype)}
    if state:
        tail, ssm = (torch.randn(t.shape).to(device) for t in layer.init_state(batch))
        inputs |= {"tail": tail.to(dtype), "h0": ssm}
    flags = torch.rand(batch, length).to(device) < 0.1 if reset else None
    return layer, inputs, flags


def results(layer, inputs, flags, fused, dtype=torch.float32):
    config = layer.config
    weights = layer.weights()
    # Leaves of their own: what a module has is the view that `weights` makes.
    cast = {name: None if w is None else w.detach().to(dtype).requires_grad_() for name, w in weights._asdict().items()}
    leaves = {name: t.detach().to(dtype if not fused else t.dtype).requires_grad_() for name, t in inputs.items()}
    options = {"tail": leaves.get("tail"), "h0": leaves.get("h0"), "reset": flags}
    if fused:
        shape = Mamba2Settings(config.groups, 1e-5, config.dt_limit)
        out = dual_triton(leaves["x"], type(weights)(**cast), shape, dtype=inputs["x"].dtype, **options)
    else:
        made = type(weights)(**cast)
        limit = config.dt_limit
        out = mamba2_mixer(leaves["x"], made, groups=config.groups, dt_limit=limit, backend="torch", **options)
    wanted = leaves | {name: w for name, w in cast.items() if w is not None}
    generator = torch.Generator().manual_seed(1)
    weigh = [torch.randn(t.shape, generator=generator).bfloat16().to(t.device) for t in out]
    loss = sum((t.double() * g.double()).sum() for t, g in zip(out, weigh, strict=True))
    grads = torch.autograd.grad(loss, list(wanted.values()))
    return dict(zip(("y", "tail after", "state"), out, strict=True)) | dict(zip(wanted, grads, strict=True))


def check(layer, inputs, flags):
    found = results(layer, inputs, flags, True)
    exact = results(layer, inputs, flags, False, torch.float64)
    off = {name: ((found[name].double() - t).norm() / t.norm().clamp(min=1e-6)).item() for name, t in exact.items()}
    bound = ERROR[inputs["x"].dtype]
    wrong = {name: error for name, error in off.items() if error > max(bound, 1e-4 if name in DECAYS else 0)}
    assert not wrong
    return found


@pytest.mark.slow  # interprets the kernels
def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize(
        "config",
        [{}, {"head_dim": 3, "groups": 2, "proj_bias": True, "conv_bias": False}, {"dt_limit": (0.3, 0.9)}],
        ids=str,
    )
    def test_everything_beside_its_operations(self, config):
        """The projection is padded to a multiple of 8 columns."""
        check(*make(6, 70, d_state=5, **config))

    def test_without_state_and_resets(self):
        check(*make(6, 40, state=False, reset=False, d_state=5, head_dim=3))

    def test_spans_shorter_than_the_convolution(self):
        for length in (1, 2):
            check(*make(6, length, reset=False, d_state=5))

    def test_bf16(self):
        check(*make(16, 70, dtype=torch.bfloat16, d_state=16, head_dim=4))


def test_what_it_refuses():
    layer, _, _ = make(6, 2, d_state=5, d_conv=2)
    weights, shape = layer.weights(), Mamba2Settings(1, 1e-5, None)
    assert unsupported_reason(torch.bfloat16, weights, shape) is None
    assert unsupported_reason(torch.float64, weights, shape) == "torch.float64 activations"
    assert unsupported_reason(torch.float32, weights._replace(D=weights.D.double()), shape) == "float64 parameters"
    many, _, _ = make(6, 2, d_state=129)
    assert "128 states" in unsupported_reason(torch.float32, many.weights(), shape)


def test_wrong_inputs_are_named():
    layer, inputs, _ = make(6, 4, d_state=5)
    with pytest.raises(InputError, match=r"x must be \(B, L, M=6\)"):
        mamba2_mixer(inputs["x"][..., :5], layer.weights())
    with pytest.raises(InputError, match="tail must be"):
        mamba2_mixer(inputs["x"], layer.weights(), tail=inputs["tail"][:, 1:])
    with pytest.raises(InputError, match="h0 must be"):
        mamba2_mixer(inputs["x"], layer.weights(), h0=inputs["h0"][:1])


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [{}, {"head_dim": 32, "groups": 2, "d_state": 128, "proj_bias": True}, {"dt_limit": (0.3, 0.9), "d_state": 24}],
    ids=str,
)
def test_gpu(config, dtype):
    given = make(128, 700, dtype=dtype, device="cuda", **config)
    found, again = check(*given), results(*given, True)
    assert all(torch.equal(found[name], again[name]) for name in found)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
def test_addresses_beyond_32_bits():
    """More than 2^31 elements of the projection: the last of two rows is as if it were alone."""
    layer, inputs, _ = make(128, 1 << 12, 1, state=False, reset=False, dtype=torch.bfloat16, device="cuda", d_state=128)
    x = inputs["x"].new_zeros(2, 1 << 21, 128)
    x[1, -4096:] = inputs["x"][0]
    with torch.no_grad():
        shape = Mamba2Settings(1, 1e-5, None)
        weights = layer.weights()._replace(conv_bias=torch.zeros_like(layer.conv1d.bias))
        y, _, _ = dual_triton(x, weights, shape, dtype=torch.bfloat16)
        alone, _, _ = dual_triton(inputs["x"], weights, shape, dtype=torch.bfloat16)
    assert x.shape[0] * x.shape[1] * layer.in_proj.out_features > 1 << 31
    torch.testing.assert_close(y[1, -4096:].float(), alone[0].float(), rtol=3e-2, atol=3e-2)
