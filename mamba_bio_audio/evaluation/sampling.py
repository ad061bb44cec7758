"""Fits how symbols are drawn: a temperature by likelihood, and temperature, top-p or min-p and hold by what comes out.

    T* = argmin over T of  -sum over validation symbols of log softmax(logits / T)[symbol]       (Guo et al. 2017)

T* says whether the model is as sure of itself as it is right. Training minimises the same sum, so T* is near 1 for large
models; small or briefly trained ones cannot make their logits as sharp as they are right (`audio/tiny`: 0.7). It says nothing
about what happens once the model reads its own symbols, where errors add up. Therefore pieces are generated at every cell of
a grid of temperatures around T* and of what is cut off, all in one batch, and compared with recorded ones by what the domain
measures (`Domain.matcher`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference import cpu_decoder
from mamba_bio_audio.inference.best import PARTS
from mamba_bio_audio.inference.decoding import GraphSteps, steps
from mamba_bio_audio.inference.generate import inverse, tempered, truncated
from mamba_bio_audio.inference.held import Held
from mamba_bio_audio.inference.uniforms import uniforms

# Temperatures at which validation data are scored; the best is refined between its neighbours.
TEMPERATURES = tuple(round(0.5 + 0.05 * step, 2) for step in range(21))
# The grid: top-p, min-p, and about which temperature, in units of the one by likelihood: the more is cut off, the higher, and
# with hold, which calms, higher still. A sample in thousand decides on clicks, and a sample in a hundred on whether the sound
# dies away.
CUTS = (
    (1.0, 0.0, 0.95),
    (0.999, 0.0, 1.0),
    (0.995, 0.0, 1.0),
    (0.99, 0.0, 1.05),
    (0.98, 0.0, 1.1),
    (1.0, 0.015, 1.035),
    (1.0, 0.03, 1.12),
    (1.0, 0.05, 1.22),
    (1.0, 0.08, 1.32),
    (1.0, 0.1, 1.37),
    (1.0, 0.13, 1.44),
)
AROUND = (1.04, 1.0, 0.96)
HOLDS = (0.0, 0.3, 0.6)
_HOTTER = 0.05
# Where between two temperatures of the grid its nearest settings are tried again. From one temperature to the next the level
# of piano changes by 2 to 3 dB, and recordings of ten seconds differ by 6.
BETWEEN = (0.25, 0.75)
_PIECE = 1 << 14
_BLOCK = 1024


class Calibration(NamedTuple):
    """Validation likelihood against temperature.

    Attributes:
        temperature: at which it is best.
        nats: per symbol, at each of `TEMPERATURES`.
        symbols: that were scored.
    """

    temperature: float
    nats: dict[float, float]
    symbols: int


def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    allowed: Sequence[int],
    *,
    progress: Callable[[int, int | None], None] | None = None,
) -> Calibration:
    """The temperature at which validation symbols are most probable.

    Args:
        model: language model, on its device; runs in fp32.
        batches: with "tokens" and "targets" (B, L), -100 where nothing is scored; each row begins a sequence.
        allowed: ids that may be drawn; targets that are others are not scored.
        progress: called with (batches done, None).
    """
    device = next(model.parameters()).device
    ids = torch.tensor(allowed, device=device)
    place = torch.full((int(ids.max()) + 1,), -1, device=device)
    place[ids] = torch.arange(len(ids), device=device)
    nats, count = torch.zeros(len(TEMPERATURES), dtype=torch.float64, device=device), 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for done, batch in enumerate(batches, start=1):
                state = None
                size = max(1, _PIECE // len(batch["tokens"]))
                for tokens, targets in zip(
                    batch["tokens"].split(size, 1), batch["targets"].split(size, 1), strict=True
                ):
                    if getattr(model, "streaming", "none") == "constant":
                        output = model(tokens.to(device), state)
                        state = output.state
                    else:
                        output = model(tokens.to(device))
                    wanted = targets.to(device).flatten()
                    known = (wanted >= 0) & (wanted < len(place))
                    index = place[wanted.where(known, ids[0])]
                    known &= index >= 0
                    logits = output.logits.flatten(0, 1)[known].index_select(1, ids).float()
                    index = index[known]
                    own = logits.gather(1, index[:, None])[:, 0]
                    count += len(index)
                    for number, temperature in enumerate(TEMPERATURES):
                        terms = (logits / temperature).logsumexp(1) - own / temperature
                        nats[number] += terms.sum(dtype=torch.float64)
                if progress is not None:
                    progress(done, None)
    finally:
        model.train(was_training)
    if not count:
        raise InputError("the validation split has no symbol that can be drawn; check the splits")
    values = (nats / count).tolist()
    return Calibration(_lowest(TEMPERATURES, values), dict(zip(TEMPERATURES, values, strict=True)), count)


def _lowest(at: Sequence[float], values: Sequence[float]) -> float:
    """Where the parabola through the lowest value and its neighbours is lowest."""
    best = min(range(len(values)), key=values.__getitem__)
    if not 0 < best < len(values) - 1:
        return at[best]
    before, here, after = values[best - 1 : best + 2]
    bend = before - 2 * here + after
    shift = 0.5 * (before - after) / bend if bend > 0 else 0.0
    return round(at[best] + shift * (at[best + 1] - at[best]), 3)


class Cell(NamedTuple):
    """A way to draw."""

    temperature: float
    top_p: float
    min_p: float = 0.0
    hold: float = 0.0

    @property
    def options(self) -> dict[str, float | None]:
        """As options of `generate`."""
        return {
            "temperature": self.temperature,
            "top_p": None if self.top_p == 1 else self.top_p,
            "min_p": self.min_p or None,
            "hold": self.hold or None,
        }


def grid(temperature: float, holds: Sequence[float] = (0.0,)) -> list[Cell]:
    """The cells that are tried."""
    return [
        Cell(round(temperature * middle * share * (1 + _HOTTER * hold), 2), top_p, min_p, hold)
        for hold, (top_p, min_p, middle), share in itertools.product(holds, CUTS, AROUND)
    ]


def nearest(tried: Mapping[Cell, float], intervals: int) -> list[Cell]:
    """Cells to try again: between neighbouring temperatures that are both near, the nearest first.

    One cell that came out near by chance, or has but a narrow range of temperatures, has neighbours that are far.

    Args:
        tried: distance of each cell of a grid.
        intervals: how many pairs of neighbours.
    """
    ordered = sorted(tried, key=lambda cell: (*cell[1:], cell.temperature))
    pairs = [pair for pair in itertools.pairwise(ordered) if pair[0][1:] == pair[1][1:]]
    pairs.sort(key=lambda pair: tried[pair[0]] + tried[pair[1]])
    return [
        low._replace(temperature=round(low.temperature + share * (high.temperature - low.temperature), 3))
        for low, high in pairs[:intervals]
        for share in BETWEEN
    ]


class _Draw:
    """Draws symbols (R,) from logits (R, V), or those of `Held`, each row in its own way."""

    def __init__(self, allowed: Tensor, rows: Sequence[Cell], held: bool) -> None:
        self.allowed, self.held, device = allowed, held, allowed.device
        column = {"dtype": torch.float64, "device": device}
        self.temperature = torch.tensor([[cell.temperature] for cell in rows], **column)  # type: ignore[arg-type]
        self.top_p = torch.tensor([[cell.top_p] for cell in rows], **column)  # type: ignore[arg-type]
        self.min_p = torch.tensor([[cell.min_p] for cell in rows], **column)  # type: ignore[arg-type]

    def __call__(self, logits: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """As `generate` draws, with the log-probabilities at temperature 1."""
        factor = logits[:, -1:].double() if self.held else 1.0
        logits = logits.index_select(1, self.allowed).double()
        p = truncated(tempered(logits, self.temperature * factor), top_p=self.top_p, min_p=self.min_p)
        index = inverse(p, draws)
        return self.allowed[index], logits.log_softmax(1).gather(1, index[:, None])[:, 0]


def pieces(
    model: Any,
    cells: Sequence[Cell],
    *,
    length: int,
    each: int,
    seed: int,
    first: int = 0,
    valid_nats: float | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[list[list[Any]], NDArray[np.float64]]:
    """Pieces generated in every cell, all cells in one batch; the same uniform numbers for piece i of every cell.

    Args:
        model: language model with a codec and a state that is carried, on its device.
        cells: ways to draw.
        length: symbols of each piece.
        each: pieces per cell.
        seed: of the uniform numbers.
        first: row of the first piece of each cell.
        valid_nats: per symbol of validation data; cells with hold need it.
        progress: called with (steps done, steps in all).

    Returns:
        For each cell its pieces, integer arrays (length,), and the log-likelihood of the eighths of each at temperature 1
        (cells, each, 8).
    """
    device = next(model.parameters()).device
    rows = [cell for cell in cells for _ in range(each)]
    ids, held = torch.tensor(model.codec.sample_ids, device=device), any(cell.hold for cell in cells)
    draw = _Draw(ids, rows, held)
    if held:
        assert valid_nats is not None
        gain = torch.tensor([[cell.hold] for cell in rows], dtype=torch.float64, device=device)
        model = Held(model, gain, valid_nats, ids)
    advance: Any = partial(steps, model, draw)
    if device.type == "cuda" and getattr(model, "streaming", "none") == "constant":
        advance = GraphSteps(model, draw)
    elif device.type == "cpu" and cpu_decoder.unsupported_reason(model, len(rows)) is None:
        advance = cpu_decoder.CpuDecoder(model, len(rows), draw.allowed, choose=draw)
    found = torch.empty(len(rows), length, dtype=torch.int32)

    def numbers(low: int, size: int) -> Tensor:
        drawn = torch.from_numpy(uniforms(seed, range(first, first + each), low, size)).T.repeat(1, len(cells))
        return drawn.to(device).contiguous()

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            prefix = torch.full((len(rows), 1), model.codec.start_id, device=device)
            # A start token is in no table of symbols: the model itself reads it.
            output = model(prefix, None, logits="last")
            symbol, score = draw(output.logits[:, -1], numbers(0, 1)[0])
            last, state = symbol[:, None], output.state
            found[:, 0] = symbol.cpu()
            along = torch.zeros(len(rows), PARTS, dtype=torch.float64)
            along[:, 0] = score.cpu()
            for low in range(1, length, _BLOCK):
                size = min(_BLOCK, length - low)
                symbols, scores, state = advance(last, state, numbers(low, size))
                last = symbols[-1][:, None]
                found[:, low : low + size] = symbols.T.cpu()
                along.index_add_(1, torch.arange(low, low + size) * PARTS // length, scores.T.cpu())
                if progress is not None:
                    progress(low + size, length)
    finally:
        model.train(was_training)
    if not torch.isfinite(along).all():
        raise FloatingPointError("the model's logits become NaN or infinite; use other weights")
    arrays = found.numpy().astype(np.int64)
    grouped = [list(arrays[at : at + each]) for at in range(0, len(rows), each)]
    return grouped, along.reshape(len(cells), each, PARTS).numpy()


def bits(nats: float) -> float:
    """Nats in bits."""
    return nats / math.log(2)
