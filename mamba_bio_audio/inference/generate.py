"""Samples symbol by symbol from the model's recurrent state, in constant memory at any length.

    x_t ~ p(. | x_<t),    restricted to the allowed symbols, then temperature, then top-k, then top-p, then min-p

The prompt goes through the model once, in parallel; then every step is a call of length 1. The draw of row r at
position t is one uniform number from the counter-based generator Philox with key (seed, r) and counter t, turned
into a symbol by the inverse of the distribution function. A sample therefore depends on neither the number of
samples nor the batch size, as far as the model's own arithmetic does not (rows of a batch agree to rounding, and
a draw within rounding of a boundary can change).

Legend: R rows, A allowed symbols, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference import paths
from mamba_bio_audio.inference.blocks import Block, Queued, queues
from mamba_bio_audio.inference.decoding import Choose, prefill, stretch
from mamba_bio_audio.inference.paths import Path, Precision, Stepper
from mamba_bio_audio.inference.prompts import (
    Prompt,
    batches,
    check_classes,
    check_prompt,
    read_prompts,
    vocabulary_of,
)
from mamba_bio_audio.inference.streaming import Row
from mamba_bio_audio.inference.uniforms import draws_on

_BLOCK = 1024


class Draws(TypedDict, total=False):
    """How symbols are drawn; the fields are options of `generate`."""

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int
    allowed: Sequence[int] | None
    initial: Sequence[float] | None
    class_: str | Sequence[str] | None
    guidance: float
    hold: float


class Place(NamedTuple):
    """Where new symbols stand, to continue after a block.

    Attributes:
        row: index of the first row, for the random draws and in the blocks.
        position: index of the first new symbol, likewise.
        state: the model's state before `prompt`, for one batch; None at the start of a sequence.
    """

    row: int = 0
    position: int = 0
    state: Any = None


def generate(
    model: nn.Module,
    *,
    length: int,
    num_samples: int = 1,
    prompt: Prompt = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int = 0,
    allowed: Sequence[int] | None = None,
    initial: Sequence[float] | None = None,
    class_: str | Sequence[str] | None = None,
    guidance: float = 0.0,
    hold: float = 0.0,
    batch_size: int | None = None,
    precision: Precision = "fp32",
    path: Path | None = None,
    on_tokens: Callable[[Block], None] | None = None,
) -> Tensor:
    """Sample sequences from a language model.

    >>> tokens = mba.generate(model, length=1000, num_samples=4, prompt="ACGT", seed=1)  # doctest: +SKIP
    >>> model.decode(tokens[0])                                                          # doctest: +SKIP

    Args:
        model: language model that follows the common contract; runs on the device of its parameters.
        length: number of symbols to sample, not counting the prompt; 0 or more.
        num_samples: number of rows.
        prompt: preceding symbols, (P,) for all rows or (num_samples, P), or text if the model has a codec; or a list of
            num_samples such prompts whose lengths may differ, each in memory or read in slices (`streaming.Row`). A model
            whose codec has a `start_id` (audio: a level or token) reads that first, without being told.
        temperature: divides the logits; 0 takes the most probable symbol (of equals, the first in `allowed`).
        top_k: keep the k most probable symbols (of equals, the first in `allowed`); None keeps all.
        top_p: nucleus sampling: keep the most probable symbols up to and including the one that brings their sum to
            p, in (0, 1]; applied after top_k.
        min_p: keep the symbols that are at least this many times as probable as the most probable one, in [0, 1) (Nguyen et
            al. 2024), applied with top_p: what is cut off depends on how sure the model is. Kernels of whole steps do not
            know it.
        seed: random seed, 0 to 2^64 - 1.
        allowed: ids that may be sampled; None means `model.codec.sample_ids` with a codec, else all.
        initial: probabilities over `allowed` of the first symbol if there is no prompt, unaffected by temperature,
            top_k and top_p; None means uniform.
        class_: class of the samples, one of `model.classes`, or a list of num_samples of them; None asks for none.
        guidance: with `class_`: w in c + w (c - u), from the logits with the class and without (`guided.py`); 0 samples as
            trained, and more at twice the cost says more of the class and varies less.
        hold: by how much the temperature follows the bits of what is drawn, to keep them near validation's, which a run or
            `mba.load` knows (`held.py`); 0 leaves it as it is. Such steps are slower.
        batch_size: rows sampled at a time; None means all.
        precision: of the matrices, "fp32" or "bf16"; bf16 is faster on a GPU, and moves logits by about one hundredth.
        path: how steps run; None takes the fastest, as `sampling_path` names it.
        on_tokens: called with each new block of up to 1024 symbols per row.

    Returns:
        (num_samples, length) int64 on the CPU. If that does not fit into memory, use `generate_blocks`.
    """
    blocks = generate_blocks(
        model,
        length=length,
        num_samples=num_samples,
        prompt=prompt,
        class_=class_,
        guidance=guidance,
        hold=hold,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        allowed=allowed,
        initial=initial,
        batch_size=batch_size,
        precision=precision,
        path=path,
    )
    out: Tensor | None = None
    for block in blocks:
        if out is None:
            out = torch.empty(num_samples, length, dtype=block.tokens.dtype)
        rows, symbols = block.tokens.shape
        out[block.row : block.row + rows, block.position : block.position + symbols] = block.tokens
        if on_tokens is not None:
            on_tokens(block)
    return torch.empty(num_samples, length, dtype=torch.int64) if out is None else out.long()


def generate_blocks(
    model: nn.Module | Stepper,
    *,
    length: int | None,
    num_samples: int = 1,
    prompt: Prompt = None,
    batch_size: int | None = None,
    place: Place = Place(),
    precision: Precision = "fp32",
    path: Path | None = None,
    **draws: Unpack[Draws],
) -> Iterator[Block]:
    """Sample like `generate`, but yield blocks: the rows of a batch from first to last symbol, then the next batch.

    To continue after a block of one batch, pass its last symbols (R, 1) as `prompt`, the number of symbols still wanted as
    `length`, and its state and where it ended as `place`; the result is the same to the last bit. Without a state the
    prompt must be everything so far, and the result agrees to rounding.

    Args:
        model: as for `generate`, or what `prepared` made of one, which has its own precision, path and draws but the seed.
        num_samples, prompt, batch_size, precision, path, draws: as for `generate`.
        length: likewise; None goes on until the caller stops, with the rows of one batch.
        place: position of the first row and symbol.

    Returns:
        Iterator over `Block`. Options are checked immediately, before the first block is requested.
    """
    seed, state = draws.get("seed", 0), place.state
    if length is not None and length < 0:
        raise InputError(f"length is {length}; choose 0 or more")
    if num_samples < 1:
        raise InputError(f"num_samples is {num_samples}; choose 1 or more")
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; choose 1 or more")
    if not 0 <= seed < 2**64:
        raise InputError(f"seed is {seed}; choose 0 to 2^64 - 1")
    if isinstance(model, Stepper):
        stepper, model = model, model.model
    else:
        rows_together = min(batch_size or num_samples, num_samples)
        stepper = prepared(model, rows=rows_together, precision=precision, path=path, **draws)
    classes = check_classes(model, draws.get("class_"), num_samples)
    if draws.get("guidance") and classes is None:
        raise InputError("guidance is towards a class; give class_, or leave it out")
    prefix = check_prompt(model, prompt, num_samples)
    start_id = getattr(getattr(model, "codec", None), "start_id", None)
    if start_id is not None and state is None and not isinstance(prefix, list):
        first = torch.full((1 if prefix is None else len(prefix), 1), start_id)
        prefix = first if prefix is None else torch.cat([first, prefix], 1)
    if prefix is None and place.position:
        raise InputError("a position after the first needs the symbols before it as prompt")
    if state is not None and (not isinstance(prefix, Tensor) or (batch_size or num_samples) < num_samples):
        raise InputError("a state belongs to one batch before its prompt; pass both, and no smaller batch_size")

    def blocks() -> Iterator[Block]:
        for low, rows in batches(model, prefix, num_samples, batch_size or num_samples, classes):
            runs = stepper.of(None if classes is None else classes[low])
            start = prefix
            if prefix is not None and len(prefix) > 1:
                start = prefix[low : low + rows]
            elif isinstance(prefix, Tensor):
                start = prefix.expand(rows, -1)
            at = place._replace(row=place.row + low)
            yield from _batch(runs, start, rows, length, seed, at)

    return blocks()


def prepared(
    model: nn.Module,
    *,
    rows: int,
    precision: Precision = "fp32",
    path: Path | None = None,
    reading: Callable[[int, int], None] | None = None,
    **draws: Unpack[Draws],
) -> Stepper:
    """What runs the steps; what it records or lays out at the first call serves all calls that share it.

    Args:
        rows: of a batch.
        reading: called with (symbols read, symbols in all) while the prompts of a batch are read.
        model, precision, path, draws: as for `generate`.

    Raises:
        InputError: options that the model cannot be sampled with.
    """
    choice, guidance, hold = _Choice.of(model, draws), draws.get("guidance", 0.0), draws.get("hold", 0.0)
    if not (np.isfinite(guidance) and guidance >= 0):
        raise InputError(f"guidance is {guidance}; choose 0 (none) or a positive number")
    if not (np.isfinite(hold) and hold >= 0):
        raise InputError(f"hold is {hold}; choose 0 (none) or a positive number")
    if hold and choice.temperature == 0:
        raise InputError("hold follows samples by their temperature, which is 0 here; leave one of them out")
    held = (hold, _valid_nats(model)) if hold else None
    if getattr(model, "streaming", "constant") == "none":
        raise InputError(
            "this model cannot carry a state from symbol to symbol, so it cannot sample; use another mixer"
        )
    if path is None:
        path = paths.fastest(model, choice, rows, precision, guidance)
    paths.check(model, choice, path, precision, guidance)
    return Stepper(model, choice.to(paths.device_of(model)), precision, path, reading, guidance, held)


def _valid_nats(model: nn.Module) -> float:
    """Nats per symbol of validation data.

    Raises:
        InputError: they are not known of these weights.
    """
    manifest: Any = getattr(model, "manifest", None) or {}
    nats = manifest.get("result", {}).get("valid_nats")
    if nats is None or nats <= 0:
        raise InputError("no validation bits are known of these weights, so hold has nothing to keep to; leave it out")
    return float(nats)


def sampling_path(model: nn.Module, *, rows: int, precision: Precision = "fp32", **draws: Unpack[Draws]) -> Path:
    """How `generate` runs the steps of a batch of `rows` rows, where nothing else is asked for.

    On a GPU it is "persistent", a kernel that takes a row through many steps and layers; "split", several of its programs
    sharing a row; "together", 16 rows in one; or "graph", CUDA graphs of 16 steps or more. On a CPU it is "numpy". "steps"
    runs every operation on its own, for every model.
    """
    return paths.fastest(model, _Choice.of(model, draws), rows, precision, draws.get("guidance", 0.0))


def _batch(
    stepper: Stepper,
    prefix: Tensor | list[Row] | None,
    rows: int,
    length: int | None,
    seed: int,
    place: Place,
) -> Iterator[Block]:
    """Sample `rows` rows from the first to the last symbol."""
    model, choice = stepper.model, stepper.choice
    first_row, first_position, state = place
    device = paths.device_of(model)
    last = prefix.to(device) if isinstance(prefix, Tensor) else None
    if stepper.precision == "fp32":
        dtype = next(model.parameters(), torch.empty(0)).dtype
        # Parts of a state that steps in bf16 left, which steps in fp32 cannot read.
        state = tree_map_only(Tensor, lambda part: part.to(dtype) if part.dtype == torch.bfloat16 else part, state)
    count = stretch(model)
    most = -(-_BLOCK // count) * count
    before: Queued | None = None
    for low in itertools.count(0, most) if length is None else range(0, length, most):
        size = most if length is None else min(most, length - low)
        draws = draws_on(device, seed, first_row, rows, first_position + low, size)
        symbols, scores = [], []
        # A generator must not hold the modes over a yield, where the caller's code runs.
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode(), stepper.narrow():
                if isinstance(prefix, list) and last is None:
                    last, state = read_prompts(model, prefix, rows, device, stepper.reading)
                if last is None:
                    symbol, score = choice.first(draws[0])
                    symbols.append(symbol[None])
                    scores.append(score[None])
                    last, draws = symbol[:, None], draws[1:]
                elif last.shape[1] > 1:
                    state = prefill(model, last[:, :-1], state, stepper.reading)
                    last = last[:, -1:]
                if low == 0 and choice.beyond(model, last):
                    # A start token, which is in no table of symbols: the model itself reads it.
                    output = model(last, state, logits="last")
                    symbol, score = choice.next(output.logits[:, -1], draws[0])
                    symbols.append(symbol[None])
                    scores.append(score[None])
                    last, state, draws = symbol[:, None], output.state, draws[1:]
                if len(draws):
                    found_symbols, found_scores, state = stepper.advance(rows)(last, state, draws)
                    symbols.append(found_symbols)
                    scores.append(found_scores)
                    last = found_symbols[-1][:, None]
                tokens, log_likelihood = torch.cat(symbols).T.to(choice.storage), torch.cat(scores).T
                queued = Queued.of(first_row, first_position + low, tokens, log_likelihood, state)
        finally:
            model.train(was_training)
        # What the host does with a block costs a GPU no time, since the next one runs already.
        if before is not None:
            yield before.block()
        before = queued
        if not queues(device):
            yield queued.block()
            before = None
    if before is not None:
        yield before.block()


class _Choice(NamedTuple):
    """Chooses symbols, given logits and uniform random numbers."""

    allowed: Tensor  # (A,) int64
    initial: Tensor  # (A,) fp64
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    storage: torch.dtype
    held: bool = False  # whether the last column of logits multiplies the temperature

    @classmethod
    def of(cls, model: nn.Module, draws: Draws) -> _Choice:
        """From options of `generate`."""
        choice = cls.check(
            model,
            draws.get("temperature", 1.0),
            draws.get("top_k"),
            draws.get("top_p"),
            draws.get("allowed"),
            draws.get("initial"),
            draws.get("min_p"),
        )
        return choice._replace(held=bool(draws.get("hold")))

    @classmethod
    def check(
        cls,
        model: nn.Module,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        allowed: Sequence[int] | None,
        initial: Sequence[float] | None,
        min_p: float | None = None,
    ) -> _Choice:
        """Validate the options against the model."""
        vocabulary = vocabulary_of(model)
        if allowed is None:
            codec = getattr(model, "codec", None)
            if codec is not None:
                allowed = codec.sample_ids
            elif vocabulary is not None:
                allowed = range(vocabulary)
            else:
                raise InputError("the model has neither a codec nor a vocab_size; pass `allowed`, the ids to sample")
        ids = [int(i) for i in allowed]
        if not ids or len(set(ids)) != len(ids) or min(ids) < 0 or max(ids) >= (vocabulary or max(ids) + 1):
            limit = "" if vocabulary is None else f" below {vocabulary}"
            raise InputError(f"allowed is {ids}; give one or more distinct, non-negative ids{limit}")
        if not (np.isfinite(temperature) and temperature >= 0):
            raise InputError(f"temperature is {temperature}; choose 0 (greedy) or a positive number")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}; choose 1 or more, or leave it out")
        if top_p is not None and not 0 < top_p <= 1:
            raise InputError(f"top_p is {top_p}; choose a number above 0 and up to 1, or leave it out")
        if min_p is not None and not 0 <= min_p < 1:
            raise InputError(f"min_p is {min_p}; choose 0 (none) to below 1, or leave it out")
        if initial is None:
            first = np.full(len(ids), 1 / len(ids))
        else:
            first = np.asarray(initial, np.float64)
            if first.shape != (len(ids),) or not (first >= 0).all() or abs(first.sum() - 1) > 1e-6:
                raise InputError(
                    f"initial is {first.tolist()}; give one probability for each of the {len(ids)} allowed "
                    "ids, summing to 1"
                )
        return cls(
            torch.tensor(ids),
            torch.from_numpy(first / first.sum()),
            float(temperature),
            None if top_k is None or top_k >= len(ids) else int(top_k),
            None if top_p is None or top_p == 1 else float(top_p),
            None if not min_p else float(min_p),
            torch.uint8 if max(ids) < 256 else torch.int32,
        )

    @staticmethod
    def beyond(model: nn.Module, last: Tensor) -> bool:
        """Whether ids (R, 1) are only ever read, never predicted."""
        vocabulary = getattr(getattr(model, "model_config", None), "vocab_size", None)
        return vocabulary is not None and int(last.max()) >= vocabulary

    def to(self, device: torch.device) -> _Choice:
        """A copy with its tensors on a device."""
        return self._replace(allowed=self.allowed.to(device), initial=self.initial.to(device))

    @property
    def rule(self) -> Choose | None:
        """`next` where top-k, top-p or min-p change it; None where the temperature says all."""
        return None if (self.top_k, self.top_p, self.min_p) == (None, None, None) else self.next

    def first(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Draw symbols (R,) from `initial`; returns them and their log-probabilities."""
        index = inverse(self.initial.expand(len(draws), -1), draws)
        return self.allowed[index], self.initial.log()[index]

    def next(self, logits: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Draw symbols (R,) given logits (R, V); returns them and their log-probabilities as in `Block`."""
        factor = logits[:, -1:].double() if self.held else 1.0
        logits = logits.index_select(1, self.allowed).double()
        log_p = logits.log_softmax(1)
        if self.temperature == 0:
            index = logits.argmax(1)
        else:
            plain = self.temperature == 1 and not self.held
            p = log_p.exp() if plain else tempered(logits, self.temperature * factor)
            index = inverse(truncated(p, self.top_k, self.top_p, self.min_p), draws)
        return self.allowed[index], log_p.gather(1, index[:, None])[:, 0]


def tempered(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Probabilities (R, A) of logits (R, A) at a temperature above 0, one for all rows or (R, 1)."""
    # The largest logit is made zero before the division, so that no temperature overflows.
    return ((logits - logits.amax(1, keepdim=True)) / temperature).softmax(1)


def truncated(
    p: Tensor,
    top_k: int | None = None,
    top_p: float | Tensor | None = None,
    min_p: float | Tensor | None = None,
) -> Tensor:
    """Probabilities (R, A), those beyond top-k, top-p and min-p set to zero; not renormalised.

    Top-p and min-p are one for all rows or (R, 1).
    """
    kept = p
    if top_k is not None or top_p is not None:
        ranked, order = p.sort(dim=1, descending=True, stable=True)
        if top_k is not None:
            ranked[:, top_k:] = 0
        if top_p is not None:
            before = ranked.cumsum(1) - ranked
            # At top-p 1 nothing may be dropped, not even by rounding.
            ranked = ranked.masked_fill((before >= top_p * ranked.sum(1, keepdim=True)) & (top_p < 1), 0)
        kept = torch.zeros_like(p).scatter_(1, order, ranked)
    return kept if min_p is None else kept.masked_fill(p < min_p * p.amax(1, keepdim=True), 0)


def inverse(p: Tensor, draws: Tensor) -> Tensor:
    """Index (R,) at which the cumulative sum of weights (R, A) exceeds its total times `draws` (R,), in [0, 1)."""
    running = p.cumsum(1)
    index = (running <= draws[:, None] * running[:, -1:]).sum(1)
    # NaN weights must not index beyond the table; the caller detects them by their log-probability.
    return index.clamp_(max=p.shape[1] - 1)
