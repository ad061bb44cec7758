"""Synthetic tasks as a domain: sequences without a file, whose answers tell sequence models apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mamba_bio_audio.pipelines.contract import DataSection, Domain, Progress
from mamba_bio_audio.pipelines.scores import LikelihoodNotes, Measured, Score, SplitScores
from mamba_bio_audio.pipelines.synthetic.config import InductionConfig, RecallConfig, SelectiveCopyingConfig

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.corpus import Corpus


class AnswersNotes(LikelihoodNotes):
    """Accuracy of the answers.

    Attributes:
        accuracy: share of the targets that are the model's first choice.
        chance: accuracy of guessing.
        sequences: how many were answered.
    """

    accuracy: float
    chance: float
    sequences: int

    def text(self, found: SplitScores) -> str:
        """One line."""
        return (
            f"{found.split} split: {self.accuracy:.2%} of {found.scored:,} answers in {self.sequences:,} unseen sequences of "
            f"{found.length:,} symbols are right; by chance {self.chance:.2%}\n"
            f"model ({found.weights}): {found.model.nats:.4f} nats per answer"
        )


class Synthetic(Domain):
    """Induction heads, selective copying, associative recall."""

    name = "synthetic"
    unit = "symbol"
    record = "sequence"
    groups = "sequences"
    first_sample = ""
    kinds: ClassVar[Mapping[str, type[DataSection]]] = {
        "induction": InductionConfig,
        "selective-copying": SelectiveCopyingConfig,
        "recall": RecallConfig,
    }
    likelihood_notes = AnswersNotes

    def codec(self, config: Any) -> Any:
        """Numbers of symbols."""
        from mamba_bio_audio.pipelines.synthetic.corpus import SymbolCodec

        return SymbolCodec(config.vocab)

    def open(self, config: Any, *, length: int, task: str | None = None, progress: Progress | None = None) -> Corpus:
        """The task's sequences."""
        from mamba_bio_audio.pipelines.synthetic.corpus import SyntheticCorpus

        return SyntheticCorpus(config, length)

    def describe(self, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Lines for people."""
        sizes = (f"{split} {summary['splits'][split]['evaluation_windows']:,}" for split in ("valid", "test"))
        return [("sequences", f"of {summary['length']:,} symbols; training: fresh without end; {', '.join(sizes)}")]

    def beside_likelihood(
        self, data: Any, found: Measured, score: Score, progress: Progress | None = None
    ) -> AnswersNotes:
        """How many answers were right."""
        assert found.correct is not None
        task = data.corpus.task
        return AnswersNotes(
            accuracy=found.correct / found.scored,
            chance=task.chance,
            sequences=found.scored // (task.answers or data.length),
        )


DOMAIN = Synthetic()
