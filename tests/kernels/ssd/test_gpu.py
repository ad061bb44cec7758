"""The Triton state space dual against the oracle, in Triton's interpreter (a process of its own) and on a GPU."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")

from mamba_bio_audio.kernels.ssd.cpu import ssd_torch  # noqa: E402
from mamba_bio_audio.kernels.ssd.inputs import SsdInputs  # noqa: E402
from mamba_bio_audio.kernels.ssd.launch import make_plan, ssd_triton, unsupported_reason  # noqa: E402

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

# Relative L2 against fp64 on the same inputs. In bf16 products are made of rounded numbers, as many as three in a row, each
# off by at most 2^-9, and the interpreter truncates.
ERROR = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 6e-3}
OPTIONAL = ("source", "diagonal", "D", "h0", "reset")


def make_inputs(batch, length, heads, channels, groups, states, *, extras=OPTIONAL, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    a = -torch.rand(batch, length, heads, generator=generator)
    inputs = {"x": normal(batch, length, heads, channels).to(dtype), "a": a}
    inputs |= {name: (normal(batch, length, groups, states) * states**-0.25).to(dtype) for name in "BC"}
    per_head = (batch, length, heads)
    # Sources as step sizes are: of one sign, or they would cancel.
    more = {"source": normal(*per_head).abs(), "diagonal": normal(*per_head).abs(), "D": normal(heads)}
    more |= {
        "h0": normal(batch, heads, channels, states),
        "reset": torch.rand(batch, length, generator=generator) < 0.1,
    }
    return {name: t.to(device) for name, t in (inputs | {name: more[name] for name in extras}).items()}


def results(function, inputs, as_double=False):
    leaves = {
        name: t if t.dtype == torch.bool else (t.double() if as_double else t).detach().clone().requires_grad_()
        for name, t in inputs.items()
    }
    y, state = function(SsdInputs(**leaves))
    generator = torch.Generator().manual_seed(1)
    g_y, g_state = (torch.randn(t.shape, generator=generator).to(t.device) for t in (y, state))
    wanted = [t for t in leaves.values() if t.requires_grad]
    loss = (y * g_y.to(inputs["x"].dtype)).double().sum() + (state * g_state).double().sum()
    names = [name for name, t in leaves.items() if t.requires_grad]
    return {"y": y, "state": state, **dict(zip(names, torch.autograd.grad(loss, wanted), strict=True))}


def check(inputs):
    found, exact = results(ssd_triton, inputs), results(ssd_torch, inputs, as_double=True)
    # The gradient of a decay that nothing passes through is a rounding of 0.
    least = {name: 1e-2 * t.numel() ** 0.5 for name, t in exact.items()}
    off = {
        name: ((found[name].double() - t).norm() / t.norm().clamp(min=least[name])).item() for name, t in exact.items()
    }
    bound = ERROR[inputs["x"].dtype]
    assert all(error <= bound for error in off.values()), off
    with torch.no_grad():
        y, state = ssd_triton(SsdInputs(**inputs))
    assert torch.equal(y, found["y"])
    assert torch.equal(state, found["state"])
    return found


@pytest.mark.slow  # interprets the kernels
def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.fixture(autouse=True)
def fresh_plans():
    """Plans are remembered, and depend on what tests change."""
    make_plan.cache_clear()
    yield
    make_plan.cache_clear()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
class TestInterpreted:
    @pytest.mark.parametrize("length", [1, 32, 70])
    def test_lengths(self, length):
        check(make_inputs(1, length, 2, 5, 1, 3))

    @pytest.mark.parametrize("extras", [(), ("source",), ("diagonal", "h0"), ("reset",)])
    def test_optional_inputs(self, extras):
        check(make_inputs(1, 40, 2, 5, 1, 3, extras=extras))

    @pytest.mark.parametrize(("channels", "states"), [(70, 20), (3, 17)])
    def test_tiles(self, channels, states):
        """Two blocks of channels, and states, that are no power of two."""
        check(make_inputs(1, 33, 2, channels, 2, states))

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_groups(self, groups):
        check(make_inputs(2, 40, 4, 3, groups, 5, extras=("source", "D", "h0")))

    @pytest.mark.parametrize("extras", [("source", "h0", "reset"), ("source",)])
    def test_segments(self, extras):
        """One long row is cut into segments of four chunks."""
        inputs = make_inputs(1, 300, 4, 5, 1, 3, extras=extras)
        plan = make_plan(1, 300, 4, 5, 1, 3, torch.float32, torch.device("cpu"))
        assert (plan.chunks, plan.long, plan.segments) == (10, 4, 3)
        check(inputs)

    def test_bf16(self):
        check(make_inputs(1, 150, 2, 16, 1, 16, dtype=torch.bfloat16))

    def test_rows_of_a_larger_tensor(self):
        """As the layer calls it: x, B and C are parts of the convolution's rows."""
        inputs = make_inputs(2, 40, 2, 3, 1, 5)
        wide = torch.cat([inputs["x"].flatten(2), inputs["B"].flatten(2), inputs["C"].flatten(2)], dim=2)
        x, B, C = wide.split([6, 5, 5], dim=2)
        parts = {"x": x.unflatten(2, (2, 3)), "B": B.unflatten(2, (1, 5)), "C": C.unflatten(2, (1, 5))}
        assert torch.equal(ssd_triton(SsdInputs(**inputs | parts))[0], ssd_triton(SsdInputs(**inputs))[0])

    def test_what_lies_beyond_the_end_does_not_matter(self):
        """The last chunk's rows beyond the length hold NaN."""
        inputs = make_inputs(1, 80, 2, 3, 1, 5)
        cut = {}
        for name, t in inputs.items():
            if name in ("D", "h0"):
                cut[name] = t
            elif t.dtype == torch.bool:
                cut[name] = t[:, :37]
            else:
                t = t.clone()
                t[:, 37:] = torch.nan
                cut[name] = t[:, :37]
        check(cut)

    def test_second_derivative_names_the_way_out(self):
        inputs = make_inputs(1, 5, 2, 3, 1, 4, extras=())
        x = inputs["x"].requires_grad_()
        (grad,) = torch.autograd.grad(ssd_triton(SsdInputs(**inputs))[0].sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match='backend="reference"'):
            grad.sum().backward()


