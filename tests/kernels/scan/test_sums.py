"""The inline PTX of `sums` and `warp_memory`, run by a small interpreter of 32 lanes: CI has no GPU.

Registers are uint32 arrays of 32 lanes. Layout of the operands of mma.m16n8k8: PTX ISA, section 9.7.14.
"""

import re

import numpy as np
import pytest

pytest.importorskip("triton")

from mamba_bio_audio.kernels.scan import sums, sums_asm, warp_memory

LANE = np.arange(32)
GROUP, PART = LANE // 4, LANE % 4


def as_float(bits):
    return bits.astype(np.uint32).view(np.float32)


def as_bits(values):
    return np.asarray(values, np.float32).view(np.uint32)


def product(out, a, b):
    """d = a b + c of m16n8k8 with operands cut to 19 bits."""
    cut = [as_float(x & np.uint32(0xFFFFE000)).astype(np.float64) for x in (*a, *b)]
    left, right = np.zeros((16, 8)), np.zeros((8, 8))
    for register, (row, column) in enumerate(((0, 0), (8, 0), (0, 4), (8, 4))):
        left[GROUP + row, PART + column] = cut[register]
    for register in range(2):
        right[PART + 4 * register, GROUP] = cut[4 + register]
    total = left @ right
    for register, (row, column) in enumerate(((0, 0), (0, 1), (8, 0), (8, 1))):
        out[register] = as_bits(as_float(out[register]) + total[GROUP + row, 2 * PART + column])
    return out


def run(text, operands, shared=None):
    """Runs the asm with `operands`, registers of all operands in order; returns {address: float} of its stores."""
    return execute(text, operands, shared)[1]


def execute(text, operands, shared=None):
    """(Registers by name, stores) after the asm; `shared` is memory to load from, {address: float}."""
    registers = {f"${i}": value.astype(np.uint32) for i, value in enumerate(operands)}
    stored = {}

    def value(name):
        if name == "%laneid":
            return LANE.astype(np.uint32)
        if name.startswith("0f"):
            return np.full(32, int(name[2:], 16), np.uint32)
        if re.fullmatch(r"0x[0-9a-f]+|\d+", name):
            return np.full(32, int(name, 0), np.uint32)
        return registers[name]

    for line in text.splitlines():
        if line.startswith((".reg", ".shared", "{", "}")):
            continue
        name, rest = line.rstrip(";").split(None, 1)
        groups = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)
        if name.startswith("mma"):
            c, a, b = ([n.strip() for n in g.strip("{}").split(",")] for g in groups[:3])
            done = product([value(n) for n in c], [value(n) for n in a], [value(n) for n in b])
            registers |= dict(zip(c, done, strict=True))
            continue
        if name.startswith(("st.global", "st.shared")):
            place, _, offset = groups[0].strip("[]").partition("+")
            for i, source in enumerate(groups[1].strip("{}").split(",")):
                for at, x in zip(value(place) + int(offset or 0) + 4 * i, as_float(value(source.strip())), strict=True):
                    assert stored.setdefault(int(at), x) == x or np.isnan(x)
            continue
        if name.startswith("ld.shared"):
            place, _, offset = groups[1].strip("[]").partition("+")
            for i, target in enumerate(groups[0].strip("{}").split(",")):
                found = [shared[int(at)] for at in value(place) + int(offset or 0) + 4 * i]
                registers[target.strip()] = as_bits(found)
            continue
        to, sources = groups[0], [value(n) for n in groups[1:]]
        kind = name.split(".")[0]
        if kind == "mov":
            found = sources[0]
        elif kind == "shl":
            found = sources[0] << sources[1]
        elif kind == "and":
            found = sources[0] & sources[1]
        elif name == "add.s32":
            found = sources[0] + sources[1]
        elif kind == "setp":
            found = {"ne": np.not_equal, "eq": np.equal, "ge": np.greater_equal}[name.split(".")[1]](*sources[:2])
            found = found | sources[2] if ".or." in name else found
        elif kind == "cvt":  # to bf16, kept in the upper half
            found = (sources[0] + 0x7FFF + (sources[0] >> 16 & 1)) & np.uint32(0xFFFF0000)
        elif kind == "selp":
            found = np.where(sources[2], sources[0], sources[1])
        elif kind == "neg":
            found = sources[0] ^ np.uint32(0x80000000)
        elif kind == "shfl":
            found = sources[0][LANE ^ int(sources[1][0])]
        else:
            floats = [as_float(s) for s in sources]
            found = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}.get(
                kind, lambda a, b, c: a * b + c
            )(*floats)
            found = as_bits(found)
        registers[to] = found
    return registers, stored


