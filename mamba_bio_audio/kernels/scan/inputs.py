"""What a scan is given, as one value: its arguments, the case that the kernels are compiled for, its plan on the machine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_STATES = 256
_ACTIVATIONS = (torch.bfloat16, torch.float16, torch.float32)
# Below this many warps per scheduler one pass leaves too much of the machine idle, and two passes over chunks that fill
# it are faster. Forward: kernels-design.md section 4. Backward of real selective scans: two warps a scheduler hide each
# other's latency, and chunks cost it a tenth (benchmarks/results/selective_scan_backward_plans_h100.csv).
_SPLIT_BELOW = 0.53
_SPLIT_BACKWARD_BELOW = 1.5
_MIN_CHUNK_STEPS = 256
MAX_ROOM = 44 << 10  # of the 48 KB of shared memory that a kernel may have without asking the driver for more
# Warps on a scheduler of a sequence in chunks. In backward more of them than fit at once still pay, as the last of them
# then leave less of the machine idle (benchmarks/results/selective_scan_chunks_h200.txt).
_PER_SCHEDULER = 8
_PER_SCHEDULER_BACKWARD = 16
# Half as many chunks, where they are so long then, are summed from their ends, which reads less of them the longer they are
# and the faster states decay (`chunks`). In shorter ones nearly all is read, and that slower; with few warps a scheduler the
# one that reads most holds up the others (docs/log.md).
_ENDS_FROM = 4096


# Of backward: up to how many chunks of a sequence one wave of two warps a scheduler pays, as the pass over chunks leaves one of
# so many out (benchmarks/results/scan_second_leap_h200/trials_3.txt; forward with one warp a scheduler loses more than that).
_FEW = 8
_WAVE = 2
# Longest sequence that one launch takes forward faster than chunks, if all programs run at once.
_SHORT = 2048
_SHORT_CHANNELS = 8
# Warps a scheduler, each of 16 channels, between which two lanes a channel (`lanes`) are faster forward: 0.97 take 8 to 12 %
# less time than chunks, 1.45 and 1.94 10 to 20 % less than one lane a channel; 7.8 take 11 % more
# (benchmarks/results/scan_second_leap_h200/lanes.txt).
_LANE_CHANNELS = 16
_LANE_STEPS = 8
_LANES_FROM = 0.9
_LANES_TO = 2.0


class ScanInputs(NamedTuple):
    """The arguments of `mamba_bio_audio.ops.selective_scan`, in its shapes and with its meanings."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    dt_bias: Tensor | None = None
    h0: Tensor | None = None
    reset: Tensor | None = None
    dt_softplus: bool = True
    exact_zoh: bool = False
    precise: bool = False

    @property
    def tensors(self) -> tuple[Any, ...]:
        """The arguments that have a gradient, in order; None for those that are absent."""
        return self[:9]

    def with_tensors(self, *tensors: Any) -> ScanInputs:
        """The same call on other values of `tensors`."""
        return ScanInputs._make((*tensors, *self[9:]))

    @property
    def state_dtype(self) -> torch.dtype:
        """Of the state and of all sums."""
        return torch.float64 if torch.float64 in [t.dtype for t in self.tensors if t is not None] else torch.float32

    @property
    def case(self) -> Case:
        """What the kernels are compiled for."""
        fixed = self.A.ndim  # (D, N[, 2]) against (B, L, N[, 2])
        kind = (self.A.ndim == 3, self.dt.ndim == 1, self.B.ndim == fixed, self.C.ndim == fixed, self.exact_zoh)
        given = (t is not None for t in (self.D, self.z, self.dt_bias, self.reset))
        return case_of(*kind, not any(kind), self.dt_softplus, self.precise, *given)


@dataclass(frozen=True, repr=False)
class Case:
    """A kernel's compile-time case; an argument of the kernels as a whole (`CASE: tl.constexpr`).

    Attributes:
        complex: A, B, C and the state are complex.
        dt_lti, B_lti, C_lti: dt, B or C does not depend on time.
        exact: the input is held exactly (`exact_zoh`).
        plain: none of these: the real selective scan of Mamba.
        softplus, precise: as the arguments of the scan.
        skip, gate, bias, reset: D, z, dt_bias or reset is given.
    """

    complex: bool = False
    dt_lti: bool = False
    B_lti: bool = False
    C_lti: bool = False
    exact: bool = False
    plain: bool = True
    softplus: bool = True
    precise: bool = False
    skip: bool = False
    gate: bool = False
    bias: bool = False
    reset: bool = False

    def __post_init__(self) -> None:
        # Every launch looks it up several times, and to add up a hash of all fields takes longer than that.
        object.__setattr__(self, "_hash", hash(tuple(getattr(self, f.name) for f in fields(self))))

    def __hash__(self) -> int:
        """Of its fields."""
        return self._hash  # type: ignore[attr-defined,no-any-return]

    def __repr__(self) -> str:
        """Whatever is true of it: Triton keeps compiled kernels under this name, on disk as well."""
        return "_".join(name for name in (*(f.name for f in fields(self)), "ahead") if getattr(self, name)) or "none"

    @property
    def parts(self) -> int:
        """Real numbers per state."""
        return 2 if self.complex else 1

    @property
    def ahead(self) -> bool:
        """Whether the loops of forward load a block of steps ahead: where registers are left for it."""
        return not self.exact and (not self.complex or (self.B_lti and self.C_lti))


