"""The fused mixer against the layer made of single operations, in Triton's interpreter and on a GPU."""

import copy
import os

import pytest
import torch

triton = pytest.importorskip("triton")

from mamba_bio_audio import ops  # noqa: E402
from mamba_bio_audio.kernels.kept import mixers_keep  # noqa: E402
from mamba_bio_audio.kernels.made_once import weights_stay  # noqa: E402
from mamba_bio_audio.kernels.mixer import recompute  # noqa: E402
from mamba_bio_audio.kernels.mixer.recompute import MixerWeights, mixer_triton, unsupported_reason  # noqa: E402
from mamba_bio_audio.kernels.scan.split_bc import split_bc  # noqa: E402
from mamba_bio_audio.layers.config import SsmConfig  # noqa: E402
from mamba_bio_audio.layers.mamba import MambaLayer, MambaState  # noqa: E402

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

FP32_ERROR = 1e-5  # relative L2, values and gradients, against fp64
# Error of bf16 over that of the composed layer in bf16 on the same inputs.
BF16_ERROR_RATIO = 1.5


def make_layer(width=6, states=4, **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        layer = MambaLayer(width, SsmConfig(complex=False, selective=True, d_state=states, **config))
        # At the initial scale the state hardly matters.
        torch.nn.init.normal_(layer.x_proj.weight)
        return layer


def make_inputs(layer, batch, length, device="cpu", reset=True, state=True):
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(device)

    tail, ssm = layer.init_state(batch)
    return {
        "x": normal(batch, length, layer.d_model),
        "tail": normal(*tail.shape) if state else None,
        "h0": normal(*ssm.shape) if state else None,
        "reset": (torch.rand(batch, length, generator=generator) < 0.2).to(device) if reset else None,
    }, (normal(batch, length, layer.d_model), normal(*tail.shape), normal(*ssm.shape))


def weights_of(layer):
    """The parameters of a published layer, which are the first ones of any."""
    return MixerWeights(*layer.weights()[: len(MixerWeights._fields)])


def fused(layer, x, tail, h0, reset, dtype, **options):
    weights = weights_of(layer)
    return mixer_triton(x, weights, tail=tail, h0=h0, reset=reset, dtype=dtype, **options)


def operation(layer, x, tail, h0, reset, dtype, **options):
    with torch.autocast(x.device.type, dtype, enabled=dtype == torch.bfloat16):
        return ops.mamba_mixer(x, layer.weights(), tail=tail, h0=h0, reset=reset, **options)


def composed(layer, x, tail, h0, reset, dtype, **options):
    """The layer; on a CPU it never takes the fused path."""
    with torch.autocast(x.device.type, dtype, enabled=dtype == torch.bfloat16):
        y, state = layer(x, None if tail is None else MambaState(tail, h0), reset=reset)
    return y, *state


def results(run, layer, inputs, weights, dtype=torch.float32, **options):
    """y, tail, state and the gradients of every input and parameter."""
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items() if v is not None and k != "reset"}
    given = {k: leaves.get(k, v) for k, v in inputs.items()}
    outs = run(layer, **given, dtype=dtype, **options)
    loss = sum((out.double() * g.double()).sum() for out, g in zip(outs, weights, strict=True))
    parameters = dict(layer.named_parameters())
    grads = torch.autograd.grad(loss, [*leaves.values(), *parameters.values()])
    names = ["y", "tail", "h", *(f"d {name}" for name in [*leaves, *parameters])]
    return dict(zip(names, [*(out.detach() for out in outs), *grads], strict=True))


def error(found, exact):
    return {k: ((found[k].double() - exact[k]).norm() / exact[k].norm().clamp(min=1e-30)).item() for k in exact}


def check(layer, batch, length, *, state=True, reset=True, **options):
    inputs, weights = make_inputs(layer, batch, length, state=state, reset=reset)
    found = results(fused, layer, inputs, weights, **options)
    exact = results(
        composed,
        copy.deepcopy(layer).double(),
        {k: v.double() if v is not None and v.is_floating_point() else v for k, v in inputs.items()},
        weights,
    )
    off = error(found, exact)
    assert max(off.values()) < FP32_ERROR, off
    return found


