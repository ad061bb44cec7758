"""Streams samples to disk: constant memory at any length, and the same result however often it was interrupted.

A folder holds one file per row, growing block by block, and the model's state, saved from time to time:

    settings.json             what is being sampled; a continuation must ask for the same
    row-00000.SUFFIX          the symbols of row 0 so far, in the bytes of the domain, behind the prompt if that is kept
    state.safetensors         position and model state of the batch, replaced atomically

If the process is killed at any moment, the rows keep what was written. Continuing cuts them back to the last state and
restores it bit for bit, so that every later draw and every later symbol is that of the uninterrupted run.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker, begin_unfinished, discard_unfinished
from mamba_bio_audio.files.tensors import load_tree, save_tree
from mamba_bio_audio.inference.best import PARTS
from mamba_bio_audio.inference.blocks import Block
from mamba_bio_audio.inference.generate import Place, generate_blocks, prepared
from mamba_bio_audio.inference.paths import Stepper
from mamba_bio_audio.inference.prompts import Prompt, batches, check_prompt
from mamba_bio_audio.machine import raise_open_files
from mamba_bio_audio.pipelines.sample_writer import RowForm

STATE_NAME = "state.safetensors"
MAKER = Maker("sample", ("settings.json", "row-*", STATE_NAME, "whole/*"))
_SAVE_EVERY_S = 10.0
_UNSAID = {"keep_prompt": False}
# Allowance for open files of the process other than those of the rows.
_OTHER_FILES = 128


def open_files_allowed(rows: int) -> int:
    """How many of `rows` files this process may keep open, after raising its limit as far as the machine allows."""
    return min(rows, max(1, raise_open_files(rows + _OTHER_FILES) - _OTHER_FILES))


class Position(NamedTuple):
    """Progress of sampling: rows before `row` are complete; those of the batch from `row` on have `position` symbols."""

    row: int
    position: int
    log_likelihood: tuple[float, ...]  # of every row started so far, summed over its symbols


class RowFiles:
    """The row files of one sampling run.

    Args:
        folder: folder of the row files; created by `begin`.
        settings: everything that determines the symbols, JSON-able.
        form: how symbols become bytes, and what a row's file begins with.

    Attributes:
        along: log-likelihood of each eighth of every row, (rows, 8) fp64; None where an earlier version began them.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], form: RowForm) -> None:
        self.folder = folder
        # As JSON returns them, so that they compare equal.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.form = form
        self.along: Tensor | None = None

    def path(self, row: int) -> Path:
        """Path of a row's file."""
        return self.folder / f"row-{row:05d}.{self.form.suffix}"

    def begin(self, *, resume: bool = False, force: bool = False) -> None:
        """Create the folder, or check that its contents can be continued.

        Raises:
            InputError: it holds an unfinished run, and neither `resume` nor `force` was given or the settings differ.
        """
        begin_unfinished(self.folder, MAKER, self.settings, resume=resume, force=force, unsaid=_UNSAID)

    def sample(
        self,
        model: nn.Module | Stepper,
        *,
        length: int,
        num_samples: int,
        batch_size: int,
        prompt: Prompt = None,
        class_: Sequence[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> tuple[float, ...] | None:
        """Sample every row to its end, continuing from the contents of the folder.

        Args:
            model: or what `generate.prepared` made of one for these options.
            length: symbols per row, not counting the prompt.
            num_samples: number of rows.
            batch_size: rows sampled at a time.
            prompt: as for `generate`; rows with prompts of their own pass (num_samples, P), or a list of them.
            class_: class of each row; None asks for none.
            progress: called with (symbols done, symbols in total).
            stop: called after every block; True saves and stops.
            options: options of `generate_blocks`: temperature, top_k, top_p, min_p, seed, allowed, initial, guidance, hold.

        Returns:
            Log-likelihood of every row, summed over its blocks; None if stopped before the end.

        Raises:
            InputError: invalid options, or more rows at a time than files may be open.
        """
        together = min(batch_size, num_samples)
        if (allowed := open_files_allowed(together)) < together:
            if not self.path(0).exists():
                # As with other refused options, there is nothing to continue.
                self.remove()
            raise InputError(
                f"{together:,} samples at a time need as many open files, but this machine allows {allowed:,} (ulimit "
                f"-n); choose --batch-size {allowed} or less"
            )
        stepper = model if isinstance(model, Stepper) else None
        model = model.model if isinstance(model, Stepper) else model
        at, last, state = self._restore(model, options.get("guidance", 0.0), options.get("hold", 0.0))
        sums = list(at.log_likelihood)
        if not sums:
            self.along = torch.zeros(num_samples, PARTS, dtype=torch.float64)
        try:
            prefix = check_prompt(model, prompt, num_samples)
            # Once for all batches.
            stepper = stepper or prepared(model, rows=together, **options)
        except InputError:
            if not self.path(0).exists():
                # As below.
                self.remove()
            raise
        for low, rows in batches(model, prefix, num_samples, batch_size, class_):
            if low < at.row:
                continue
            position = at.position if low == at.row else 0
            sums = sums[: low + rows] if position else [*sums[:low], *[0.0] * rows]
            if self.along is not None and not position:
                self.along[low : low + rows] = 0
            if position == length:
                continue
            start: Any = prefix if prefix is None or len(prefix) == 1 else prefix[low : low + rows]
            if position:
                start = last
            try:
                blocks = generate_blocks(
                    stepper,
                    length=length - position,
                    num_samples=rows,
                    prompt=start,
                    class_=None if class_ is None else class_[low : low + rows],
                    place=Place(low, position, state if position else None),
                    **options,
                )
            except InputError:
                if not self.path(0).exists():
                    # Refused options leave nothing to continue.
                    self.remove()
                raise
            self._cut(low, rows, position)
            files = [self.path(low + i).open("r+b") for i in range(rows)]
            try:
                saved = time.monotonic()
                for block in blocks:
                    for i, tokens in enumerate(block.tokens.numpy()):
                        row, symbols = low + i, block.position + len(tokens)
                        self._write(files[i], self.form.encode(tokens, row), len(self.form.kept(row)) + symbols)
                        sums[low + i] += float(block.log_likelihood[i].sum())
                    if self.along is not None:
                        part = torch.arange(block.position, block.position + block.tokens.shape[1]) * PARTS // length
                        self.along[low : low + rows].index_add_(1, part, block.log_likelihood)
                    position = block.position + block.tokens.shape[1]
                    if progress is not None:
                        progress(low * length + rows * position, num_samples * length)
                    stopped = stop() and not (position == length and low + rows == num_samples)
                    if stopped or position == length or time.monotonic() - saved >= _SAVE_EVERY_S:
                        for file in files:
                            os.fsync(file.fileno())
                        self._save(Position(low, position, tuple(sums)), block, position == length)
                        saved = time.monotonic()
                    if stopped:
                        return None
            finally:
                for file in files:
                    # Everything was flushed, except after a full disk, which is already being reported.
                    with suppress(OSError):
                        file.close()
        return tuple(sums)

    def _write(self, file: BinaryIO, data: bytes, symbols: int) -> None:
        """Append a block, and update the header."""
        try:
            file.seek(0, os.SEEK_END)
            file.write(data)
            file.flush()
            header = self.form.header(symbols)
            if header:
                file.seek(0)
                file.write(header)
                file.flush()
        except OSError as error:
            reason = f"{error.strerror}; everything sampled so far is kept. Free some space and continue with --resume"
            raise OSError(error.errno, reason, file.name) from None

    def position(self) -> Position:
        """Where a sampling that was stopped stands."""
        values = load_tree(self.folder / STATE_NAME)
        row, position = values["position"]
        return Position(int(row), int(position), tuple(values["log_likelihood"]))

    def bits_along(self, length: int, rows: Sequence[int]) -> list[float]:
        """Bits per symbol of each eighth of the length, mean over some rows; [] where they are not known."""
        if self.along is None or length < PARTS:
            return []
        ends = [-(-part * length // PARTS) for part in range(PARTS + 1)]
        nats = (-self.along[list(rows)].mean(0) / math.log(2)).tolist()
        return [sum_ / (end - start) for sum_, start, end in zip(nats, ends, ends[1:], strict=False)]

    def remove(self) -> None:
        """Delete the folder, once the rows have been moved to their final place."""
        discard_unfinished(self.folder)

    def _save(self, at: Position, block: Block, whole: bool) -> None:
        leaves = None
        if not whole:
            leaves, _ = tree_flatten(block.state)
            leaves = [leaf.cpu().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        values = {"position": list(at[:2]), "log_likelihood": list(at.log_likelihood), "leaves": leaves}
        save_tree(self.folder / STATE_NAME, values | {"last": block.tokens[:, -1:].clone(), "along": self.along})

    def _restore(self, model: nn.Module, guidance: float, hold: float) -> tuple[Position, Tensor | None, Any]:
        """The last saved position, the symbols before it, and the model's state there."""
        path = self.folder / STATE_NAME
        if not path.exists():
            return Position(0, 0, ()), None, None
        device = next(model.parameters()).device
        values = load_tree(path, remedy="start again with --force")
        try:
            row, position = values["position"]
            sums, last, leaves = values["log_likelihood"], values["last"].to(device), values["leaves"]
            self.along = values.get("along")
            state = None
            if leaves is not None:
                kind = model.init_state(len(last), device)  # type: ignore[operator]
                # With guidance two models step (`guided.py`); hold has a mean and a distribution beside (`held.py`).
                kind = (kind, kind) if guidance else kind
                _, structure = tree_flatten((kind, 0, 0) if hold else kind)
                leaves = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
                state = tree_unflatten(leaves, structure)
            return Position(int(row), int(position), tuple(sums)), last.long(), state
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(f"{path}: damaged ({type(error).__name__}); start again with --force") from None

    def _cut(self, low: int, rows: int, position: int) -> None:
        """Cut the rows of a batch back to `position` symbols; whatever follows the last state is sampled again."""
        for row in range(low, low + rows):
            path = self.path(row)
            size = path.stat().st_size if path.exists() else 0
            symbols = len(self.form.kept(row)) + position
            header = self.form.header(symbols)
            end = len(header) + symbols * self.form.symbol_bytes
            if position and size < end:
                raise InputError(f"{path}: shorter than the saved state requires; start again with --force")
            with path.open("r+b" if position else "wb") as file:
                file.write(header)
                if not position:
                    file.writelines(self.form.kept_bytes(row))
                file.truncate(end)