case_of = cache(Case)  # every call needs one, and making it takes longer than finding it


def complex_numbers(t: Tensor) -> Tensor:
    """(..., 2) as complex (...): a copy, as a view wants even addresses, and torch.compile cannot ask for them."""
    return torch.complex(*t.unbind(-1))


def unsupported_reason(s: ScanInputs) -> str | None:
    """Why the kernels cannot run this call, or None where they can. Device and shapes are the caller's affair."""
    if s.A.shape[1] > MAX_STATES:
        return f"more than {MAX_STATES} states"
    for t in (s.u, s.z, s.dt if s.dt.ndim == 3 else None):
        if t is not None and t.dtype not in _ACTIVATIONS:
            return f"{t.dtype} activations"
    if s.state_dtype == torch.float64:
        return "float64 parameters or states"
    return None


@dataclass(frozen=True)
class Plan:
    """How one call lies on the machine. `chunks` > 1 splits the sequence, `chunk_steps` long each; `ends`: see `chunks`.

    States are kept every `segment` steps; backward makes those of every `bwd_segment` steps from them if that is less.
    The pass over chunks of backward goes in `bwd_pieces` of them, and leaves out those on which nothing depends: with few
    chunks, that is much of its work. Where `short` is not 0, forward goes in one launch (`short`), of programs of so many
    channels and `short_warps` warps. Where `lanes`, or in inference `lanes_inference`, is not 0, forward has a channel's states
    in two lanes (`lanes`) and goes by blocks of so many steps.
    """

    chunks: int
    chunk_steps: int
    fwd_block: int
    fwd_warps: int
    fwd_unroll: int
    state_block: int
    state_warps: int
    state_unroll: int
    bwd_chunks: int
    bwd_chunk_steps: int
    bwd_block: int
    bwd_vec: int
    far: int
    warp_sums: bool = False
    bwd_unroll: int = 4
    group: int = 8
    segment: int = 16
    bwd_segment: int = 16
    rows: int = 16
    fwd_registers: int | None = None
    bwd_registers: int | None = None
    ends: bool = False
    bwd_ends: bool = False
    bwd_pieces: int = 1
    short: int = 0
    short_warps: int = 16
    short_unroll: int = 2
    lanes: int = 0
    lanes_inference: int = 0


@cache
def schedulers(device: torch.device) -> int:
    """Warp schedulers of a device."""
    if device.type != "cuda":
        return 528  # the interpreter plans as for an H100
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count


def padded_states(states: int) -> int:
    """The next power of two, at least 2."""
    return max(1 << (states - 1).bit_length(), 2)


