"""Shared memory of a one-warp program, which Triton has no way to address: inline PTX, in the layout that `sums` asks for.

A step of 16 channels has 16 x 16 bytes: before the sweep of `backward` (dt, x, gy, nothing) of each channel, after it (dt,
sum_n g B, y, sum_n w A); numbers that the sweep does not need lie in planes [steps, 16 channels]. Channel d of a step lies
at place d % 4 * 4 + d // 4, so that lanes which hold 4 channels in a row meet in two banks instead of four. Tiles that are
kept lie as lanes hold them: each is read back by the lane that wrote it.
"""

# Triton code: `if` on a constexpr must stand alone.
# mypy: ignore-errors

import triton
import triton.language as tl


def _names(count, first=0):
    return [f"${i}" for i in range(first, first + count)]


def _room_asm(size):
    """PTX: $0 to $7 are the address of `size` bytes."""
    lines = ["{", f".shared .align 16 .b8 room[{size}];", "mov.u32 $0, room;"]
    return "\n".join([*lines, *(f"mov.b32 {name}, $0;" for name in _names(7, 1)), "}"])


def _put_asm():
    lines = ["{", ".reg .f32 nothing;", "mov.f32 nothing, 0f00000000;"]
    for dt, x, gy, at in zip(_names(8, 8), _names(8, 16), _names(8, 24), _names(8, 32), strict=True):
        lines.append(f"st.shared.v4.f32 [{at}], {{{dt}, {x}, {gy}, nothing}};")
    return "\n".join([*lines, *(f"mov.b32 {name}, 0;" for name in _names(8)), "}"])


def _take_all_asm():
    return "\n".join(f"ld.shared.v4.f32 {{${i}, ${8 + i}, ${16 + i}, ${24 + i}}}, [${32 + i}];" for i in range(8))


def _take_asm():
    lines = ["{", ".reg .f32 a<4>, b<4>;"]
    lines += ["ld.shared.v4.f32 {a0, a1, a2, a3}, [$24];", "ld.shared.v4.f32 {b0, b1, b2, b3}, [$24+32];"]
    for k in range(3):
        lines += [f"mov.f32 ${8 * k + i}, {'a' if i < 4 else 'b'}{k};" for i in range(8)]
    return "\n".join([*lines, "}"])


def _take_row_asm():
    lines = ["ld.shared.v4.f32 {$0, $1, $2, $3}, [$8];", *(f"mov.f32 ${i + 4}, ${i};" for i in range(4))]
    return "\n".join(lines)


def _later_asm():
    """PTX of `later`: nothing of h is added to the numbers of both channels."""
    lines = [
        "{",
        ".reg .b32 z;",
        ".reg .f32 f, a, b;",
        "and.b32 z, $16, $24;",
        "mov.b32 f, z;",
        "add.f32 a, $8, f;",
        "add.f32 b, $12, f;",
    ]
    lines += [f"mov.f32 ${i}, {'a' if i < 4 else 'b'};" for i in range(8)]
    return "\n".join([*lines, "}"])


def _keep_asm():
    low, high = (", ".join(_names(4, first)) for first in (8, 12))
    lines = [f"st.shared.v4.f32 [$16], {{{low}}};", f"st.shared.v4.f32 [$16+512], {{{high}}};"]
    return "\n".join([*lines, *(f"mov.b32 {name}, 0;" for name in _names(8))])


def _put_plane_asm():
    """In rows of 4 elements, which the lane must hold side by side; where it does not, it writes NaN."""
    x, at = _names(8, 8), _names(8, 16)
    lines = ["{", ".reg .pred bad;", ".reg .b32 end;", ".reg .f32 first;"]
    lines += [
        f"add.s32 end, {at[0]}, 12;",
        f"setp.ne.s32 bad, {at[3]}, end;",
        f"selp.f32 first, 0f7FC00000, {x[0]}, bad;",
    ]
    lines.append(f"st.shared.v4.f32 [{at[0]}], {{first, {', '.join(x[1:4])}}};")
    lines.append(f"st.shared.v4.f32 [{at[4]}], {{{', '.join(x[4:])}}};")
    return "\n".join([*lines, *(f"mov.b32 {name}, 0;" for name in _names(8)), "}"])