@pytest.mark.slow  # interprets the kernels
def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize("length", [1, 2, 3, 37])
    def test_lengths(self, length):
        check(make_layer(), 2, length)

    def test_from_the_start(self):
        check(make_layer(), 1, 9, state=False, reset=False)

    def test_pieces(self):
        """Worked off in pieces, forward and backward, it is the same function."""
        check(make_layer(), 2, 35, piece=32, segment=16)
        check(make_layer(), 1, 9, piece=1, segment=4, state=False)

    def test_biases(self):
        check(make_layer(proj_bias=True, d_conv=3), 1, 7)
        check(make_layer(conv_bias=False, dt_rank=3), 1, 7)

    def test_several_blocks_of_channels(self):
        """132 inner channels: two blocks of each kernel, forward in two pieces of two segments."""
        check(make_layer(66, 2, expand=2), 2, 15, piece=16, segment=4)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("rank", range(1, 10))
    def test_rows_of_16_bytes(self, rank, dtype):
        """Zeros between delta and B, in x_proj and dt_proj: no matrix product reads rows that 16 bytes do not divide."""
        layer = make_layer(width=8, states=3, dt_rank=rank)
        given = weights_of(layer)
        cast = recompute._cast(given, dtype)
        rows, padded = cast.x_proj.shape[0], cast.dt_proj.shape[1]
        assert rows * dtype.itemsize % 16 == 0
        assert rows - padded == 2 * 3
        assert not cast.x_proj[rank:padded].any()
        assert not cast.dt_proj[:, rank:].any()
        pairs = [
            (cast.x_proj[:rank], given.x_proj[:rank]),
            (cast.x_proj[padded:], given.x_proj[rank:]),
            (cast.dt_proj[:, :rank], given.dt_proj),
            (cast.in_proj, given.in_proj),
            (cast.out_proj, given.out_proj),
        ]
        for found, exact in pairs:
            # The interpreter cuts where a GPU rounds.
            torch.testing.assert_close(found, exact.to(dtype), rtol=0 if dtype == torch.float32 else 2**-7, atol=0)
        assert torch.equal(cast.A[0].t(), -torch.exp(given.A_log.detach()))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_inputs_that_are_kept(self, dtype):
        """Bit for bit as without, also when backward runs twice, in pieces."""
        layer = make_layer()
        inputs, weights = make_inputs(layer, 1, 35)
        options = {"dtype": dtype, "piece": 32}
        with mixers_keep(16, False):
            expected = results(fused, layer, inputs, weights, **options)
        with mixers_keep(16, True):
            found = results(fused, layer, inputs, weights, **options)
            x = inputs["x"].clone().requires_grad_()
            y = fused(layer, **{**inputs, "x": x}, **options)[0].sum()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        first, second = (torch.autograd.grad(y, [x, layer.in_proj.weight], retain_graph=True) for _ in range(2))
        assert all(map(torch.equal, first, second))

    def test_weights_that_stay_are_cast_once(self, monkeypatch):
        layers, cast, calls = [make_layer(), make_layer(width=8)], recompute._cast, []
        monkeypatch.setattr(recompute, "_cast", lambda *given: calls.append(1) or cast(*given))
        given = [make_inputs(layer, 2, 1, reset=False)[0] for layer in layers]
        with torch.no_grad():
            expected = [fused(layer, **x, dtype=torch.float32) for layer, x in zip(layers, given, strict=True)]
            calls.clear()
            with weights_stay():
                for _ in range(3):
                    found = [fused(layer, **x, dtype=torch.float32) for layer, x in zip(layers, given, strict=True)]
                    for some, own in zip(found, expected, strict=True):
                        assert all(map(torch.equal, some, own))
                assert len(calls) == 2
                fused(layers[0], **given[0], dtype=torch.bfloat16)
                assert len(calls) == 3

    @pytest.mark.parametrize("states", [1, 5, 16])
    def test_b_and_c_of_a_projection(self, states):
        """More rows than one program has, from a projection that is wider than they are."""
        projected = torch.randn(2, 1100, 7 + 2 * states, generator=torch.Generator().manual_seed(0)).bfloat16()
        found = split_bc(projected, states)
        for part, expected in zip(found, projected[..., 7:].float().split(states, dim=-1), strict=True):
            assert torch.equal(part, expected)

    def test_precise(self):
        check(make_layer(), 1, 7, precise=True)

    def test_through_the_operation(self):
        layer = make_layer()
        inputs, weights = make_inputs(layer, 2, 5)
        found = results(operation, layer, inputs, weights, backend="triton")
        expected = results(fused, layer, inputs, weights)
        assert all(torch.equal(found[k], expected[k]) for k in expected)

    def test_nothing_is_kept_without_gradients(self, states_written):
        written = states_written(recompute)
        layer = make_layer()
        inputs, _ = make_inputs(layer, 1, 5)
        with torch.no_grad():
            fused(layer, **inputs, dtype=torch.float32)
        fused(layer, **inputs, dtype=torch.float32)
        assert written == [False, True]

    def test_second_derivative_names_the_way_out(self):
        layer = make_layer()
        inputs, _ = make_inputs(layer, 1, 3)
        x = inputs.pop("x").requires_grad_()
        y, _, _ = fused(layer, x, **inputs, dtype=torch.float32)
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="reference"):
            g.sum().backward()


