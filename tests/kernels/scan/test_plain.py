"""The Triton scan, real and selective, against the fp64 oracle, in Triton's interpreter and on a GPU.

The interpreter must be switched on before Triton is imported, so this file runs itself once more in a process with
TRITON_INTERPRET=1; there the tests of class TestInterpreted run, here the rest.
"""

import functools
import os
import sys

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from mamba_bio_audio.kernels.scan import autograd, chunks, launch  # noqa: E402
from mamba_bio_audio.kernels.scan.autograd import scan_triton  # noqa: E402
from mamba_bio_audio.kernels.scan.inputs import ScanInputs, make_plan  # noqa: E402
from mamba_bio_audio.kernels.scan.launch import (  # noqa: E402
    MAX_ROW_STRIDE,
    blocks_at_once,
    chunk_starts,
    prepared,
    rows_of,
)
from mamba_bio_audio.kernels.scan.parts import softplus  # noqa: E402
from mamba_bio_audio.kernels.scan.parts_sum import parts_sum, rows_sum  # noqa: E402
from mamba_bio_audio.kernels.scan.reference import scan_reference  # noqa: E402
from mamba_bio_audio.kernels.scan.split_bc import map_planes, turned  # noqa: E402
from mamba_bio_audio.ops import selective_scan  # noqa: E402

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

# Relative L2 error of fp32 results. Ours measured 6e-7 here and 3e-6 on an H100, whose ex2 and lg2 are approximate.
FP32_ERROR = 1e-5
# With bf16 activations the tensor cores multiply 11 bits of what goes into ddt. Its sum over positions is not nearer than
# two such roundings (measured on an H100: 5.4e-4); rounded to bf16 it would be off by 2e-3.
BF16_SUM_ERROR = {"ddt_bias": 2.0**-10}
# Error of bf16 results over that of the oracle in fp32 on the same inputs; the interpreter truncates to bf16.
BF16_ERROR_RATIO = 1.5
BF16_ERROR_RATIO_TRUNCATED = 3.0

OPTIONAL = ("D", "z", "dt_bias", "h0", "reset")


def make_inputs(batch, length, channels, states, dtype=torch.float32, leave_out=(), device="cpu", memory=3.0):
    """Inputs of selective_scan; `memory` is about how many steps a state lasts."""
    generator = torch.Generator().manual_seed(length * channels + states)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    inputs = {
        "u": normal(batch, length, channels).to(dtype),
        "dt": normal(batch, length, channels).to(dtype),
        "A": -torch.rand(channels, states, generator=generator) - 1.0 / memory,
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(channels),
        "z": normal(batch, length, channels).to(dtype),
        "dt_bias": normal(channels) * 0.3 - 1.0,
        "h0": normal(batch, channels, states),
        "reset": torch.rand(batch, length, generator=generator) < 0.1,
    }
    return {k: v.to(device) for k, v in inputs.items() if k not in leave_out}


def triton_scan(plan=None, **x):
    return scan_triton(ScanInputs(**x), plan)


def oracle(**x):
    return scan_reference(ScanInputs(**x))


def results(function, inputs, *, as_double=False, h_weight=True, **options):
    """Output, last state and all gradients, by name."""
    reset = inputs.get("reset")
    leaves = {k: v.double() if as_double else v for k, v in inputs.items() if k != "reset"}
    leaves = {k: v.clone().requires_grad_() for k, v in leaves.items()}
    out, h = function(**leaves, reset=reset, **options)
    generator = torch.Generator().manual_seed(1)
    g_out = torch.randn(out.shape, generator=generator).to(out.device).to(inputs["u"].dtype)
    g_h = torch.randn(h.shape, generator=generator).to(out.device)
    loss = (out.double() * g_out.double()).sum()
    if h_weight:
        loss = loss + (h.double() * g_h.double()).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {"out": out.detach(), "h": h.detach(), **{f"d{k}": g for k, g in zip(leaves, grads, strict=True)}}


def errors(found, expected):
    return {
        k: ((found[k].double() - e).norm() / e.norm().clamp_min(1e-30)).item() for k, e in expected.items() if e.numel()
    }