def test_what_it_refuses():
    def reason(**inputs):
        return unsupported_reason(SsdInputs(**inputs))

    inputs = make_inputs(1, 2, 2, 3, 1, 4)
    assert reason(**inputs) is None
    assert reason(**inputs | {"h0": inputs["h0"].double()}) == "float64 inputs"
    assert reason(**make_inputs(1, 2, 2, 3, 1, 129)) == "more than 128 states"


def test_plans():
    """Many rows are walked whole; one long row in segments, as many as keep the GPU busy."""
    device = torch.device("cpu")
    many = make_plan(128, 1024, 8, 64, 1, 64, torch.bfloat16, device)
    assert (many.chunks, many.segments) == (16, 1)
    one = make_plan(1, 131072, 8, 64, 1, 64, torch.bfloat16, device)
    assert one.chunks == 2048
    assert one.segments * one.long >= one.chunks > (one.segments - 1) * one.long
    assert 264 <= 8 * one.segments <= 1056
    # Backward takes all heads of a group together where there are many, and one at a time where there are few.
    assert (many.heads, one.heads) == (8, 8)
    assert make_plan(2, 200, 8, 64, 2, 64, torch.bfloat16, device).heads == 1
    assert make_plan(128, 1024, 8, 64, 2, 64, torch.bfloat16, device).heads == 4
    # Loads are ahead by as much as two programs have shared memory for.
    ahead = [
        make_plan(128, 1024, 8, *sizes, torch.bfloat16, device).stages[2]
        for sizes in ((64, 1, 64), (64, 1, 128), (256, 1, 128))
    ]
    assert ahead == [3, 2, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tiles_are_those_that_a_gpu_was_seen_to_compute_right(dtype):
    """Triton 3.6 makes wrong code for bf16 of tiles of 32 channels; test_machine_code.py compares the products."""
    tiles = set()
    for channels in (1, 5, 16, 24, 32, 64, 70, 128, 256):
        for states in (1, 3, 16, 24, 64, 65, 100, 128):
            plan = make_plan(2, 700, 4, channels, 1, states, dtype, torch.device("cpu"))
            assert states <= plan.BN
            tiles.add((plan.Q, plan.BP, plan.BN))
    chunk = 64 if dtype == torch.bfloat16 else 32
    assert tiles == {(chunk, 64, 64), (chunk, 64, 128)}


SHAPES = [
    (3, 300, 4, 64, 1, 64),
    (1, 9000, 8, 64, 1, 128),
    (2, 65, 4, 128, 4, 64),
    (2, 130, 4, 24, 2, 100),
    (2, 200, 4, 32, 1, 64),
    (2, 200, 4, 16, 1, 128),
    (2, 200, 4, 8, 2, 16),
    (2, 1, 2, 5, 1, 3),
]
# Each shape in each dtype and with all extras once, and these two in all pairs: kernels take long to compile.
ON_A_GPU = [
    (shape, extras, (torch.float32, torch.float16, torch.bfloat16)[(number + other) % 3])
    for number, shape in enumerate(SHAPES)
    for other, extras in enumerate([OPTIONAL, ("source", "D"), ()])
]


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("shape", "extras", "dtype"), ON_A_GPU)
def test_gpu(shape, extras, dtype):
    inputs = make_inputs(*shape, extras=extras, dtype=dtype, device="cuda")
    found, again = check(inputs), results(ssd_triton, inputs)
    assert all(torch.equal(found[name], again[name]) for name in found)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
def test_addresses_beyond_32_bits():
    """More than 2^31 elements of x: the last of two rows is as if it were alone."""
    length, heads, channels = 1 << 20, 17, 64
    inputs = make_inputs(1, 4096, heads, channels, 1, 16, extras=("source",), dtype=torch.bfloat16, device="cuda")
    whole = {name: torch.zeros(2, length, *t.shape[2:], dtype=t.dtype, device="cuda") for name, t in inputs.items()}
    for name, t in inputs.items():
        whole[name][1, -4096:] = t[0]
    with torch.no_grad():
        y, state = ssd_triton(SsdInputs(**whole))
        alone, last = ssd_triton(SsdInputs(**inputs))
    assert y.numel() > 1 << 31
    torch.testing.assert_close(y[1, -4096:].float(), alone[0].float(), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(state[1], last[0], rtol=1e-2, atol=1e-2)
