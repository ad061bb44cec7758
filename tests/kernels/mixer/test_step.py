"""One decoding step of the mixer against the layer made of single operations, in Triton's interpreter and on a GPU."""

import os
import re

import pytest
import torch

triton = pytest.importorskip("triton")

from mamba_bio_audio import ops  # noqa: E402
from mamba_bio_audio.kernels.mixer import step  # noqa: E402
from mamba_bio_audio.layers.config import SsmConfig  # noqa: E402
from mamba_bio_audio.layers.mamba import MambaLayer, MambaState  # noqa: E402

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
FP32_ERROR = 1e-5  # relative L2 against fp64, as of the mixer for many positions
BF16_ERROR = 2e-2


def make_layer(width=6, states=4, **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        layer = MambaLayer(width, SsmConfig(complex=False, selective=True, d_state=states, **config))
        # At the initial scale the state hardly matters.
        torch.nn.init.normal_(layer.x_proj.weight)
        return layer


def make_inputs(layer, rows, device="cpu"):
    generator = torch.Generator().manual_seed(rows)
    state = layer.init_state(rows)
    x = torch.randn(3, rows, 1, layer.d_model, generator=generator)
    return x.to(device), MambaState(*(torch.randn(t.shape, generator=generator).to(device) for t in state))


def run(layer, x, state, backend, dtype=torch.float32):
    """Three steps, from y to y; states behind them."""
    ys, (tail, h) = [], state
    with torch.no_grad(), torch.autocast(x.device.type, dtype, enabled=dtype == torch.bfloat16):
        for one in x:
            y, tail, h = ops.mamba_mixer(one, layer.weights(), tail=tail, h0=h, backend=backend)
            ys.append(y)
    return [torch.cat(ys, 1), tail, h]


def check(layer, rows, monkeypatch, dtype=torch.float32, device="cpu"):
    calls = []
    mixer_step = step.mixer_step
    monkeypatch.setattr(step, "mixer_step", lambda *given, **w: calls.append(1) or mixer_step(*given, **w))
    layer = layer.to(device)
    x, state = make_inputs(layer, rows, device)
    found = run(layer, x, state, "triton", dtype)
    assert len(calls) == 3
    wide = MambaLayer(layer.d_model, layer.config).to(device).double()
    wide.load_state_dict(layer.state_dict())
    exact = run(wide, x.double(), MambaState(*(t.double() for t in state)), "reference")
    limit = FP32_ERROR if dtype == torch.float32 else BF16_ERROR
    for some, right in zip(found, exact, strict=True):
        assert some.shape == right.shape
        assert (some.double() - right).norm() / right.norm() < limit
    assert (found[1].dtype, found[2].dtype) == (dtype, torch.float32)


@pytest.mark.slow  # interprets the kernels
def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize(
        ("config", "rows"),
        [
            ({}, 1),
            ({}, 5),
            ({"d_conv": 2, "conv_bias": False}, 2),
            ({"d_conv": 3, "proj_bias": True}, 2),
            ({"states": 1, "dt_rank": 3}, 2),
            ({"states": 20, "dt_rank": 20}, 2),
            ({"width": 66}, 3),  # 132 inner channels: two blocks
        ],
    )
    def test_equals_the_operations(self, config, rows, monkeypatch):
        check(make_layer(**config), rows, monkeypatch)

    def test_several_rows_of_a_program(self, monkeypatch):
        monkeypatch.setattr(step, "_PROGRAMS", 1)
        check(make_layer(width=66, states=3), 6, monkeypatch)

    def test_bf16(self, monkeypatch):
        check(make_layer(width=16), 3, monkeypatch, torch.bfloat16)

    def test_where_it_is_taken(self, monkeypatch):
        """Of one position with a state and without gradients, resets and `precise`."""
        layer = make_layer()
        x, (tail, h) = make_inputs(layer, 2)
        calls = []
        mixer_step = step.mixer_step
        monkeypatch.setattr(step, "mixer_step", lambda *given, **w: calls.append(1) or mixer_step(*given, **w))
        reset = torch.ones(2, 1, dtype=torch.bool)
        others = ({"tail": None}, {"h0": None}, {"reset": reset}, {"precise": True}, {"x": x[0].expand(2, 2, 6)})
        with torch.no_grad():
            for change in ({}, *others):
                given = {"x": x[0], "tail": tail, "h0": h, **change}
                ops.mamba_mixer(weights=layer.weights(), backend="triton", **given)
                assert len(calls) == 1
        ops.mamba_mixer(x[0], layer.weights(), tail=tail, h0=h, backend="triton")[0].sum().backward()
        assert len(calls) == 1


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "rows"), [(66, 3), (128, 1), (256, 2048), (768, 5)])
def test_on_a_gpu(width, rows, dtype, monkeypatch):
    check(make_layer(width=width, states=16), rows, monkeypatch, dtype, "cuda")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="compiles for a GPU")
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "inner", "rank"), [(1, 1536, 48), (2048, 512, 16), (2048, 1536, 48)])
def test_machine_code(rows, inner, rank, dtype, launches, compile_for, machine_code):
    """No spills, and neither shuffle nor barrier adds states up."""

    def empty(*shape, dtype=dtype):
        return torch.empty(*shape, dtype=dtype, device="meta")

    fp32 = torch.float32
    step.mixer_step(
        empty(rows, 1, inner // 2), empty(rows, 3, inner), empty(rows, 16, inner, dtype=fp32),
        in_proj=empty(2 * inner, inner // 2), in_bias=None, conv=empty(inner, 4, dtype=fp32),
        conv_bias=empty(inner, dtype=fp32), x_proj=empty(rank + 32, inner), dt_proj=empty(inner, rank),
        dt_bias=empty(inner, dtype=fp32), A=empty(1, 16, inner, dtype=fp32), D=empty(inner, dtype=fp32),
        out_proj=empty(inner // 2, inner), out_bias=None,
    )  # fmt: skip
    for launch in launches:
        code = machine_code(compile_for(launch, 90))
        assert code.stack == 0, launch.name
        assert code.registers <= 112, launch.name
    # The states of a channel lie in one lane.
    assert not re.search(r"\b(BAR|SHFL)\b", code.text)