def tile(values):
    """The 8 registers of every lane of a [16 channels, 16 states] tile."""
    return [values[GROUP + 8 * (i // 4), 4 * PART + i % 4] for i in range(8)]


def operands(tiles, wrong_layout=False):
    index = np.arange(256).reshape(16, 16).astype(np.uint32)
    if wrong_layout:
        index = index.T.copy()
    return [np.zeros(32, np.uint32)] * 8 + [r for t in tiles for r in tile(as_bits(t))] + tile(index)


@pytest.mark.parametrize(("split", "tolerance"), [(False, 2**-9), (True, 2**-19)])
def test_sums_over_states(split, tolerance) -> None:
    random = np.random.default_rng(0)
    h, g, w = random.standard_normal((3, 16, 16)).astype(np.float32)
    B, C = random.standard_normal((2, 16)).astype(np.float32)
    every = np.ones((16, 1), np.float32)
    at = (1000 * np.minimum(np.arange(16) // 4, 2)[None, :] + 4 * np.arange(16)[:, None]).astype(np.uint32)
    text = (sums.STATES_SPLIT if split else sums.STATES).value
    stored = run(text, operands((h, every * C, g, every * B, w)) + tile(at))
    for start, expected in ((0, g @ B), (1000, h @ C), (2000, w.sum(1))):
        found = [stored.pop(start + 4 * d) for d in range(16)]
        np.testing.assert_allclose(found, expected, atol=tolerance * 8)
    assert not stored


@pytest.mark.parametrize(("gate", "rough"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("pairs", [False, True])
def test_product_sums_over_states(pairs, gate, rough) -> None:
    random = np.random.default_rng(0)
    parts = 1 + pairs
    g, w, A, h = random.standard_normal((4, parts, 16, 16)).astype(np.float32)
    B, C = np.broadcast_to(random.standard_normal((2, parts, 1, 16)), (2, parts, 16, 16)).astype(np.float32)
    d, n = np.arange(16)[:, None], np.arange(16)[None, :]
    plane = np.where(n % 4 == 0, 1000 * (n // 4 % 2), 2000)
    at = (plane + 4 * (d + n // 8 * 8)).astype(np.uint32)
    products = [(g, B), (w, A)] + [(h, C)] * gate
    text = getattr(sums, "PRODUCTS" + "_PAIRS" * pairs + "_GATE" * gate + "_ROUGH" * rough).value
    stored = run(text, operands([x[k] for x_y in products for k in range(parts) for x in x_y]) + tile(at))
    sign = np.array([1, -1])[:parts, None, None]
    for start, (x, y) in zip((0, 1000, 2000), products, strict=False):
        expected = (x * y * (sign if start == 2000 else 1)).sum((0, 2))
        atol = 2**-6 if rough and start == 2000 else 1e-5
        np.testing.assert_allclose([stored.pop(start + 4 * c) for c in range(16)], expected, rtol=1e-5, atol=atol)
    assert not stored


@pytest.mark.parametrize("narrow", [False, True])
def test_sums_over_channels(narrow) -> None:
    random = np.random.default_rng(0)
    x0, x1 = random.standard_normal((2, 16, 16)).astype(np.float32)
    v0, v1 = random.standard_normal((2, 16)).astype(np.float32)
    every, d, n = np.ones((1, 16), np.float32), np.arange(16), np.arange(16)
    at = 4 * ((d % 2 * 16 + d // 4 * 2 + d // 2 % 2)[:, None] + n[None, :]).astype(np.uint32)
    text = (sums.CHANNELS_NARROW if narrow else sums.CHANNELS).value
    tolerance = 2**-8 if narrow else 1e-5
    stored = run(text, operands((x0, v0[:, None] * every, x1, v1[:, None] * every)) + tile(at))
    np.testing.assert_allclose([stored[4 * i] for i in range(16)], v0 @ x0, rtol=tolerance, atol=1e-5)
    np.testing.assert_allclose([stored[64 + 4 * i] for i in range(16)], v1 @ x1, rtol=tolerance, atol=1e-5)
    assert len(stored) == 32


def test_another_layout_gives_nan() -> None:
    tiles = np.ones((6, 16, 16), np.float32)
    at = np.arange(0, 256 * 64, 64).reshape(16, 16).astype(np.uint32)
    for text, count in ((sums.STATES, 5), (sums.CHANNELS, 4), (sums.PRODUCTS_GATE, 6), (sums.STORE_ROUGH, 1)):
        stored = run(text.value, operands(tiles[:count], wrong_layout=True) + tile(at))
        # Lane 0 holds index 0 in either; its last register tells.
        assert stored
        # The sums of states over channels from 8 on, which lie behind the others, are not looked after.
        assert all(np.isnan(x) for place, x in stored.items() if place % 64 == 0)


def test_planes_of_another_layout_give_nan():
    apart = [(1000 * i + 64 * LANE).astype(np.uint32) for i in range(8)]
    stored = run(warp_memory.PUT_PLANE.value, [np.zeros(32, np.uint32)] * 16 + apart)
    assert all(np.isnan(stored[int(place)]) for place in apart[0])


def test_places_of_sums_over_channels():
    """Lane c < 8 stores state 2 (c >> 2) + (c >> 1 & 1) of step c & 1: each of four states of two steps once."""
    states = np.arange(0, 16, 4)
    found = sums.channel_places.fn(np.arange(8), states, 100)
    expected = [[100 * (c & 1) + n + 2 * (c >> 2) + (c >> 1 & 1) for n in states] for c in range(8)]
    assert found.tolist() == expected
    assert sorted(found.flatten()) == [*range(16), *range(100, 116)]


def test_rough_sums_over_channels():
    """All 32 sums of a step, each in one lane, and where they go."""
    random = np.random.default_rng(0)
    x0, x1 = random.standard_normal((2, 16, 16)).astype(np.float32)
    v0, v1 = random.standard_normal((2, 16)).astype(np.float32)
    every, d, n = np.ones((1, 16), np.float32), np.arange(16), np.arange(16)
    e = rough_routes(d, n)
    more = np.where((d[:, None] >= 8) & (n[None, :] % 4 < 2), rough_routes((d + 8) % 16, n), 0).astype(np.float32)
    given = [r for t in (x0, v0[:, None] * every, x1, v1[:, None] * every, e, more) for r in tile(as_bits(t))]
    registers, stored = execute(sums.ROUGH_CHANNELS.value, [np.zeros(32, np.uint32)] * 8 + given)
    assert not stored
    found, places = as_float(registers["$0"]), tile(rough_places(d, n, 100))[0]
    expected = {**dict(enumerate(v0 @ x0)), **dict(enumerate(v1 @ x1, 100))}
    assert sorted(places) == sorted(expected)
    np.testing.assert_allclose(found, [expected[p] for p in places], atol=2**-7)
    at = (4 * rough_places(d, n, 100)).astype(np.uint32)
    index = np.arange(256).reshape(16, 16).astype(np.uint32)
    one = [np.zeros(32, np.uint32)] * 8 + [registers["$0"]] * 8 + tile(index) + tile(at)
    stored = run(sums.STORE_ROUGH.value, one)
    assert {p // 4: x for p, x in stored.items()} == pytest.approx(expected, rel=2**-7, abs=2**-7)


def rough_routes(d, n):
    """As `sums.rough_routes`, which uses Triton's bits."""
    which, g, t = d[:, None] // 8 * 4 + n[None, :] % 4, d[:, None] % 8, n[None, :] // 4
    e = np.where(which < 2, g == t + 4 * which, 0.0)
    return np.where((which >= 2) & (which < 6), (g % 4 == which - 2) * (1 + 2.0**-10), e).astype(np.float32)


def rough_places(d, n, size):
    return sums.rough_places.fn(d, n, size)


def test_cutting_to_11_bits_is_made_up_for():
    """On average over products, whose leading bits are not spread evenly."""
    x, y = np.random.default_rng(0).standard_normal((2, 2_000_000)).astype(np.float32)
    cut = as_float(as_bits(x * y) & np.uint32(0xFFFFE000)).astype(np.float64)
    lost = 1 - np.abs(cut).sum() / np.abs(x * y).astype(np.float64).sum()
    assert sums_asm.ONE_CUT.value * (1 - lost) == pytest.approx(1, abs=3e-5)
    assert sums_asm.TWO_CUT.value * (1 - lost) ** 2 == pytest.approx(1, abs=6e-5)


def test_steps_in_shared_memory():
    """What `put_steps` writes, `take_steps` and `take_step` read; no two lanes meet."""
    random = np.random.default_rng(0)
    dt, x, gy = random.standard_normal((3, 16, 16)).astype(np.float32)  # [step, channel]
    places = warp_memory.step_places.fn(np.arange(16))
    assert sorted(places) == [*range(0, 256, 16)]
    at = (256 * np.arange(16)[:, None] + places[None, :]).astype(np.uint32)
    # A lane has 4 channels of a step, and of the step 8 further on.
    lanes = [
        [t[GROUP + 8 * (i // 4), 4 * PART + i % 4] for i in range(8)]
        for t in (as_bits(dt), as_bits(x), as_bits(gy), at)
    ]
    given = [r for registers in lanes for r in registers]
    nothing = [np.zeros(32, np.uint32)] * 8
    shared = run(warp_memory.PUT.value, nothing + given)
    assert len(shared) == 1024
    registers, _ = execute(warp_memory.TAKE_ALL.value, nothing * 4 + lanes[3], shared)
    for k in range(3):
        for i in range(8):
            assert (registers[f"${8 * k + i}"] == lanes[k][i]).all()
    step = tile(np.broadcast_to(at[5][:, None], (16, 16)))
    registers, _ = execute(warp_memory.TAKE.value, nothing * 3 + step, shared)
    for k, t in enumerate((dt, x, gy)):
        expected = tile(as_bits(np.broadcast_to(t[5][:, None], (16, 16))))
        for i in range(8):
            assert (registers[f"${8 * k + i}"] == expected[i]).all()


def test_a_row_in_shared_memory():
    values = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    shared = {1000 + 4 * i: x for i, x in enumerate(values)}
    at = tile((1000 + np.arange(16) // 4 * 16 + np.zeros((16, 1))).astype(np.uint32))
    registers, _ = execute(warp_memory.TAKE_ROW.value, [np.zeros(32, np.uint32)] * 8 + at, shared)
    for i, expected in enumerate(tile(as_bits(np.broadcast_to(values, (16, 16))))):
        assert (registers[f"${i}"] == expected).all()


def test_planes_in_shared_memory():
    values = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)  # [step, channel]
    at = np.arange(0, 1024, 4).reshape(16, 16).astype(np.uint32)
    lanes = [[t[GROUP + 8 * (i // 4), 4 * PART + i % 4] for i in range(8)] for t in (as_bits(values), at)]
    nothing = [np.zeros(32, np.uint32)] * 8
    shared = run(warp_memory.PUT_PLANE.value, nothing + lanes[0] + lanes[1])
    assert [shared[i] for i in range(0, 1024, 4)] == values.flatten().tolist()
    registers, _ = execute(warp_memory.TAKE_PLANE.value, nothing + lanes[1], shared)
    for i in range(8):
        assert (registers[f"${i}"] == lanes[0][i]).all()


def test_tiles_kept_in_shared_memory():
    values = as_bits(np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32))
    at = tile(warp_memory.keep_places.fn(np.arange(16), np.arange(16)).astype(np.uint32))
    nothing = [np.zeros(32, np.uint32)] * 8
    shared = run(warp_memory.KEEP.value, nothing + tile(values) + at)
    assert sorted(shared) == [*range(0, 1024, 4)]
    registers, _ = execute(warp_memory.KEPT.value, nothing + at, shared)
    for i, expected in enumerate(tile(values)):
        assert (registers[f"${i}"] == expected).all()
