"""`mba evaluate --lengths`: right answers of a synthetic task in sequences of other lengths than the trained one."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import write_json
from mamba_bio_audio.jobs.evaluate_kept import keep
from mamba_bio_audio.jobs.evaluate_results import Kept
from mamba_bio_audio.pipelines.contract import Progress
from mamba_bio_audio.pipelines.scores import Found

if TYPE_CHECKING:
    from mamba_bio_audio.jobs.evaluate import EvaluateOptions, Opened

SEQUENCES = 256
# Positions that go through a model at once, about.
AT_ONCE = {"cpu": 1 << 15, "cuda": 1 << 22}


class LengthScores(Found):
    """Answers in sequences of one length.

    Attributes:
        right: share of right answers; None where the model cannot take sequences of this length.
        nats: mean loss of an answer.
        memory_bytes: peak beyond the weights; None on a CPU.
        why: the model cannot take them: "out of memory", or what it says; longer ones are not tried.
    """

    length: int
    sequences: int
    answers: int
    right: float | None
    nats: float | None
    seconds: float
    memory_bytes: int | None = None
    why: str = ""


class LengthsResult(Kept):
    """Answers by length.

    Attributes:
        streamed: whether sequences went through in pieces with a state of constant size, so that any length fits.
    """

    run: str
    which: str
    weights_sha256: str | None = None
    overrides: tuple[str, ...] = ()
    split: str
    trained_length: int
    chance: float
    streamed: bool
    device: str
    rows: tuple[LengthScores, ...]

    def text(self) -> str:
        """A table."""
        memory = self.device == "cuda"
        lines = [
            f"{self.split} split, trained at {self.trained_length:,}; by chance {self.chance:.2%}"
            + ("" if self.streamed else "; the state grows with the length, or there is none, so memory does too"),
            f"{'length':>10}{'sequences':>11}{'answers':>9}{'right':>10}{'nats':>9}{'seconds':>9}"
            + f"{'MiB':>8}" * memory,
        ]
        for row in self.rows:
            right = "-" if row.right is None else f"{row.right:.2%}"
            nats = "" if row.nats is None else f"{row.nats:.4f}"
            size = "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:,.0f}"
            lines.append(
                f"{row.length:>10,}{row.sequences:>11,}{row.answers:>9,}{right:>10}{nats:>9}{row.seconds:>9.1f}"
                + f"{size:>8}" * memory
            )
        stopped = next((row for row in self.rows if row.why), None)
        if stopped is not None:
            lines.append(f"from {stopped.length:,} on: {stopped.why}")
        return "\n".join(lines)


def read_lengths(text: str) -> list[int]:
    """Lengths in rising order, each once: "64,128", "2^6", "2^6..2^20" (every power of two).

    Raises:
        ValueError: it is something else.
    """
    found: set[int] = set()
    for part in text.replace("_", "").split(","):
        ends = [_number(end) for end in part.strip().split("..")]
        if len(ends) == 2 and ends[0] <= ends[1]:
            length = ends[0]
            while length <= ends[1]:
                found.add(length)
                length *= 2
        elif len(ends) == 1:
            found.add(ends[0])
        else:
            raise ValueError(f"got {part.strip()!r}; a range is written A..B, from the smaller to the larger length")
    return sorted(found)


def _number(text: str) -> int:
    match = re.fullmatch(r"(?:2\^(\d{1,2})|(\d{1,12}))", text.strip())
    value = 0 if match is None else 1 << int(match[1]) if match[1] else int(match[2])
    if not 0 < value <= 1 << 40:
        raise ValueError(f"got {text.strip()!r}; write lengths such as 64,2^10 or 2^6..2^20")
    return value


def by_length(opened: Opened, options: EvaluateOptions, lengths: list[int], progress: Progress) -> LengthsResult:
    """Answers of a run at each length; kept in the run where it is one.

    Raises:
        InputError: its data have no answers, or a length is too short for the task.
    """
    if not opened.config.data.answered:
        raise InputError(
            f"--lengths is for synthetic tasks, whose targets are right or wrong, not for {opened.domain.name}; leave it out"
        )
    corpus = opened.data.corpus
    corpus.check_evaluation(options.split)
    for length in lengths:
        # Too short ones are told before anything is computed.
        corpus.windows(length)
    rows = score_lengths(
        opened.model,
        corpus,
        options.split,
        lengths,
        options.num_samples or SEQUENCES,
        device=opened.device,
        narrow=opened.precision == "bf16",
        progress=progress,
    )
    result = LengthsResult(
        **opened.asked(),
        split=options.split,
        trained_length=opened.config.train.length,
        chance=corpus.task.chance,
        streamed=opened.model.streaming == "constant",
        device=opened.device,
        rows=tuple(rows),
    )
    run = options.run
    if not (run / "config.yaml").exists() or options.overrides or options.which != "best":
        return result
    return keep(run, result, lambda: write_json(run / f"evaluate-lengths-{options.split}.json", result.to_json()))


def score_lengths(
    model: Any,
    corpus: Any,
    split: str,
    lengths: list[int],
    sequences: int,
    *,
    device: str,
    narrow: bool,
    progress: Progress | None = None,
) -> list[LengthScores]:
    """Answers of a model in `sequences` sequences of each length, made on the device; longer ones than fit are left out.

    Args:
        model: language model.
        corpus: of a synthetic task.
        split: valid or test.
        lengths: in rising order.
        sequences: of each length.
        device: "cpu" or "cuda".
        narrow: whether activations are bf16.
        progress: called with (what, done, in all).
    """
    import torch

    from mamba_bio_audio.models.answers import answers

    model.to(device).eval()
    found: list[LengthScores] = []
    why = ""
    for number, length in enumerate(lengths):
        if progress is not None:
            progress("lengths", number, len(lengths))
        at_once = max(1, AT_ONCE[device] // length)
        begun, before = time.perf_counter(), 0
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        try:
            for first in range(0, 0 if why else sequences, at_once):
                numbers = torch.arange(first, min(first + at_once, sequences), device=device)
                batch = corpus.fixed_batch(split, numbers, length)
                with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=narrow):
                    sums += torch.stack([value.double() for value in answers(model, *batch)])
        except torch.OutOfMemoryError:
            why = "out of memory"
        except InputError as error:
            why = str(error)
        nats, count, right = sums.tolist()
        found.append(
            LengthScores(
                length=length,
                sequences=0 if why else sequences,
                answers=0 if why else int(count),
                right=None if why else right / count,
                nats=None if why else nats / count,
                seconds=time.perf_counter() - begun,
                memory_bytes=torch.cuda.max_memory_allocated() - before if device == "cuda" and not why else None,
                why=why,
            )
        )
        if why and device == "cuda":
            torch.cuda.empty_cache()
    return found
