"""The other cases of the Triton scan (complex, time-invariant, exactly held) against the fp64 oracle, interpreted and on a GPU.

The interpreter must be switched on before Triton is imported, so this file runs itself once more in a process with
TRITON_INTERPRET=1; there the tests of class TestInterpreted run, here the rest.
"""

import ctypes
import itertools
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from mamba_bio_audio import ops  # noqa: E402
from mamba_bio_audio.kernels.scan import autograd, backward, backward_steps, backward_tiles, sums  # noqa: E402
from mamba_bio_audio.kernels.scan.autograd import scan_triton  # noqa: E402
from mamba_bio_audio.kernels.scan.inputs import Case, ScanInputs, make_plan, unsupported_reason  # noqa: E402
from mamba_bio_audio.kernels.scan.reference import scan_reference  # noqa: E402

# Test files are not packages.
_LANES = runpy.run_path(str(Path(__file__).with_name("test_sums.py")))
execute, operands, run, tile = (_LANES[name] for name in ("execute", "operands", "run", "tile"))

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

# Relative L2 error of fp32 results against fp64. Measured in the interpreter: below 1e-6.
FP32_ERROR = 1e-5
# The same of fp32 results from bf16 inputs, for which softplus may err by 5e-5 and sine and cosine by 2^-20.5 a step.
FAST_ERROR = 5e-5
# Error of bf16 results over that of the fp64 oracle stored as bf16.
BF16_ERROR_RATIO = 1.5

OPTIONAL = ("D", "z", "dt_bias", "h0", "reset")
FACTORS = {
    "complex": (True, False),
    "lti_dt": (False, True),
    "lti_B": (False, True),
    "lti_C": (False, True),
    "exact_zoh": (False, True),
    "precise": (False, True),
    "dt_softplus": (True, False),
    "gate": (True, False),
    "h0": (True, False),
    "reset": (True, False),
    "chunks": (1, 2, 3),
    "length": (19, 11, 1, 3),
    "channels": (5, 18, 1),
    "states": (4, 5, 16, 1),
}