def test_what_it_refuses():
    layer = make_layer()
    weights = weights_of(layer)
    assert unsupported_reason(torch.float32, weights) is None
    assert "float64" in unsupported_reason(torch.float64, weights)
    many = weights_of(make_layer(states=256))
    assert unsupported_reason(torch.float32, many) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gradients_of_weights_are_products_in_fp32(monkeypatch, on_gpu, dtype):
    """Of narrow operands too: a sum over positions that is rounded to bf16 would be off by 2^-9."""

    def product(a, b, out_dtype=None):
        return (a.as_subclass(torch.Tensor).float() @ b.as_subclass(torch.Tensor).float()).to(out_dtype or a.dtype)

    monkeypatch.setattr(torch, "mm", product)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 300, n, generator=generator).to(dtype) for n in (5, 7))
    found = recompute._product(a.as_subclass(on_gpu), b.as_subclass(on_gpu))
    exact = torch.einsum("blp,blq->pq", a.double(), b.double())
    assert found.dtype == torch.float32
    assert (found.as_subclass(torch.Tensor).double() - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("segment", [1, 2, 12])
def test_segments_that_kernels_cannot_unroll(segment):
    layer = make_layer()
    inputs, _ = make_inputs(layer, 1, 5)
    with pytest.raises(ValueError, match="power of two from 4 on"):
        fused(layer, **inputs, dtype=torch.float32, segment=segment)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
class TestGpu:
    @pytest.mark.parametrize(("batch", "length", "width"), [(3, 1000, 64), (1, 5000, 256), (2, 3, 32)])
    def test_fp32(self, batch, length, width):
        layer = make_layer(width, 16)
        torch.nn.init.normal_(layer.x_proj.weight, std=0.1)
        inputs, weights = make_inputs(layer, batch, length)
        exact = results(composed, layer.double(), {k: _double(v) for k, v in inputs.items()}, weights)
        on_gpu = {k: None if v is None else v.cuda() for k, v in inputs.items()}
        layer = layer.float().cuda()
        for piece in (1 << 18, 1024):
            found = results(fused, layer, on_gpu, [w.cuda() for w in weights], piece=piece)
            off = error({k: v.cpu() for k, v in found.items()}, exact)
            assert max(off.values()) < 10 * FP32_ERROR, off
            again = results(fused, layer, on_gpu, [w.cuda() for w in weights], piece=piece)
            assert all(torch.equal(found[k], again[k]) for k in found)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_layer_takes_it(self, dtype):
        """Layer, operation and the function itself: the same bits."""
        layer = make_layer(64, 16).cuda()
        inputs, weights = make_inputs(layer, 2, 300, device="cuda")
        weights = [w.cuda() for w in weights]
        expected = results(fused, layer, inputs, weights, dtype=dtype)
        for run in (operation, composed):
            found = results(run, layer, inputs, weights, dtype=dtype)
            assert all(torch.equal(found[k], expected[k]) for k in expected)

    def test_bf16(self):
        layer = make_layer(128, 16)
        torch.nn.init.normal_(layer.x_proj.weight, std=0.1)
        inputs, weights = make_inputs(layer, 2, 2000)
        exact = results(composed, copy.deepcopy(layer).double(), {k: _double(v) for k, v in inputs.items()}, weights)
        rounded = error(results(composed, layer, inputs, weights, dtype=torch.bfloat16), exact)
        on_gpu = {k: None if v is None else v.cuda() for k, v in inputs.items()}
        found = results(fused, layer.cuda(), on_gpu, [w.cuda() for w in weights], dtype=torch.bfloat16)
        off = error({k: v.cpu() for k, v in found.items()}, exact)
        assert all(off[k] <= BF16_ERROR_RATIO * rounded[k] + FP32_ERROR for k in off), (off, rounded)


def _double(v):
    return v.double() if v is not None and v.is_floating_point() else v


def test_partial_sums_are_as_wide_as_what_they_end_in(launches, monkeypatch):
    """Those of B and C travel in bf16 where their sum is rounded to bf16, which halves the traffic, and only there."""
    asked = []

    def record(*given, narrow, **options):
        asked.append(narrow)
        raise LookupError

    monkeypatch.setattr(recompute, "scan_backward", record)
    layer = make_layer()
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.ones(1, 5, layer.d_model, dtype=dtype, requires_grad=True)
        y, _, _ = fused(layer, x, None, None, None, dtype)
        with pytest.raises(LookupError):
            y.sum().backward()
    assert asked == [(True, True), (False, False)]


def test_every_launch_has_the_same_case(launches):
    """Making one and comparing it with the one of the launch before took 7 us of the host a layer."""
    layer = make_layer()
    x = torch.ones(1, 5, layer.d_model, requires_grad=True)
    for _ in range(2):
        y, _, _ = fused(layer, x, None, None, None, torch.float32)
        y.sum().backward()
    cases = [launch.constants["CASE"] for launch in launches if "CASE" in launch.constants]
    assert len(cases) == 4  # forward and backward, twice
    assert all(case is cases[0] for case in cases)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rank", [3, 8, 16])
def test_casts_on_a_gpu_are_pytorchs(rank):
    layer = make_layer(width=64, states=16, dt_rank=rank).cuda()
    given = weights_of(layer)
    cast = recompute._cast(given, torch.bfloat16)
    padded = cast.dt_proj.shape[1]
    for found, exact in (
        (cast.in_proj, given.in_proj),
        (cast.out_proj, given.out_proj),
        (cast.x_proj[:rank], given.x_proj[:rank]),
        (cast.x_proj[padded:], given.x_proj[rank:]),
        (cast.dt_proj[:, :rank], given.dt_proj),
    ):
        assert torch.equal(found, exact.bfloat16())
    assert not cast.x_proj[rank:padded].any()
    assert not cast.dt_proj[:, rank:].any()


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_is_kept_changes_no_bit_on_a_gpu():
    layer = make_layer(width=64, states=16).cuda()
    inputs, weights = make_inputs(layer, 2, 300, device="cuda")
    weights = [w.cuda() for w in weights]
    options = {"dtype": torch.bfloat16, "piece": 128}
    with mixers_keep(16, False):
        expected = results(fused, layer, inputs, weights, **options)
    with mixers_keep(16, True):
        found = results(fused, layer, inputs, weights, **options)
    assert all(torch.equal(found[name], expected[name]) for name in found)