def _take_plane_asm():
    return "\n".join(f"ld.shared.f32 ${i}, [${8 + i}];" for i in range(8))


def _place_asm():
    lines = [f"st.shared.f32 [${16 + i}], ${8 + i};" for i in range(8)]
    return "\n".join([*lines, *(f"mov.b32 {name}, 0;" for name in _names(8))])


def _kept_asm():
    low, high = (", ".join(_names(4, first)) for first in (0, 4))
    return "\n".join([f"ld.shared.v4.f32 {{{low}}}, [$8];", f"ld.shared.v4.f32 {{{high}}}, [$8+512];"])


def _constraints(tiles, out, *kinds):
    return ",".join([out] * (8 * tiles) + [kind for kind in kinds for _ in range(8)])


ROOM_8, ROOM_12, ROOM_16, ROOM_20, ROOM_24, ROOM_26, ROOM_32, ROOM_38, ROOM_44 = (
    tl.constexpr(_room_asm(kb << 10)) for kb in (8, 12, 16, 20, 24, 26, 32, 38, 44)
)
ROOM_CONSTRAINTS = tl.constexpr(_constraints(1, "=r", "r"))
PUT = tl.constexpr(_put_asm())
PUT_CONSTRAINTS = tl.constexpr(_constraints(1, "=r", "f", "f", "f", "r"))
TAKE_ALL = tl.constexpr(_take_all_asm())
TAKE_ALL_CONSTRAINTS = tl.constexpr(_constraints(4, "=f", "r"))
TAKE = tl.constexpr(_take_asm())
TAKE_CONSTRAINTS = tl.constexpr(_constraints(3, "=f", "r"))
TAKE_ROW = tl.constexpr(_take_row_asm())
LATER = tl.constexpr(_later_asm())
LATER_CONSTRAINTS = tl.constexpr(_constraints(1, "=f", "f", "r", "r"))
KEEP = tl.constexpr(_keep_asm())
KEEP_CONSTRAINTS = tl.constexpr(_constraints(1, "=r", "f", "r"))
PUT_PLANE = tl.constexpr(_put_plane_asm())
TAKE_PLANE = tl.constexpr(_take_plane_asm())
TAKE_PLANE_CONSTRAINTS = tl.constexpr(_constraints(1, "=&f", "r"))
PLACE = tl.constexpr(_place_asm())
KEPT = tl.constexpr(_kept_asm())
KEPT_CONSTRAINTS = tl.constexpr(_constraints(1, "=f", "r"))


@triton.jit
def shared_room(tile, SIZE: tl.constexpr):
    """The address of SIZE bytes, int32; `tile` is any tile [16, 16] of integers."""
    tl.static_assert(SIZE <= 45056)
    if SIZE <= 8192:
        room = tl.inline_asm_elementwise(ROOM_8, ROOM_CONSTRAINTS, [tile], dtype=tl.int32, is_pure=False, pack=8)
    elif SIZE <= 12288:
        room = tl.inline_asm_elementwise(ROOM_12, ROOM_CONSTRAINTS, [tile], dtype=tl.int32, is_pure=False, pack=8)
    elif SIZE <= 16384:
        room = tl.inline_asm_elementwise(ROOM_16, ROOM_CONSTRAINTS, [tile], dtype=tl.int32, is_pure=False, pack=8)
    elif SIZE <= 20480:
        room = tl.inline_asm_elementwise(ROOM_20, ROOM_CONSTRAINTS, [tile], dtype=tl.int32, is_pure=False, pack=8)
    elif SIZE <= 24576:
        room = tl.inline_asm_elementwise(ROOM_24, ROOM_CONSTRAINTS, [tile], dtype=tl.int32, is_pure=False, pack=8)
    elif SIZE <= 26624:
        room = tl.inline_asm_elementwise(ROOM_26, ROOM_CONSTRAINTS, [tile], dtype=tl.int32, is_pure=False, pack=8)
    elif SIZE <= 32768:
        room = tl.inline_asm_elementwise(ROOM_32, ROOM_CONSTRAINTS, [tile], dtype=tl.int32, is_pure=False, pack=8)
    elif SIZE <= 38912:
        room = tl.inline_asm_elementwise(ROOM_38, ROOM_CONSTRAINTS, [tile], dtype=tl.int32, is_pure=False, pack=8)
    else:
        room = tl.inline_asm_elementwise(ROOM_44, ROOM_CONSTRAINTS, [tile], dtype=tl.int32, is_pure=False, pack=8)
    return tl.max(tl.max(room, axis=1), axis=0)