def pairwise(factors):
    """Cases in which any two values of any two factors meet at least once, each the best of a few greedy choices."""
    names = list(factors)
    left = {
        ((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in factors[a] for y in factors[b]
    }  # fmt: skip
    cases = []
    while left:
        (a, x), (b, y) = min(left, key=repr)
        case = {a: x, b: y}
        for name in names:
            if name not in case:
                case[name] = max(
                    factors[name],
                    key=lambda v: sum(
                        ((k, w), (name, v)) in left or ((name, v), (k, w)) in left for k, w in case.items()
                    ),
                )
        left -= {((p, case[p]), (q, case[q])) for p, q in itertools.combinations(names, 2)}
        cases.append(case)
    return cases


def make_inputs(
    batch, length, channels, states, *, complex=True, lti_dt=False, lti_B=False, lti_C=False, dtype=torch.float32,
    leave_out=(), device="cpu", memory=3.0,
):  # fmt: skip
    """Inputs of selective_scan; `memory` is about how many steps a state lasts."""
    generator = torch.Generator().manual_seed(length * channels + states)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    parts = (2,) if complex else ()
    A = -torch.rand(channels, states, generator=generator) - 1.0 / memory
    inputs = {
        "u": normal(batch, length, channels).to(dtype),
        "dt": normal(channels) if lti_dt else normal(batch, length, channels).to(dtype),
        "A": torch.stack([A, 4 * normal(channels, states)], dim=-1) if complex else A,
        "B": normal(channels, states, *parts) if lti_B else normal(batch, length, states, *parts),
        "C": normal(channels, states, *parts) if lti_C else normal(batch, length, states, *parts),
        "D": normal(channels),
        "z": normal(batch, length, channels).to(dtype),
        "dt_bias": normal(channels) * 0.3 - 1.0,
        "h0": normal(batch, channels, states, *parts),
        "reset": torch.rand(batch, length, generator=generator) < 0.1,
    }
    return {k: v.to(device) for k, v in inputs.items() if k not in leave_out}


def triton_scan(plan=None, **x):
    return scan_triton(ScanInputs(**x), plan)


def oracle(**x):
    return scan_reference(ScanInputs(**x))


def results(function, inputs, *, as_double=False, **options):
    """Output, last state and all gradients, by name."""
    reset = inputs.get("reset")
    leaves = {k: v.double() if as_double else v for k, v in inputs.items() if k != "reset"}
    leaves = {k: v.clone().requires_grad_() for k, v in leaves.items()}
    out, h = function(**leaves, reset=reset, **options)
    generator = torch.Generator().manual_seed(1)
    g_out = torch.randn(out.shape, generator=generator).to(out.device).to(inputs["u"].dtype)
    g_h = torch.randn(h.shape, generator=generator).to(out.device)
    loss = (out.double() * g_out.double()).sum() + (h.double() * g_h.double()).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {"out": out.detach(), "h": h.detach(), **{f"d{k}": g for k, g in zip(leaves, grads, strict=True)}}


def errors(found, expected):
    return {k: ((found[k].double() - e).norm() / e.norm().clamp_min(1e-30)).item() for k, e in expected.items()}


def plan_for(inputs, exact_zoh=False, **changes):
    batch, length, channels = inputs["u"].shape
    case = ScanInputs(**inputs, exact_zoh=exact_zoh).case
    return make_plan(batch, length, channels, inputs["A"].shape[1], inputs["u"].device, case, **changes)


def interpret_warp(text, tiles, at, narrow=False):
    """Runs inline PTX on Triton tensors of the interpreter; `at` are addresses."""
    values = [np.ascontiguousarray(np.broadcast_to(t.handle.data, (16, 16)), np.float32) for t in tiles]
    places = np.arange(256, dtype=np.uint32).reshape(16, 16) * 64  # some bytes each, for stores beside them
    addresses = at.handle.data.reshape(256)
    for place, value in run(text, operands(values) + tile(places)).items():
        address = int(addresses[place // 64]) + place % 64
        if narrow:
            ctypes.c_uint16.from_address(address).value = int(value.view(np.uint32)) >> 16
        else:
            ctypes.c_float.from_address(address).value = value


def interpreted_channel_sums(x0, v0, x1, v1, index, at, narrow):
    narrow = bool(getattr(narrow, "value", narrow))
    text = (sums.CHANNELS_NARROW if narrow else sums.CHANNELS).value
    interpret_warp(text, [x0, v0, x1, v1], at, narrow)


class InterpretedMemory:
    """Shared memory of the programs that the interpreter runs one after another, and the PTX that works on it."""

    def __init__(self, monkeypatch):
        self.values = np.zeros(44 << 8, np.float32)
        for name in (
            "shared_room", "put_steps", "take_steps", "take_step", "keep_tile", "kept_tile", "place_tile", "store_state_sums",
            "rough_channel_sums", "store_rough_sums", "store_product_sums", "put_plane", "take_plane", "take_row", "later",
        ):  # fmt: skip
            within = [module for module in (backward, backward_steps, backward_tiles) if hasattr(module, name)]
            assert within, name
            for module in within:
                monkeypatch.setattr(module, name, getattr(self, name))
        for name in ("rough_channel_sums", "store_rough_sums"):
            monkeypatch.setattr(sums, name, getattr(self, name))

    def tensor(self, values):
        from triton.runtime.interpreter import TensorHandle

        return tl.tensor(TensorHandle(values, tl.float32), tl.block_type(tl.float32, list(values.shape)))

    def shared_room(self, index, size):
        assert getattr(size, "value", size) <= self.values.nbytes
        self.values[:] = np.nan
        return 0

    def put_steps(self, dt, x, gy, at):
        for k, t in enumerate((dt, x, gy)):
            self.values[at.handle.data // 4 + k] = np.broadcast_to(t.handle.data, at.handle.data.shape)

    def take_steps(self, at):
        return tuple(self.tensor(self.values[at.handle.data // 4 + k]) for k in range(4))

    def take_step(self, at):
        return self.take_steps(at)[:3]

    def put_plane(self, x, at):
        self.values[at.handle.data // 4] = np.broadcast_to(x.handle.data, at.handle.data.shape)

    def later(self, dt, h, zeros):
        assert (tile(zeros.handle.data)[0] == 0).all()
        return dt

    def take_row(self, at):
        first = self.values[at.handle.data[:1, ::4] // 4 + np.arange(4)[:, None]]  # [4, 4 lanes]
        return self.tensor(np.broadcast_to(first.T.reshape(1, 16), (16, 16)).copy())

    def take_plane(self, at):
        return self.tensor(self.values[at.handle.data // 4])

    def kept_places(self, at):
        first = tile(at.handle.data)[0] // 4
        return [first + (i % 4 if i < 4 else 128 + i % 4) for i in range(8)]

    def keep_tile(self, x, at):
        for place, value in zip(self.kept_places(at), tile(x.handle.data), strict=True):
            self.values[place] = value

    def place_tile(self, x, d, n, at):
        d, n = d.handle.data[:, None], n.handle.data[None, :]
        place = at if isinstance(at, int) else int(np.asarray(at.handle.data).reshape(-1)[0])
        places = place // 4 + d // 8 * 128 + (d % 8 * 4 + n // 4) * 4 + n % 4
        self.values[places] = np.broadcast_to(x.handle.data, (16, 16))

    def kept_tile(self, at):
        found = np.empty((16, 16), np.float32)
        index = tile(np.arange(256).reshape(16, 16))
        for place, elements in zip(self.kept_places(at), index, strict=True):
            found.reshape(256)[elements] = self.values[place]
        return self.tensor(found)

    def registers(self, tiles):
        values = [np.ascontiguousarray(np.broadcast_to(t.handle.data, (16, 16)), np.float32) for t in tiles]
        return [np.zeros(32, np.uint32)] * 8 + [r for t in values for r in tile(t.view(np.uint32))]

    def store_state_sums(self, h, C, g, B, w, index, at, split):
        text = (sums.STATES_SPLIT if getattr(split, "value", split) else sums.STATES).value
        rest = tile(index.handle.data.astype(np.uint32)) + tile(at.handle.data.astype(np.uint32))
        for place, value in run(text, self.registers([h, C, g, B, w]) + rest).items():
            self.values[place // 4] = value

    def store_product_sums(self, gr, gi, Br, Bi, wr, wi, Ar, Ai, hr, hi, Cr, Ci, index, at, gate, rough, complex):
        gate, rough, complex = (bool(getattr(x, "value", x)) for x in (gate, rough, complex))
        pairs = [(gr, Br, gi, Bi), (wr, Ar, wi, Ai)] + [(hr, Cr, hi, Ci)] * gate
        text = getattr(sums, "PRODUCTS" + "_PAIRS" * complex + "_GATE" * gate + "_ROUGH" * (rough and gate)).value
        rest = tile(index.handle.data.astype(np.uint32)) + tile(at.handle.data.astype(np.uint32))
        given = self.registers([t for pair in pairs for t in pair[: 4 if complex else 2]])
        for place, value in run(text, given + rest).items():
            self.values[place // 4] = value

    def rough_channel_sums(self, x0, v0, x1, v1, routes, more):
        given = self.registers([x0, v0, x1, v1])
        given += [r for t in (routes, more) for r in tile(t.handle.data.view(np.uint32))]
        found = np.zeros((16, 16), np.float32)
        sums_of_lanes = execute(sums.ROUGH_CHANNELS.value, given)[0]["$0"].view(np.float32)
        found[tuple(tile(i)[0] for i in np.indices((16, 16)))] = sums_of_lanes
        return self.tensor(found)

    def store_rough_sums(self, found, index, at):
        interpret_warp(sums.STORE_ROUGH.value, [found], at, True)


def stored(t, like):
    """fp64 results as the kernels store them: the interpreter cuts bf16 off where a GPU rounds."""
    if INTERPRETING and like.dtype == torch.bfloat16:
        return (t.float().view(torch.int32) & -65536).view(torch.float32)
    return t.to(like.dtype)


def check(inputs, *, twice=True, more=None, **options):
    """Compares with the fp64 oracle, and two runs bit for bit; `more` has what results may be off beside the rest."""
    more = more or {}
    plan = options.pop("plan", None) or plan_for(inputs, options.get("exact_zoh", False))
    found = results(triton_scan, inputs, plan=plan, **options)
    exact = results(oracle, inputs, as_double=True, **options)
    off = errors(found, exact)
    rounded = errors({k: stored(v, found[k]) for k, v in exact.items()}, exact)
    allowed = FP32_ERROR if inputs["u"].dtype == torch.float32 else FAST_ERROR
    assert all(off[k] <= BF16_ERROR_RATIO * rounded[k] + more.get(k, allowed) for k in off), (off, rounded)
    if twice:
        again = results(triton_scan, inputs, plan=plan, **options)
        assert all(torch.equal(found[k], again[k]) for k in found), "two runs differ"


def check_case(case, device="cpu"):
    leave_out = [n for n, there in (("z", case["gate"]), ("h0", case["h0"]), ("reset", case["reset"])) if not there]
    if not case["dt_softplus"]:
        leave_out.append("dt_bias")
    if not case["gate"]:
        leave_out.append("D")
    kind = {k: case[k] for k in ("complex", "lti_dt", "lti_B", "lti_C")}
    sizes = {k: case[k] for k in ("length", "channels", "states")}
    inputs = make_inputs(1 if device == "cpu" else 2, **sizes, **kind, leave_out=leave_out, device=device)
    if not case["dt_softplus"]:
        inputs["dt"] = inputs["dt"].abs()
    # Segments of 8 steps, so that short sequences have several, and several chunks.
    plan = plan_for(inputs, case["exact_zoh"], chunks=case["chunks"], segment=8)
    check(
        inputs, plan=plan, twice=device != "cpu", exact_zoh=case["exact_zoh"], precise=case["precise"],
        dt_softplus=case["dt_softplus"],
    )  # fmt: skip


@pytest.mark.slow
def test_interpreted(run_interpreted):
    run_interpreted()


@pytest.mark.skipif(not INTERPRETING, reason="runs in the process that test_interpreted starts")
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
class TestInterpreted:
    @pytest.mark.parametrize("case", pairwise(FACTORS), ids=lambda case: "-".join(map(str, case.values())))
    def test_pairwise(self, case):
        check_case(case)

    @pytest.mark.parametrize("lti", [False, True])
    def test_bf16(self, lti):
        check(make_inputs(1, 18, 16, 8, dtype=torch.bfloat16, lti_dt=lti, lti_B=lti))

    @pytest.mark.parametrize("lti", [False, True])
    def test_many_states_go_by_groups_of_channels(self, lti):
        check(make_inputs(2, 9, 5, 32, lti_C=lti), twice=False)

    @pytest.mark.parametrize(("complex", "channels"), [(True, 130), (False, 260)])
    def test_several_blocks_of_channels(self, complex, channels):
        """Blocks of 128 channels in forward, chunk states and carries, in two chunks of two rows."""
        inputs = make_inputs(2, 10, channels, 2, complex=complex, lti_C=not complex)
        plan = plan_for(inputs, chunks=2, segment=8)
        assert plan.fwd_block == 128
        check(inputs, plan=plan, twice=False)

    def test_two_rows_and_the_default_plan(self):
        check(make_inputs(2, 17, 5, 16, lti_C=True), twice=False)

    @pytest.mark.parametrize(
        ("complex", "dtype", "changes"),
        [
            (True, torch.bfloat16, {}),
            (True, torch.float32, {"exact_zoh": True}),
            (True, torch.bfloat16, {"lti_C": True, "gate": False}),
            (False, torch.float32, {}),
            (False, torch.bfloat16, {"lti_dt": True, "lti_B": True}),
            (False, torch.float32, {"lti_dt": True, "length": 9}),  # one step at a time
        ],
    )
    def test_sums_of_one_warp(self, monkeypatch, complex, dtype, changes):
        """The PTX of `sums` in its interpreter, at the places the kernel gives: a ragged end, channels, chunks."""
        InterpretedMemory(monkeypatch)
        monkeypatch.setattr(sums, "store_channel_sums", interpreted_channel_sums)
        lti = {k: v for k, v in changes.items() if k.startswith("lti")}
        gate = changes.get("gate", True)
        length = changes.get("length", 10)
        inputs = make_inputs(1, length, 18, 16, complex=complex, dtype=dtype, leave_out=() if gate else ("z",), **lti)
        exact_zoh = changes.get("exact_zoh", False)
        plan = plan_for(inputs, exact_zoh, chunks=2, segment=8, warp_sums=True)
        check(inputs, plan=plan, twice=False, exact_zoh=exact_zoh)

    @pytest.mark.parametrize("complex", [False, True])
    def test_narrow_sums_of_one_warp(self, monkeypatch, complex):
        monkeypatch.setattr(sums, "store_channel_sums", interpreted_channel_sums)
        InterpretedMemory(monkeypatch)
        inputs = make_inputs(1, 9, 18, 16, complex=complex, dtype=torch.bfloat16)
        inputs |= {k: inputs[k].bfloat16() for k in "BC"}
        # The tensor cores multiply 11 bits of what goes into ddt, as in test_plain.
        more = {} if complex else {"ddt_bias": 2.0**-10}
        check(inputs, plan=plan_for(inputs, warp_sums=True), twice=False, more=more)

    @pytest.mark.parametrize("complex", [False, True])
    def test_many_states(self, complex):
        check(make_inputs(1, 3, 3, 130, complex=complex, lti_B=True), twice=False)

    def test_angles_of_many_turns(self):
        """Hundreds of turns a step lose no more to rounding than the oracle in fp32 does."""
        inputs = make_inputs(1, 9, 3, 4, leave_out=("dt_bias",))
        inputs["A"][..., 1] = torch.linspace(-900, 900, 12).view(3, 4)
        inputs["dt"] = inputs["dt"].abs()
        exact = results(oracle, inputs, as_double=True, dt_softplus=False)
        found, rounded = (errors(results(f, inputs, dt_softplus=False), exact) for f in (triton_scan, oracle))
        assert all(found[k] <= 3 * rounded[k] + FP32_ERROR for k in found), (found, rounded)

    def test_exact_hold_near_and_far_from_its_series(self):
        """Decays on both sides of |dt A| = 0.5, and A = 0."""
        inputs = make_inputs(1, 9, 3, 4, leave_out=("dt_bias",))
        inputs["A"] = inputs["A"] * torch.tensor([0.0, 0.01, 0.1, 3.0])[None, :, None]
        check({**inputs, "dt": inputs["dt"].abs()}, exact_zoh=True, dt_softplus=False)

    @pytest.mark.parametrize("complex", [False, True])
    def test_time_invariant_equals_constant(self, complex):
        fixed = make_inputs(1, 18, 5, 4, complex=complex, lti_dt=True, lti_B=True, lti_C=True)
        varying = {**fixed, "dt": fixed["dt"].expand(1, 18, 5)}
        for name in "BC":  # equal for all channels, as selective maps are
            fixed[name] = fixed[name][:1].expand(5, *fixed[name].shape[1:])
            varying[name] = fixed[name][0].expand(1, 18, *fixed[name].shape[1:])
        found, expected = (results(triton_scan, x) for x in (fixed, varying))
        torch.testing.assert_close(found["out"], expected["out"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found["ddt"], expected["ddt"].sum((0, 1)), rtol=1e-4, atol=1e-4)
        for name in ("dB", "dC"):
            torch.testing.assert_close(found[name].sum(0), expected[name].sum((0, 1)), rtol=1e-4, atol=1e-4)

    def test_state_carries_over(self):
        """A span in two pieces equals the span, and so do gradients that flow through the state between them."""
        inputs = make_inputs(1, 21, 5, 4, lti_C=True)

        def pieces(h0, **x):
            h, outs = h0, []
            for part in (slice(0, 9), slice(9, 21)):
                piece = {k: v[:, part] if k in ("u", "dt", "B", "z", "reset") else v for k, v in x.items()}
                out, h = triton_scan(**piece, h0=h)
                outs.append(out)
            return torch.cat(outs, dim=1), h

        found, expected = results(pieces, inputs), results(triton_scan, inputs)
        assert max(errors(found, expected).values()) < FP32_ERROR

    def test_reset_equals_separate_sequences(self):
        inputs = make_inputs(1, 19, 5, 4, leave_out=("h0", "reset"))
        reset = torch.zeros(1, 19, dtype=torch.bool)
        reset[0, 7] = True
        packed, _ = triton_scan(**inputs, reset=reset)
        fixed = {k: inputs[k] for k in ("A", "D", "dt_bias")}
        for part in (slice(0, 7), slice(7, 19)):
            alone, _ = triton_scan(
                **{k: v[:, part] for k, v in inputs.items() if k not in fixed}, **fixed
            )  # fmt: skip
            torch.testing.assert_close(packed[:, part], alone, rtol=1e-5, atol=1e-5)

    def test_rows_of_a_larger_tensor(self):
        inputs = make_inputs(1, 9, 8, 4)
        u, z = torch.cat([inputs["u"], inputs["z"]], dim=-1).chunk(2, dim=-1)
        found, _ = triton_scan(**{**inputs, "u": u, "z": z})
        assert torch.equal(found, triton_scan(**inputs)[0])

    def test_huge_dt_is_finite(self):
        inputs = make_inputs(1, 9, 5, 4)
        found = results(triton_scan, {**inputs, "dt": inputs["dt"] * 1000})
        assert all(torch.isfinite(t).all() for t in found.values())

    def test_it_is_the_triton_backend(self):
        inputs = make_inputs(1, 5, 3, 2, lti_dt=True)
        out, h = ops.selective_scan(**inputs, return_state=True, backend="triton")
        expected = triton_scan(**inputs)
        assert torch.equal(out, expected[0])
        assert torch.equal(h, expected[1])

    def test_states_are_saved_only_where_a_backward_may_follow(self, states_written):
        written = states_written(autograd)
        inputs = make_inputs(1, 5, 3, 2, leave_out=OPTIONAL)
        inputs["A"].requires_grad_()
        with torch.no_grad():
            triton_scan(**inputs)
        triton_scan(**inputs)
        assert written == [False, True]

    def test_second_derivative_names_the_way_out(self):
        inputs = make_inputs(1, 5, 3, 2, leave_out=OPTIONAL)
        u = inputs["u"].requires_grad_()
        (grad,) = torch.autograd.grad(triton_scan(**inputs)[0].sum(), u, create_graph=True)
        with pytest.raises(RuntimeError, match='backend="reference"'):
            grad.sum().backward()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"A": torch.zeros(2, 300, 2)}, "states"),
        ({"u": torch.zeros(1, 3, 2, dtype=torch.float64)}, "float64 activations"),
        ({"z": torch.zeros(1, 3, 2, dtype=torch.float64)}, "float64 activations"),
        ({"B": torch.zeros(1, 3, 4, 2, dtype=torch.float64)}, "float64 parameters"),
        ({"h0": torch.zeros(1, 2, 4, 2, dtype=torch.float64)}, "float64 parameters or states"),
    ],
)
def test_what_it_refuses(changed, reason):
    inputs = {k: v for k, v in make_inputs(1, 3, 2, 4).items() if k in ("u", "dt", "A", "B", "C")} | changed
    assert reason in (unsupported_reason(ScanInputs(**inputs)) or "")
    with pytest.raises(NotImplementedError, match=reason):
        triton_scan(**inputs)


def test_name_of_a_case_tells_all_that_kernels_ask_of_it():
    """Triton finds compiled kernels, on disk as well, by their source and by this name: a property that changes its rule
    without changing the name would run the old code."""
    for kind in itertools.product((True, False), repeat=5):
        case = Case(*kind, plain=not any(kind))
        for name in dir(case):
            if isinstance(getattr(case, name), bool):
                assert (f"_{name}_" in f"_{case!r}_") == getattr(case, name), name


def test_equal_calls_share_their_case():
    """It is asked for in every call and looked up in every launch."""
    inputs = ScanInputs(**make_inputs(1, 3, 2, 4))
    assert inputs.case is inputs._replace(u=inputs.u + 1).case
    assert inputs.case is not inputs._replace(z=None).case


# Real and selective has sums of its own in bf16, and `test_plain` what these may err by.
KINDS = [kind for kind in itertools.product((True, False), repeat=4) if any(kind)]
# Each kind in each size and each dtype once, so that kinds that differ by one have other pairs: kernels take long to compile.
SIZES = [(257, 96, 16, 4), (64, 33, 5, 1)]
EVERY_KIND = [
    (*size, (torch.float32, torch.bfloat16)[(sum(kind) + number) % 2], kind)
    for kind in KINDS
    for number, size in enumerate(SIZES)
]


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="needs a CUDA device")
class TestGpu:
    @pytest.mark.parametrize("case", pairwise(FACTORS), ids=lambda case: "-".join(map(str, case.values())))
    def test_pairwise(self, case):
        check_case(case, device="cuda")

    @pytest.mark.parametrize(
        ("length", "channels", "states", "chunks", "dtype", "kind"),
        EVERY_KIND,
        ids=lambda value: "".join("01"[k] for k in value) if isinstance(value, tuple) else str(value),
    )
    def test_every_kind(self, length, channels, states, chunks, dtype, kind):
        complex, lti_dt, lti_B, lti_C = kind
        inputs = make_inputs(
            2, length, channels, states, complex=complex, lti_dt=lti_dt, lti_B=lti_B, lti_C=lti_C, dtype=dtype,
            device="cuda", memory=30.0,
        )  # fmt: skip
        check(inputs, plan=plan_for(inputs, chunks=chunks))

    @pytest.mark.parametrize("exact_zoh", [False, True])
    @pytest.mark.parametrize("complex", [False, True])
    @pytest.mark.parametrize(("channels", "states"), [(256, 16), (40, 64), (24, 200)])
    def test_sizes(self, channels, states, complex, exact_zoh):
        inputs = make_inputs(2, 65, channels, states, complex=complex, lti_C=True, device="cuda", memory=30.0)
        check(inputs, exact_zoh=exact_zoh)

    @pytest.mark.parametrize("complex", [False, True])
    def test_long_memory(self, complex):
        """An impulse after 2 x 10^5 steps of constant dt, memory 10^5, precise: decay and phase as computed in fp64."""
        length, dt = 200_000, 1e-3
        A = (
            torch.tensor([[-0.01, 0.3]], device="cuda").view(1, 1, 2)
            if complex
            else torch.tensor([[-0.01]], device="cuda")
        )
        u = torch.zeros(1, length, 1, device="cuda")
        u[0, 0] = 1.0
        ones = torch.ones(1, 1, *A.shape[2:], device="cuda")
        step = torch.full((1, length, 1), dt, device="cuda")
        _, h = triton_scan(u=u, dt=step, A=A, B=ones, C=ones, dt_softplus=False, precise=True)
        rate = torch.view_as_complex(A.double().cpu()) if complex else A.double().cpu()
        start = torch.complex(torch.tensor(1.0), torch.tensor(1.0)) if complex else torch.tensor(1.0)
        expected = torch.exp(rate * step[0, 0, 0].double().item() * (length - 1)) * step[0, 0, 0].item() * start
        found = torch.view_as_complex(h.double().cpu()) if complex else h.double().cpu()
        assert ((found - expected).abs() / expected.abs()).max() < 1e-3

    def test_beyond_2_to_31_elements(self):
        """The last rows of 4.2 M steps by 512 channels equal a short scan from the state before them."""
        length, channels, tail = 4_194_304 + 7, 512, 40
        u = torch.randn(1, length, channels, device="cuda", dtype=torch.bfloat16)
        short = make_inputs(1, 8, channels, 4, lti_B=True, lti_C=True, device="cuda")
        rest = {k: short[k] for k in ("A", "B", "C", "D")}
        whole, _ = triton_scan(u=u, dt=u, **rest)
        cut = length - tail
        _, h = triton_scan(u=u[:, cut - 2000 : cut], dt=u[:, cut - 2000 : cut], **rest)
        end, _ = triton_scan(u=u[:, cut:], dt=u[:, cut:], h0=h, **rest)
        torch.testing.assert_close(whole[:, cut:], end, rtol=2e-2, atol=2e-2)
