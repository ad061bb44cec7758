"""Options of `mba evaluate --suite`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from mamba_bio_audio.jobs.contract import Cli, Force, Options

ARMS = ("kmers", "cnn", "scratch", "frozen", "finetuned")
# k-mers of one length, as papers often take them.
FIXED = {"5mers": (5,), "6mers": (6,)}


class SuiteOptions(Options):
    """Options of `mba evaluate --suite`."""

    suite: Literal["gue", "genomic-benchmarks", "nucleotide-transformer"] | None = Field(
        None,
        description="Instead, a benchmark; RUN is then its folder. Classifiers are trained on every task and scored on its "
        "test split, beside k-mer regression and a small convolutional network.",
    )
    task: Annotated[tuple[str, ...], Cli(metavar="NAME")] = Field(
        (), description="With --suite: only this task; repeatable."
    )
    recipe: str = Field("dna/short", description="With --suite: recipe that is trained on each task.")
    pretrained: Annotated[tuple[str, ...], Cli(metavar="RUN")] = Field(
        (), description="With --suite: also start from this model, frozen and fine-tuned; repeatable."
    )
    arms: Annotated[str, Cli(metavar="NAME,NAME,...")] = Field(
        ",".join(ARMS),
        description="With --suite: what is trained; frozen and finetuned are for --pretrained; 5mers and 6mers "
        "(not by default) are k-mers of one length.",
    )
    seeds: Annotated[str, Cli(metavar="N,N,...")] = Field("0,1,2", description="With --suite: seeds of each training.")
    rates: Annotated[str | None, Cli(metavar="X,X,...")] = Field(
        None,
        description="With --suite: learning rates to choose from on validation; default: a third of, once and three "
        "times the recipe's.",
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="With --suite: passes through the training sequences of each task, validated after each pass; default: "
        "the recipe's train.steps.",
    )
    force: Force = False

    @field_validator("arms")
    @classmethod
    def _known_arms(cls, text: str) -> str:
        strange = next((name for name in text.split(",") if name not in (*ARMS, *FIXED)), None)
        if strange is not None:
            raise ValueError(f"no {strange!r}; choose from {', '.join((*ARMS, *FIXED))}, separated by commas")
        return text

    @field_validator("seeds")
    @classmethod
    def _whole_seeds(cls, text: str) -> str:
        if not all(part.isdecimal() for part in text.split(",")) or len(set(text.split(","))) < len(text.split(",")):
            raise ValueError(f"got {text!r}; write different whole numbers, separated by commas, for example 0,1,2")
        return text

    @field_validator("rates")
    @classmethod
    def _small_rates(cls, text: str | None) -> str | None:
        try:
            rates = [] if text is None else [float(part) for part in text.split(",")]
            # Runs are named by them as they are shown.
            good = all(0 < rate < 1 for rate in rates) and len({f"{rate:g}" for rate in rates}) == len(rates)
        except ValueError:
            good = False
        if not good:
            raise ValueError(
                f"got {text!r}; write different numbers between 0 and 1, separated by commas, for example 1e-3,4e-3"
            )
        return text