def check(inputs, *, plan=None, ratio=BF16_ERROR_RATIO_TRUNCATED, **options):
    """Compares with the oracle: fp32 to FP32_ERROR, bf16 to `ratio` times what rounding alone costs."""
    found = results(triton_scan, inputs, plan=plan, **options)
    exact = results(oracle, inputs, as_double=True, **options)
    off = errors(found, exact)
    if inputs["u"].dtype == torch.float32:
        assert max(off.values()) < FP32_ERROR, off
    else:
        rounded = errors(results(oracle, inputs, **options), exact)
        limit = {k: ratio * rounded[k] + BF16_SUM_ERROR.get(k, FP32_ERROR) for k in off}
        above = {k: (off[k], limit[k]) for k in off if not off[k] <= limit[k]}
        assert not above, above
    return found


def plan_for(inputs, **changes):
    batch, length, channels = inputs["u"].shape
    return make_plan(batch, length, channels, inputs["A"].shape[1], inputs["u"].device, **changes)


@triton.jit
def softplus_kernel(x_p, out_p, count, ACCURATE: tl.constexpr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    x = tl.load(x_p + i, mask=i < count, other=0.0)
    tl.store(out_p + i, softplus(x, ACCURATE), mask=i < count)


@pytest.fixture
def kernels(monkeypatch):
    """Names of the kernels that scans launch, in order."""
    names, run = [], launch.launch

    def noted(kernel, *given, **constants):
        names.append(kernel.__name__)
        run(kernel, *given, **constants)

    monkeypatch.setattr(launch, "launch", noted)
    return names


@pytest.mark.slow  # interprets the kernels
def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
class TestInterpreted:
    @pytest.mark.parametrize("length", [1, 2, 3, 7, 33])
    def test_lengths(self, length):
        check(make_inputs(1, length, 5, 4))

    @pytest.mark.parametrize(("channels", "states"), [(1, 1), (5, 16), (33, 5), (16, 64), (3, 130)])
    def test_channels_and_states(self, channels, states):
        check(make_inputs(1, 19, channels, states))

    @pytest.mark.parametrize(("batch", "channels", "chunks"), [(2, 130, 1), (1, 260, 2)])
    def test_several_blocks_of_channels(self, batch, channels, chunks):
        """Blocks of 64 or 128 channels in forward, of 128 in chunk states and carries, and three segments."""
        inputs = make_inputs(batch, 18, channels, 2)
        plan = plan_for(inputs, chunks=chunks, segment=8)
        assert (plan.fwd_block, plan.state_block) == (64 if chunks == 1 else 128, 128)
        check(inputs, plan=plan)

    @pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
    def test_softplus_from_end_to_end(self):
        """As accurate as `softplus` says, also from 6 to 20, where x alone is off by up to 2.5e-3."""
        x = torch.cat([torch.linspace(-30, 30, 1201), torch.tensor([-80.0, 100.0, 1e4])])
        exact = torch.nn.functional.softplus(x.double(), threshold=1e9)
        for accurate, error in ((True, 3e-6), (False, 5e-5)):
            found = torch.empty_like(x)
            softplus_kernel[(1,)](x, found, len(x), ACCURATE=accurate, SIZE=2048)
            assert ((found.double() - exact).abs() <= error * exact).all()

    @pytest.mark.parametrize("shape", [(3, 1), (1, 3), (3, 5), (0, 3), (3, 0)])
    def test_b_and_c_whatever_their_layout(self, shape):
        """Time first, too: the stride of one position says nothing, and torch calls such a tensor contiguous."""
        A = -torch.arange(1.0, 13.0).view(3, 4)
        plain = torch.randn(*shape, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
        time_first = plain.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)
        by_column = plain.transpose(1, 2).contiguous().transpose(1, 2)
        for B, C in ((plain, time_first), (time_first, by_column), (plain[:, :1].expand_as(plain), plain.flip(2))):
            found = map_planes(A, B, C)
            for part, expected in zip(found, (A.t()[None], B.float()[:, :, None], C.float()[:, :, None]), strict=True):
                assert torch.equal(part, expected)

    def test_complex_maps_part_by_part(self):
        """Of an odd number of states, out of a wider tensor, and with the parts first in memory."""
        A = torch.randn(5, 3, 2)
        wide = torch.randn(2, 7, 4, 2).bfloat16()
        B, C = wide[:, :, 1:], torch.randn(2, 2, 7, 3).bfloat16().movedim(1, -1)
        for part, expected in zip(map_planes(A, B, C), (A, B, C), strict=True):
            planes = expected.float().transpose(-1, -2) if expected.ndim == 4 else expected.permute(2, 1, 0)
            assert torch.equal(part, planes)

    def test_sums_and_turns_of_small_tensors(self):
        for rows, width in ((1, 5), (64, 32), (131, 70)):
            x = torch.randn(rows, width)
            torch.testing.assert_close(rows_sum(x), x.sum(0))
        x = torch.randn(2, 6, 1, 3, 130)
        for t in (x, x[:, ::2], x[:, :1], x[0]):
            assert torch.equal(turned(t), t.transpose(-1, -2).contiguous())

    def test_two_rows(self):
        check(make_inputs(2, 18, 20, 16))

    @pytest.mark.parametrize("leave_out", [OPTIONAL, ("D", "h0"), ("z", "reset"), ("dt_bias",), ("reset",)])
    def test_optional_inputs(self, leave_out):
        check(make_inputs(1, 21, 5, 4, leave_out=leave_out))

    def test_without_softplus(self):
        inputs = make_inputs(1, 21, 5, 4, leave_out=("dt_bias",))
        check({**inputs, "dt": inputs["dt"].abs()}, dt_softplus=False)

    @pytest.mark.parametrize(
        "changes",
        [{"chunks": 3}, {"chunks": 2, "bwd_chunks": 4}, {"segment": 32}, {"chunks": 3, "ends": True, "bwd_ends": True}],
    )
    def test_split_over_chunks(self, changes):
        inputs = make_inputs(1, 67, 5, 4)
        check(inputs, plan=plan_for(inputs, **changes))

    @pytest.mark.parametrize("changes", [{"bwd_unroll": 2}, {"bwd_unroll": 1}, {"fwd_block": 64, "fwd_warps": 2}])
    def test_plans(self, changes):
        inputs = make_inputs(1, 21, 18, 8)
        check(inputs, plan=plan_for(inputs, **changes))

    @pytest.mark.parametrize(("dt_bias", "states", "reset"), [(-6.0, 16, False), (-1.0, 16, True), (2.0, 5, False)])
    @pytest.mark.parametrize("reverse", [False, True])
    def test_chunks_end_where_nothing_counts(self, monkeypatch, dt_bias, states, reset, reverse):
        """From decays that keep everything to those that keep few steps, of which the others are not read."""
        inputs = make_inputs(1, 64, 34, states, leave_out=("h0",) if reset else ("h0", "reset"))
        inputs["dt_bias"] += dt_bias
        inputs["A"] = -torch.arange(1.0, states + 1).expand(34, states).contiguous()
        plan = plan_for(inputs, chunks=2, segment=8, ends=True, bwd_ends=True)
        rows, load_row = [], chunks.load_row

        def counted(p, mask, even):
            rows.append(p.handle.data.shape == (32,))
            return load_row(p, mask, even)

        monkeypatch.setattr(chunks, "load_row", counted)
        g = inputs["u"].flip(2)
        call = prepared(ScanInputs(**inputs), plan)
        found = chunk_starts(call, g if reverse else inputs["u"], None, 2, 32, reverse=reverse)
        part = slice(32, 64) if reverse else slice(0, 32)
        h0 = torch.zeros(1, 34, states, dtype=torch.float64, requires_grad=True)
        exact = {k: v[:, part] if v.ndim == 3 or k == "reset" else v for k, v in inputs.items()}
        exact = {k: v if k == "reset" else v.double() for k, v in exact.items()}
        out, last = oracle(**exact, h0=h0)
        expected = last.detach()
        if reverse:
            (expected,) = torch.autograd.grad((out * g[:, part]).sum(), h0)
        found = found[:, 0 if reverse else 1, 0].transpose(1, 2).double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        loads = sum(rows) / (3 if reverse else 2) / 2  # of x, dt and z in two blocks of channels
        if not reset:
            assert loads >= 32 if dt_bias < 0 else loads <= 24

    @pytest.mark.parametrize("chunks", [1, 2])
    def test_states_made_finer(self, chunks):
        """Backward from states of every 8 steps that it makes again from those of every 16."""
        inputs = make_inputs(1, 37, 8, 4)
        plan = plan_for(inputs, chunks=chunks, segment=16, bwd_segment=8)
        assert (plan.segment, plan.bwd_segment) == (16, 8)
        check(inputs, plan=plan)

    @pytest.mark.parametrize(("batch", "length", "channels", "leave_out"), [(2, 19, 16, ()), (1, 13, 32, OPTIONAL)])
    def test_a_channel_in_two_lanes(self, kernels, batch, length, channels, leave_out):
        """Steps after the last block, in a segment that has begun and in a new one."""
        inputs = make_inputs(batch, length, channels, 16, leave_out=leave_out)
        check(inputs, plan=plan_for(inputs, lanes=8))
        assert "scan_lanes_kernel" in kernels

    def test_no_lanes_where_they_cannot(self, kernels, monkeypatch):
        """Of channels, states and steps in part, in chunks, and of maps that lie oddly."""
        monkeypatch.setattr(launch, "launch", lambda kernel, *given, **constants: kernels.append(kernel.__name__))
        odd = torch.zeros(1 + 8 * 16)[1:].view(1, 8, 16)
        for shape, changes in [
            ((8, 16, 16), {}), ((8, 24, 16), {}), ((8, 16, 8), {}), ((7, 16, 16), {}), ((32, 16, 16), {"chunks": 2}),
            ((8, 16, 16), {"segment": 4}), ((8, 16, 16), {"C": odd}),
        ]:  # fmt: skip
            inputs = make_inputs(1, *shape, leave_out=OPTIONAL)
            inputs |= {k: changes.pop(k) for k in "C" if k in changes}
            call = prepared(ScanInputs(**inputs), plan_for(inputs, lanes=8, lanes_inference=8, **changes))
            for keep in (True, False):
                launch.scan_forward(call, None, keep)
        assert kernels.count("scan_lanes_kernel") == 2
        assert kernels.count("scan_fwd_kernel") == 12

    @pytest.mark.parametrize(("batch", "length"), [(2, 43), (1, 33)])
    def test_chunks_in_pieces(self, batch, length):
        """The pass over chunks in finer ones than the scan's; the last chunk has pieces without a step."""
        inputs = make_inputs(batch, length, 8, 4)
        plan = plan_for(inputs, chunks=3, segment=8, bwd_pieces=2)
        assert plan.chunk_steps == 16
        check(inputs, plan=plan)

    @pytest.mark.parametrize("leave_out", [(), OPTIONAL])
    @pytest.mark.parametrize(("batch", "length", "channels", "states"), [(2, 21, 9, 2), (1, 5, 8, 3)])
    def test_in_one_launch(self, batch, length, channels, states, leave_out):
        """More steps than rows of a program and fewer, and a block of channels that not all are there of."""
        inputs = make_inputs(batch, length, channels, states, leave_out=leave_out)
        check(inputs, plan=plan_for(inputs, segment=4, short=8, short_warps=2))

    @pytest.mark.parametrize("changes", [{"short_unroll": 4}, {"short": 4}, {"short_warps": 4}])
    def test_in_one_launch_by_other_plans(self, changes):
        inputs = make_inputs(1, 21, 8, 4, dtype=torch.bfloat16)
        inputs |= {k: inputs[k].bfloat16() for k in "BC"}
        check(inputs, plan=plan_for(inputs, **({"segment": 4, "short": 8, "short_warps": 2} | changes)))

    @pytest.mark.parametrize(
        ("state", "changes"),
        [(False, {"short": 8, "short_warps": 2}), (True, {"chunks": 2}), (False, {"chunks": 3, "bwd_pieces": 2})],
    )
    def test_calls_are_prepared_once(self, monkeypatch, state, changes):
        """As `selective_scan` makes them, then on other tensors: nothing but launches, and the same gradients."""
        module = sys.modules["mamba_bio_audio.ops.selective_scan"]
        calls, forward, backward, gradients = [], autograd._forward, [], autograd._gradients
        monkeypatch.setattr(autograd, "make_plan", functools.partial(make_plan, segment=4, **changes))
        monkeypatch.setattr(autograd, "_forward", lambda *given: calls.append(given) or forward(*given))
        monkeypatch.setattr(autograd, "_gradients", lambda *given: backward.append(given) or gradients(*given))
        monkeypatch.setattr(module, "_prepared", {})

        def scan(**x):
            found = selective_scan(**x, backend="triton", return_state=state)
            return found if state else (found, torch.zeros(1, 8, 4))

        for seed in (1, 2):
            inputs = make_inputs(1, 21, 8, 4, leave_out=() if "short" in changes else ("h0",))
            generator = torch.Generator().manual_seed(seed)
            inputs = {
                k: v if k == "reset" else v + torch.rand(v.shape, generator=generator) / 8 for k, v in inputs.items()
            }
            inputs["A"] = -inputs["A"].abs()
            inputs |= {k: inputs[k].bfloat16() for k in "BC"}
            with torch.no_grad():
                kept, h = scan(**inputs)
            found = results(scan, inputs, h_weight=state)
            assert torch.equal(found["out"], kept)
            assert torch.equal(found["h"], h)
            exact = results(oracle, inputs, as_double=True, h_weight=state)
            off = errors(found, exact)
            assert max(error for name, error in off.items() if name not in ("h", "dB", "dC")) < FP32_ERROR, off
            assert max(off["dB"], off["dC"]) < 2.0**-7  # rounded to bf16
            if state:
                assert off["h"] < FP32_ERROR
        assert len(calls) == (0 if "short" in changes else 2)  # with and without gradients
        assert len(backward) == (2 if state else 1)  # a gradient of the last state goes the longer way

    def test_calls_that_cannot_be_prepared_go_the_longer_way(self, monkeypatch):
        """What needs a copy, here of fp32 maps in another order; and two arguments that are one tensor."""
        module = sys.modules["mamba_bio_audio.ops.selective_scan"]
        monkeypatch.setattr(module, "_prepared", {})
        inputs = make_inputs(1, 9, 8, 4, leave_out=("h0", "reset"))
        for same in (False, True):
            if same:
                inputs |= {"B": inputs["B"].bfloat16(), "C": inputs["C"].bfloat16(), "z": inputs["u"]}
            expected = triton_scan(**inputs)[0]
            for _ in range(2):
                assert torch.equal(selective_scan(**inputs, backend="triton"), expected)
        for run in module._prepared.values():
            assert not run.args[0].can(keep=False)

    def test_rows_of_blocks_are_added_in_order(self):
        """Into fewer rows of a wider tensor."""
        parts, wide = torch.randn(2, 5, 48, 32), torch.full((2, 41, 40), 7.0)
        parts_sum(parts, wide[..., 4:36])
        expected = torch.zeros(2, 41, 32)
        for k in range(5):
            expected += parts[:, k, :41]
        assert torch.equal(wide[..., 4:36], expected)
        assert (wide[..., :4] == 7).all()
        assert (wide[..., 36:] == 7).all()

    def test_many_states_go_by_groups_of_channels(self):
        """Five launches of a block of channels, or two of which the last has fewer blocks."""
        assert [blocks_at_once(18, blocks, n) for blocks, n in ((5, 64), (5, 8), (2, 16))] == [1, 4, 2]
        inputs = make_inputs(2, 11, 18, 64)
        check(inputs, plan=plan_for(inputs, chunks=2, segment=8))
        inputs = make_inputs(2, 19, 18, 8)
        check(inputs, plan=plan_for(inputs, bwd_block=4))

    @pytest.mark.parametrize("chunks", [1, 2])
    def test_precise(self, chunks):
        inputs = make_inputs(1, 35, 5, 4)
        check(inputs, plan=plan_for(inputs, chunks=chunks), precise=True)

    def test_bf16(self):
        check(make_inputs(1, 21, 16, 8, dtype=torch.bfloat16))

    def test_mixed_dtypes(self):
        inputs = make_inputs(1, 21, 16, 8, dtype=torch.bfloat16)
        check({**inputs, "dt": inputs["dt"].float(), "B": inputs["B"].bfloat16()})

    def test_rows_of_a_larger_tensor(self):
        inputs = make_inputs(1, 19, 8, 4)
        u, z = torch.cat([inputs["u"], inputs["z"]], dim=-1).chunk(2, dim=-1)
        found, _ = triton_scan(**{**inputs, "u": u, "z": z})
        assert torch.equal(found, triton_scan(**inputs)[0])

    def test_rows_more_than_2_to_31_elements_apart(self):
        """Of 2^32 elements, of which the system gives only the touched pages."""
        inputs = make_inputs(1, 160, 3, 2, leave_out=("h0", "z", "reset"))
        inputs["A"] *= 1e-3  # what enters at the far end must not decay away
        rows = torch.empty(160, MAX_ROW_STRIDE, dtype=torch.bfloat16)
        far, near = dict(inputs), dict(inputs)
        for i, name in enumerate(("u", "dt")):
            near[name] = inputs[name].bfloat16()
            far[name] = rows[None, :, 8 * i : 8 * i + 3].copy_(near[name])
        plan = plan_for(inputs, chunks=2, bwd_chunks=2)
        starts = []
        for x in (far, near):
            call = prepared(ScanInputs(**x), plan)
            starts.append(chunk_starts(call, x["u"], None, 2, plan.bwd_chunk_steps, reverse=True))
        assert torch.equal(*starts)

    def test_rows_too_far_apart_are_copied(self):
        rows = torch.empty(2, MAX_ROW_STRIDE + 1, dtype=torch.bfloat16)[None, :, :3]
        assert rows_of(rows)[0].is_contiguous()

    def test_empty_batch(self):
        inputs = make_inputs(1, 9, 5, 4)
        inputs = {k: v[:0] if v.ndim == 3 or k == "reset" else v for k, v in inputs.items()}
        found = results(triton_scan, inputs)
        assert found["out"].shape == (0, 9, 5)
        assert not found["dA"].any()

    def test_state_carries_over(self):
        """A span in two pieces equals the span."""
        inputs = make_inputs(1, 40, 5, 4)
        h = inputs.pop("h0")
        outs = []
        for part in (slice(0, 17), slice(17, 40)):
            piece = {k: v[:, part] if v.ndim == 3 or k == "reset" else v for k, v in inputs.items()}
            out, h = triton_scan(**piece, h0=h)
            outs.append(out)
        whole, last = triton_scan(**inputs, h0=make_inputs(1, 40, 5, 4)["h0"])
        torch.testing.assert_close(torch.cat(outs, dim=1), whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(h, last, rtol=1e-5, atol=1e-5)

    def test_zero_dt_freezes_the_state(self):
        inputs = make_inputs(1, 9, 5, 4, leave_out=("dt_bias", "reset"))
        _, h = triton_scan(**{**inputs, "dt": torch.zeros_like(inputs["dt"])}, dt_softplus=False)
        assert torch.equal(h, inputs["h0"])

    def test_huge_dt_is_finite(self):
        inputs = make_inputs(1, 9, 5, 4)
        found = results(triton_scan, {**inputs, "dt": inputs["dt"] * 1000})
        assert all(torch.isfinite(t).all() for t in found.values())

    def test_only_the_output_needs_gradients(self):
        found = results(triton_scan, make_inputs(1, 9, 5, 4), h_weight=False)
        exact = results(oracle, make_inputs(1, 9, 5, 4), h_weight=False, as_double=True)
        assert max(errors(found, exact).values()) < FP32_ERROR

    def test_states_are_saved_only_where_a_backward_may_follow(self, states_written):
        written = states_written(autograd)
        inputs = make_inputs(1, 5, 3, 2, leave_out=OPTIONAL)
        triton_scan(**inputs)
        inputs["A"].requires_grad_()
        with torch.no_grad():
            triton_scan(**inputs)
        triton_scan(**inputs)[0].sum().backward()
        assert written == [False, False, True]
        assert inputs["A"].grad is not None

    def test_second_derivative_names_the_way_out(self):
        inputs = make_inputs(1, 5, 3, 2, leave_out=OPTIONAL)
        u = inputs["u"].requires_grad_()
        (grad,) = torch.autograd.grad(triton_scan(**inputs)[0].sum(), u, create_graph=True)
        with pytest.raises(RuntimeError, match='backend="reference"'):
            grad.sum().backward()


def test_a_call_gets_the_plan_of_its_shape(monkeypatch):
    def refuse(*given):
        raise LookupError(given)

    monkeypatch.setattr(launch, "make_plan", refuse)
    inputs = make_inputs(2, 7, 5, 3)
    with pytest.raises(LookupError) as asked:
        triton_scan(**inputs)
    assert asked.value.args[0] == (2, 7, 5, 3, torch.device("cpu"), ScanInputs(**inputs).case)


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
class TestGpu:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("chunks", [1, 4])
    @pytest.mark.parametrize(
        ("length", "channels", "states"), [(257, 96, 16), (63, 33, 5), (65, 16, 64), (65, 40, 200), (1, 128, 16)]
    )
    def test_against_the_oracle(self, length, channels, states, chunks, dtype):
        inputs = make_inputs(2, length, channels, states, dtype=dtype, device="cuda", memory=30.0)
        plan = plan_for(inputs, chunks=chunks)
        found = check(inputs, plan=plan, ratio=BF16_ERROR_RATIO)
        again = results(triton_scan, inputs, plan=plan)
        assert all(torch.equal(found[k], again[k]) for k in found)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("block", [4, 8])
    @pytest.mark.parametrize(("length", "channels", "states"), [(2048, 96, 16), (1023, 33, 5), (40, 16, 16)])
    def test_in_one_launch(self, length, channels, states, block, dtype):
        inputs = make_inputs(2, length, channels, states, dtype=dtype, device="cuda", memory=300.0)
        inputs |= {k: inputs[k].to(dtype) for k in "BC"}
        plan = plan_for(inputs, short=block)
        found = check(inputs, plan=plan, ratio=BF16_ERROR_RATIO)
        again = results(triton_scan, inputs, plan=plan)
        assert all(torch.equal(found[k], again[k]) for k in found)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize(
        ("length", "channels", "leave_out", "maps"),
        [(301, 48, (), "fp32"), (64, 16, OPTIONAL, "narrow"), (13, 32, ("z",), "fp32")],
    )
    def test_a_channel_in_two_lanes(self, kernels, length, channels, leave_out, maps, dtype):
        inputs = make_inputs(2, length, channels, 16, dtype=dtype, leave_out=leave_out, device="cuda", memory=30.0)
        if maps == "narrow":
            inputs |= {k: inputs[k].to(dtype) for k in "BC"}
        plan = plan_for(inputs, chunks=1, lanes=8, lanes_inference=8)
        found = check(inputs, plan=plan, ratio=BF16_ERROR_RATIO)
        again = results(triton_scan, inputs, plan=plan)
        assert all(torch.equal(found[k], again[k]) for k in found)
        with torch.no_grad():
            out, h = triton_scan(plan=plan, **inputs)
        torch.testing.assert_close(out, found["out"])
        torch.testing.assert_close(h, found["h"])
        assert kernels.count("scan_lanes_kernel") == 3

    def test_beyond_2_to_31_elements(self):
        """The last rows of 4.2 M steps by 512 channels equal a short scan from the state before them."""
        length, channels, tail = 4_194_304 + 7, 512, 40
        u = torch.randn(1, length, channels, device="cuda", dtype=torch.bfloat16)
        short = make_inputs(1, 8, channels, 4, leave_out=("h0", "reset", "z", "dt_bias"), device="cuda")
        B, C = (torch.randn(1, length, 4, device="cuda") for _ in "BC")
        rest = {"A": short["A"], "D": short["D"]}
        whole, _ = triton_scan(u=u, dt=u, B=B, C=C, **rest)
        cut = length - tail
        before = slice(cut - 2000, cut)
        _, h = triton_scan(u=u[:, before], dt=u[:, before], B=B[:, before], C=C[:, before], **rest)
        end, _ = triton_scan(u=u[:, cut:], dt=u[:, cut:], B=B[:, cut:], C=C[:, cut:], h0=h, **rest)
        torch.testing.assert_close(whole[:, cut:], end, rtol=2e-2, atol=2e-2)
