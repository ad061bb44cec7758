"""Settings of the synthetic tasks; free of torch.

What papers leave open is a key here, whose default is what this project chose.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from mamba_bio_audio.pipelines.contract import DataSection

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.synthetic.tasks import Task


class SyntheticConfig(DataSection):
    """A task; training samples are made fresh without end, those of evaluations are always the same."""

    answered: ClassVar[bool] = True

    vocab: int
    examples: int = Field(10_000, ge=1, le=1 << 30, description="Sequences of the splits valid and test, each.")
    examples_seed: int = Field(
        0, ge=0, lt=2**63, description="Seed of these sequences, which the seed of the run does not change."
    )
    num_workers: int = Field(0, ge=0, le=256, description="Processes that make training samples; 0: none of their own.")

    @property
    @abstractmethod
    def task(self) -> Task:
        """Makes the sequences."""


class InductionConfig(SyntheticConfig):
    """Induction heads (Gu & Dao 2023, section 4.1.2): what followed the trigger before must be said when it comes again.

    The paper gives length and vocabulary. Chosen here, as in the public generator that it names (safari): the trigger is one
    of the symbols, all others are filler, its first place is uniform, it comes again at the end. Chosen otherwise: only the
    answer is scored in training, because all other symbols are noise.
    """

    kind: Literal["induction"] = Field(default="induction", description="Kind of data.")  # type: ignore[assignment]
    vocab: int = Field(16, ge=3, le=1 << 24, description="Symbols, the trigger among them.")
    scored: Literal["answer", "all"] = Field(
        "answer", description="What is scored: the answer at the end, or the next symbol everywhere."
    )

    @property
    def task(self) -> Task:
        """Induction heads."""
        from mamba_bio_audio.pipelines.synthetic.tasks import Induction

        return Induction(self.vocab, self.scored)


class SelectiveCopyingConfig(SyntheticConfig):
    """Selective copying (Gu & Dao 2023, section 4.1.1): symbols scattered in noise must be said in their order.

    The paper gives length, vocabulary and the number of symbols. Chosen here, as in the public generator (state-spaces/s4):
    0 is noise, the last symbol a marker, as many markers as symbols to copy end the sequence, and each is where one of them is
    the target. `train.length` counts all positions, markers too; whether the paper's 4096 does is not stated.
    """

    kind: Literal["selective-copying"] = Field(  # type: ignore[assignment]
        default="selective-copying", description="Kind of data."
    )
    vocab: int = Field(16, ge=4, le=1 << 24, description="Symbols, noise and marker among them.")
    memorize: int = Field(16, ge=1, le=1 << 20, description="Symbols to copy.")

    @property
    def task(self) -> Task:
        """Selective copying."""
        from mamba_bio_audio.pipelines.synthetic.tasks import SelectiveCopying

        return SelectiveCopying(self.vocab, self.memorize)


class RecallConfig(SyntheticConfig):
    """Multi-query associative recall (Arora et al. 2023): pairs of keys and values, then each key once more, somewhere."""

    kind: Literal["recall"] = Field(default="recall", description="Kind of data.")  # type: ignore[assignment]
    vocab: int = Field(
        8192,
        ge=4,
        le=1 << 24,
        description="Symbols: 0 is none, keys are the lower half of the others, values the upper.",
    )
    pairs: int = Field(8, ge=1, le=1 << 20, description="Pairs of a key and a value, and queries.")
    filler: Literal["random", "none"] = Field(
        "random", description="What stands between the queries: random symbols, keys and values among them, or 0."
    )
    power: float = Field(
        0.01, ge=0, le=1, description="Gaps before queries have a probability that falls with (gap + 1)^(power - 1)."
    )

    @model_validator(mode="after")
    def _enough_symbols(self) -> RecallConfig:
        if self.pairs >= self.vocab // 2:
            raise ValueError(
                f"pairs: {self.pairs:,} different keys need a vocab of {2 * self.pairs + 2:,}, not {self.vocab:,}; raise "
                "vocab or lower pairs"
            )
        return self

    @property
    def task(self) -> Task:
        """Multi-query associative recall."""
        from mamba_bio_audio.pipelines.synthetic.tasks import Recall

        return Recall(self.vocab, self.pairs, self.filler, self.power)
