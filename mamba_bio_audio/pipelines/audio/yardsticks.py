"""What a model of audio has to beat: tables of levels, and adaptive linear prediction.

    unigram, order k    p_k(x | w) = (c(w x) + a p_{k-1}(x | w')) / (c(w) + a),  counts of the training split
    LPC                 p(level) = (1 - e) [Phi((upper - m) / s) - Phi((lower - m) / s)] + e / Q

with w the k levels before (the zero level before the first), w' the same without the oldest, a chosen on validation. In
LPC m is the prediction from the samples before, as many as its order, by coefficients of a window of samples before the
current block of 256 (autocorrelation method, Levinson's recursion; Makhoul 1975), s the running scale of the error, Phi the
normal distribution, and the integral goes over the level's own range of samples. Everything adapts backwards: nothing that is
scored has been seen. LPC-32 has order 32, a window of 2,048 and a scale of half-life 32 samples; of "LPC, tuned" the three are
chosen on validation, doubled and halved until nothing more is gained. Of music an order of some hundreds, which resolves
single partials, is worth half a bit and more.

What they answer: the tables, how much the levels' own statistics tell; LPC, how much a resonant filter tells that knows
nothing of music or speech. Bits of two quantisers do not compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.spans import Span
from mamba_bio_audio.pipelines.windows import tile

if TYPE_CHECKING:  # it brings Lightning along
    from mamba_bio_audio.pipelines.data import DataModule

Levels = NDArray[np.uint8 | np.int16]
_PIECE = 1 << 22
_BLOCK = 256


class Linear(NamedTuple):
    """What linear prediction is made of, all in samples."""

    order: int = 32
    window: int = 2048
    half_life: int = 32

    @property
    def context(self) -> int:
        """Behind so many nothing is left of where it began: its window is full, its scale has decayed."""
        return 2 * self.window


LPC_32, TUNED = Linear(), "LPC, tuned"
# Where the search for the best ends: orders beyond take minutes.
_LARGEST, _SMALLEST = Linear(1024, 32_768, 256), Linear(8, 512, 1)
# Bits that a further step has to gain.
_LEAST_GAIN = 1e-3
_SMALLEST_SCALE, _ESCAPE = 1e-5, 1e-3
_SMOOTHING = (0.5, 2.0, 8.0, 32.0, 128.0, 512.0)
# The smoothing, one number, is chosen on about this many samples of validation.
_CHOICE_SAMPLES = 1 << 19
# Linear prediction is tuned on so many stretches of so many samples at most.
_STRETCHES, _STRETCH = 4, 1 << 18
# The largest table of counts: order 2 at 8 bits, order 1 at 12.
_MAX_TABLE = 1 << 24


class Yardsticks(NamedTuple):
    """What simple models reach on a split.

    Attributes:
        bits: per sample, of each by name.
        samples: how many they are over.
        tuned: order, window and half-life of the tuned linear prediction.
        edges: those that are the largest or smallest tried, so that a better one may lie beyond.
    """

    bits: dict[str, float]
    samples: int
    tuned: Linear
    edges: list[str]


def yardsticks(data: DataModule, split: str, part: Iterable[Span] | None = None) -> Yardsticks:
    """Bits per sample of each yardstick on a split, tables first.

    Args:
        data: set up; its training and validation splits are not empty.
        split: train, valid or test.
        part: windows of the split, to score these alone; what stands before them is context as it is for the whole split.
    """
    tables = LevelTables(data.codec)
    for levels in runs(data, "train"):
        tables.count(levels)
    tables.choose(runs(data, "valid"))
    tuned, edges = tune(spread(runs(data, "valid")), data.codec)
    nats = np.zeros(tables.max_order + 1)
    lpc, count = np.zeros(2), 0
    context = max(LPC_32.context, tuned.context)
    scored = (
        ((levels, 0) for levels in runs(data, split)) if part is None else _with_context(data, split, part, context)
    )
    for levels, before in scored:
        nats += tables.nats(levels)[:, before:].sum(1)
        lpc += [linear_prediction_bits(levels, data.codec, how)[before:].sum() for how in (LPC_32, tuned)]
        count += len(levels) - before
    bits = nats / np.log(2) / count
    names = ["unigram", *(f"order {order}" for order in range(1, tables.max_order + 1))]
    found = dict(zip(names, bits.tolist(), strict=True)) | dict(
        zip(("LPC-32", TUNED), (lpc / count).tolist(), strict=True)
    )
    return Yardsticks(found, count, tuned, edges)


def tune(recordings: list[Levels], codec: AudioCodec) -> tuple[Linear, list[str]]:
    """The linear prediction of fewest bits on recordings, and which of its parts are the largest or smallest tried.

    Order and window double together while that helps; then each of order, window and half-life goes up or down by factors of
    two, until no step of one of them gains a thousandth of a bit.
    """
    known: dict[Linear, float] = {}

    def bits(how: Linear) -> float:
        if how not in known:
            known[how] = sum(float(linear_prediction_bits(levels, codec, how).sum()) for levels in recordings)
        return known[how]

    count, best = sum(map(len, recordings)), LPC_32
    # A window that no recording fills is of zeros.
    longest = max(best.window, *map(len, recordings))

    def better(other: Linear) -> bool:
        inside = all(low <= own <= high for low, own, high in zip(_SMALLEST, other, _LARGEST, strict=True))
        return inside and other.order < other.window <= longest and bits(best) - bits(other) > _LEAST_GAIN * count

    while better(other := Linear(2 * best.order, max(best.window, 32 * best.order), best.half_life)):
        best = other
    moving = True
    while moving:
        moving = False
        for name in Linear._fields:
            for by in (2.0, 0.5):
                while better(other := best._replace(**{name: int(by * getattr(best, name))})):
                    best, moving = other, True
    return best, [
        name for name in Linear._fields if getattr(best, name) in (getattr(_LARGEST, name), getattr(_SMALLEST, name))
    ]


def left_out(codec: AudioCodec) -> str | None:
    """Why `yardsticks` has no order 2, where it has none."""
    size = codec.vocab_size**3
    if size <= _MAX_TABLE:
        return None
    return f"order 2: not counted above 8 bits, its table would have {size:,} entries"


def runs(data: DataModule, split: str) -> Iterator[Levels]:
    """Levels of a split in stretches as long as they come; in the variant `sashimi`, which scales them, by window."""
    spans: Iterable[Span] = data.corpus.spans(split)
    length = data.length if data.codec.variant == "sashimi" else _PIECE
    windows = tile(spans, length, shared=0)
    for number in range(len(windows)):
        yield data.corpus.recordings.ids(windows[number])


def spread(recordings: Iterable[Levels]) -> list[Levels]:
    """Stretches of recordings on which linear prediction is tuned: all of them, or some that lie evenly among long ones."""
    whole = list(recordings)
    total = sum(map(len, whole))
    if total <= _STRETCHES * _STRETCH:
        return whole
    joined = np.concatenate(whole)
    return [joined[at : at + _STRETCH] for at in np.linspace(0, total - _STRETCH, _STRETCHES).astype(int)]


def _with_context(data: DataModule, split: str, part: Iterable[Span], context: int) -> Iterator[tuple[Levels, int]]:
    """Levels of windows with those before them in their stretch, and how many these are; none in the variant `sashimi`."""
    stretches: dict[str, list[Span]] = {}
    for span in data.corpus.spans(split):
        stretches.setdefault(span.record, []).append(span)
    for window in part:
        own = next(span for span in stretches[window.record] if span.start <= window.start < span.end)
        # From where a block of the linear prediction begins, so that its blocks are those of the whole stretch.
        back = max(0, window.start - own.start - context) // _BLOCK * _BLOCK
        low = window.start if data.codec.variant == "sashimi" else own.start + back
        yield data.corpus.recordings.ids(Span(window.record, low, window.end)), window.start - low


class LevelTables:
    """Counts of a level after the levels before it.

    Attributes:
        max_order: longest context whose table stays small, 2 at 8 bits, 1 above.
        smoothing: a.
    """

    def __init__(self, codec: AudioCodec) -> None:
        self.size = codec.vocab_size
        self.zero_level = codec.zero_level
        self.max_order = 2 if self.size**3 <= _MAX_TABLE else 1
        self.smoothing = _SMOOTHING[0]
        self.counts = [np.zeros(self.size ** (order + 1), np.int64) for order in range(self.max_order + 1)]
        self._contexts = list(self.counts)
        self._waiting: list[NDArray[np.int64]] = []

    def count(self, levels: Levels) -> None:
        """Add a recording."""
        self._waiting.append(self._words(levels))
        if sum(map(len, self._waiting)) >= _PIECE:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        words = np.concatenate(self._waiting)
        self._waiting = []
        for counts in self.counts:
            counts += np.bincount(words % len(counts), minlength=len(counts))
        self._contexts = [counts.reshape(-1, self.size).sum(1) for counts in self.counts]

    def choose(self, recordings: Iterable[Levels]) -> None:
        """Take the smoothing that is best for the highest order."""
        pieces, total = [], 0
        for levels in recordings:
            pieces.append(levels[: _CHOICE_SAMPLES - total])
            total += len(pieces[-1])
            if total >= _CHOICE_SAMPLES:
                break
        scores = {}
        for smoothing in _SMOOTHING:
            self.smoothing = smoothing
            scores[smoothing] = sum(float(self.nats(levels)[-1].sum()) for levels in pieces)
        self.smoothing = min(scores, key=scores.__getitem__)

    def nats(self, levels: Levels) -> NDArray[np.float64]:
        """Negative log-likelihood (orders, n) of a recording under every order."""
        self._flush()
        words = self._words(levels)
        p = np.full(len(words), 1 / self.size)
        out = []
        for counts, contexts in zip(self.counts, self._contexts, strict=True):
            word = words % len(counts)
            p = (counts[word] + self.smoothing * p) / (contexts[word // self.size] + self.smoothing)
            out.append(-np.log(p))
        return np.stack(out)

    def _words(self, levels: Levels) -> NDArray[np.int64]:
        """Each level with those before it, as one number, itself lowest."""
        past = np.concatenate([np.full(self.max_order, self.zero_level), levels.astype(np.int64)])
        words = np.zeros(len(levels), np.int64)
        for back in range(self.max_order, -1, -1):
            words = words * self.size + past[self.max_order - back : len(past) - back]
        return words


def linear_prediction_bits(levels: Levels, codec: AudioCodec, how: Linear = LPC_32) -> NDArray[np.float64]:
    """Bits (n,) of each level of a recording under adaptive linear prediction."""
    return linear_prediction(levels, codec, how)[1]


def linear_prediction(
    levels: Levels, codec: AudioCodec, how: Linear = LPC_32
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Errors of the prediction in units of their running scale, and the bits of each level, both (n,)."""
    from scipy.signal import lfilter
    from scipy.special import ndtr

    count = len(levels)
    audio = codec.centres()[levels]
    blocks = -(-count // _BLOCK)
    before = np.concatenate([np.zeros(how.window), audio, np.zeros(blocks * _BLOCK - count)])
    at_once = max(1, (256 * 2048) // how.window)
    # The rising half of a Hann window: what is nearest counts most.
    taper = np.hanning(2 * how.window + 1)[1 : how.window + 1]
    frames = np.lib.stride_tricks.sliding_window_view(before, how.window)[: blocks * _BLOCK : _BLOCK]
    filters = np.concatenate(
        [_coefficients(frames[low : low + at_once] * taper, how.order) for low in range(0, blocks, at_once)]
    )
    past = np.lib.stride_tricks.sliding_window_view(before[how.window - how.order :], how.order)[
        : blocks * _BLOCK, ::-1
    ]
    predicted = np.einsum("bto,bo->bt", past.reshape(blocks, _BLOCK, how.order), filters).reshape(-1)[:count]

    decay = 0.5 ** (1 / how.half_life)
    start = 0.1
    error = np.abs(audio - predicted)
    scale = lfilter([1 - decay], [1, -decay], error, zi=[start * decay])[0]
    # 1.25 times the mean absolute error is the standard deviation of a normal distribution.
    scale = 1.2533 * np.concatenate([[start], scale[:-1]]) + _SMALLEST_SCALE
    edges = np.concatenate([[-np.inf], codec.edges, [np.inf]])
    p = ndtr((edges[levels.astype(np.int64) + 1] - predicted) / scale) - ndtr((edges[levels] - predicted) / scale)
    return (audio - predicted) / scale, -np.log2((1 - _ESCAPE) * p + _ESCAPE / codec.vocab_size)


def _coefficients(frames: NDArray[np.float64], orders: int) -> NDArray[np.float64]:
    """Prediction filters (b, order) of frames (b, n): autocorrelation, Levinson's recursion."""
    spectrum = np.fft.rfft(frames, 2 * frames.shape[1])
    r = np.fft.irfft(np.abs(spectrum) ** 2)[:, : orders + 1]
    # White noise 40 dB below, and a little always: silence predicts silence.
    r[:, 0] = r[:, 0] * 1.0001 + 1e-10 * frames.shape[1]
    a = np.zeros((len(frames), orders))
    error = r[:, 0].copy()
    for order in range(orders):
        reflection = (r[:, order + 1] - (a[:, :order] * r[:, order:0:-1]).sum(1)) / error
        a[:, :order] -= reflection[:, None] * a[:, :order][:, ::-1]
        a[:, order] = reflection
        error *= 1 - reflection**2
    return a