def _split(
    wanted: int | None, length: int, warps: int, schedulers: int, segment: int, per_scheduler: int, below: float
) -> tuple[int, int]:
    """(chunks, steps per chunk), with about as many chunks as wanted.

    If `wanted` is None: one chunk from `below` warps per scheduler on, otherwise enough for at most `per_scheduler` on each.
    """
    chunks, warps = 1 if wanted is None else wanted, max(warps, 1)  # an empty batch has none
    if wanted is None and warps < below * schedulers:
        # One warp more than a scheduler can take in whole rounds would make the rest of the machine wait for it.
        chunks = min(per_scheduler * schedulers // warps, -(-length // _MIN_CHUNK_STEPS))
    steps = -(-length // chunks // segment) * segment
    return -(-length // steps), steps


@lru_cache(maxsize=1024)
def make_plan(
    batch: int,
    length: int,
    channels: int,
    states: int,
    device: torch.device,
    case: Case = Case(),
    *,
    chunks: int | None = None,
    bwd_chunks: int | None = None,
    **changes: Any,
) -> Plan:
    """The default plan of a call, with `chunks` (both directions), `bwd_chunks` or any other field overridden."""
    padded, parts = padded_states(states), case.parts
    segment = changes.get("segment", Plan.segment)
    fields: dict[str, Any] = {}
    if padded * parts <= 32:
        wide = channels >= 128
        fields |= {"fwd_block": 128 if wide else 32, "fwd_warps": 4 if wide else 1}
        fields |= {"fwd_unroll": 4 if padded <= 16 else 2, "state_unroll": 4}
    else:
        # One warp with at most 16 pairs or 32 real states of a channel in a lane, the rest of them in other lanes.
        fields |= {"fwd_block": 1024 // (padded * parts), "fwd_warps": 1, "fwd_unroll": 2, "state_unroll": 2}
    fields |= {"state_block": fields["fwd_block"], "state_warps": fields["fwd_warps"]}
    if case.exact:  # as many instructions as several steps without
        fields |= {"fwd_unroll": 1, "state_unroll": 1}
    # 256 elements of a tile in one warp: 2 channels x 4 states in each lane of a 16 x 16 tile.
    block = changes.get("bwd_block", min(max(256 // padded, 4 // parts), 32))
    # A block of steps holds its factors in registers; with a fixed dt no step may lie past the end.
    unroll = (2 if case.exact else Plan.bwd_unroll) // parts
    while case.dt_lti and length % unroll:
        unroll //= 2
    fields |= {"bwd_block": block, "bwd_vec": min(4, padded), "bwd_unroll": changes.get("bwd_unroll", unroll)}
    paired = fields["bwd_unroll"] % 2 == 0 or not case.plain
    warp_sums = device.type == "cuda" and states == block == 16 and paired

    def room(steps: int) -> int:
        """Bytes of shared memory for what they keep of a segment, whole tiles of it."""
        maps = parts * 64 * (2 - case.B_lti - case.C_lti)
        return max(steps, Plan.rows) * (384 + maps) + steps // fields["bwd_unroll"] * parts * 1024

    # Where the states that are kept lie too far apart, backward makes finer ones.
    inner = changes.get("bwd_segment", segment)
    if "bwd_segment" not in changes and warp_sums and case.plain:
        while room(inner) > MAX_ROOM and inner % 2 == 0:
            inner //= 2
    fields |= {"bwd_segment": inner, "warp_sums": warp_sums and room(inner) <= MAX_ROOM}
    fields["rows"] = Plan.rows if changes.get("warp_sums", fields["warp_sums"]) else min(Plan.rows, inner)

    warps = batch * -(-channels // min(fields["fwd_block"], 32))
    bwd_warps = batch * -(-channels // block)

    def split(wanted: int | None, warps: int, most: int, below: float) -> tuple[int, int, bool]:
        # Step sizes are not negative, so a decay that is nothing stays so.
        if case.plain and case.softplus and not case.precise and padded == 16:
            count, steps = _split(wanted, length, warps, schedulers(device), segment, most // 2, below)
            if count * warps > (most // 2 - 1) * schedulers(device) and count > 1 and steps >= _ENDS_FROM:
                return count, steps, True
        return *_split(wanted, length, warps, schedulers(device), segment, most, below), False

    fields["chunks"], fields["chunk_steps"], fields["ends"] = split(chunks, warps, _PER_SCHEDULER, _SPLIT_BELOW)
    fields["bwd_chunks"], fields["bwd_chunk_steps"], fields["bwd_ends"] = split(
        bwd_chunks if bwd_chunks is not None else chunks,
        bwd_warps,
        _PER_SCHEDULER_BACKWARD if case.plain else _PER_SCHEDULER,
        _SPLIT_BACKWARD_BELOW if case.plain and fields["warp_sums"] else _SPLIT_BELOW,
    )
    count, wave = fields["bwd_chunks"], _WAVE * schedulers(device)
    few = wave // max(bwd_warps, 1)
    free = case.plain and bwd_chunks is None and chunks is None and not fields["bwd_ends"]
    if free and 1 < few < count and few <= _FEW and few * bwd_warps >= 0.9 * wave:
        pieces = count // few
        steps = -(-length // (few * pieces * segment)) * pieces * segment
        fields |= {"bwd_chunks": -(-length // steps), "bwd_chunk_steps": steps, "bwd_pieces": pieces}
    in_lanes = batch * channels / _LANE_CHANNELS / schedulers(device)  # warps a scheduler
    fast = case.plain and not case.precise and states == 16 and channels % _LANE_CHANNELS == 0
    whole = segment % _LANE_STEPS == 0 and length >= _LANE_STEPS
    if fast and whole and chunks is None and not fields["ends"] and _LANES_FROM <= in_lanes <= _LANES_TO:
        fields |= {"chunks": 1, "chunk_steps": -(-length // segment) * segment}
        fields["lanes"] = _LANE_STEPS
        fields["lanes_inference"] = _LANE_STEPS
    single = fields["chunks"] == 1
    if case.plain and fields["fwd_block"] == 128 and (single or fields["ends"]):
        fields |= {"fwd_block": 64, "fwd_warps": 2}  # 4 to 5 % faster; in many short chunks nothing changes
    programs = batch * -(-channels // _SHORT_CHANNELS)  # of one launch, one a multiprocessor
    brief = case.plain and not case.precise and states <= 16 and length <= _SHORT and 4 * programs <= schedulers(device)
    if brief and chunks is None and not single:
        fields["short"] = _SHORT_CHANNELS
    # Where many warps share a scheduler they hide DRAM themselves, and the prefetches only cost instructions.
    fields["far"] = 32 if single else 0
    return Plan(**(fields | changes))