@triton.jit
def step_places(d):
    """Bytes from the start of a step to channel d."""
    return (d % 4 * 4 + d // 4) * 16


@triton.jit
def keep_places(lane_d, n):
    """Bytes from the start of a kept tile to what a lane keeps there, by the lane's first element."""
    return (lane_d[:, None] % 8 * 4 + n[None, :] // 4) * 16


@triton.jit
def put_steps(dt, x, gy, at):
    """Writes 16 steps of 16 channels; at: addresses, one an element. 8 elements a lane."""
    tl.inline_asm_elementwise(PUT, PUT_CONSTRAINTS, [dt, x, gy, at], dtype=tl.int32, is_pure=False, pack=8)


@triton.jit
def put_plane(x, at):
    """Writes 16 steps of 16 channels, one number each; at: addresses, those of 4 channels side by side."""
    tl.inline_asm_elementwise(PUT_PLANE, KEEP_CONSTRAINTS, [x, at], dtype=tl.int32, is_pure=False, pack=8)


@triton.jit
def take_plane(at):
    """One number of each element."""
    return tl.inline_asm_elementwise(TAKE_PLANE, TAKE_PLANE_CONSTRAINTS, [at], dtype=tl.float32, is_pure=False, pack=8)


@triton.jit
def take_row(at):
    """[16 channels, 16 states] of 16 states; at: [16, 16], a lane's first is of its first state."""
    return tl.inline_asm_elementwise(TAKE_ROW, KEPT_CONSTRAINTS, [at], dtype=tl.float32, is_pure=False, pack=8)


@triton.jit
def later(dt, h, zeros):
    """dt, but not before h is there; zeros: a tile whose first register the compiler does not know to be 0.

    It would put the exponentials of all steps of a block first, and a warp waits 8 clocks for each that follows another.
    """
    return tl.inline_asm_elementwise(
        LATER, LATER_CONSTRAINTS, [dt, h.to(tl.int32, bitcast=True), zeros], dtype=tl.float32, is_pure=True, pack=8
    )


@triton.jit
def take_steps(at):
    """The four numbers of each element."""
    return tl.inline_asm_elementwise(
        TAKE_ALL, TAKE_ALL_CONSTRAINTS, [at],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=False, pack=8,
    )  # fmt: skip


@triton.jit
def take_step(at):
    """(dt, x, gy) of one step, as tiles [16 channels, 16 states]; at: [16, 16], a lane's first is of its first channel."""
    return tl.inline_asm_elementwise(
        TAKE, TAKE_CONSTRAINTS, [at], dtype=(tl.float32, tl.float32, tl.float32), is_pure=False, pack=8
    )


@triton.jit
def keep_tile(x, at):
    """Writes a tile [16, 16] to 1024 bytes; at: [16, 16], with `keep_places`."""
    tl.inline_asm_elementwise(KEEP, KEEP_CONSTRAINTS, [x, at], dtype=tl.int32, is_pure=False, pack=8)


@triton.jit
def place_tile(x, d, n, at):
    """Writes a tile of any layout to where `kept_tile` reads it, at an address. Wants a barrier behind it."""
    at += (d[:, None] // 8 * 128 + (d[:, None] % 8 * 4 + n[None, :] // 4) * 4 + n[None, :] % 4) * 4
    tl.inline_asm_elementwise(PLACE, KEEP_CONSTRAINTS, [x, at], dtype=tl.int32, is_pure=False, pack=8)


@triton.jit
def kept_tile(at):
    return tl.inline_asm_elementwise(KEPT, KEPT_CONSTRAINTS, [at], dtype=tl.float32, is_pure=False, pack=8)
