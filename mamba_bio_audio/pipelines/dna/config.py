"""Settings of the DNA data; free of torch."""

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mamba_bio_audio.pipelines.contract import DataSection

Policy = Literal["tile", "random", "head", "grow-both", "grow-ends", "grow-right"]
SharedBases = Literal["drop", "trim", "error", "allow"]


class DnaDataConfig(DataSection):
    """Which genome, how it is split, and how it is read."""

    packaged: ClassVar[tuple[str, ...]] = ("demo",)

    kind: Literal["dna"] = Field(default="dna", description="Kind of data.")  # type: ignore[assignment]
    path: str | list[str] | None = Field(
        default=None,
        description="FASTA file (plain or BGZF) or 2bit file, a list of them, a folder of them, a folder made by "
        "`mba prepare genome`, "
        "or `demo` for the five packaged genome slices.",
    )
    intervals: str | None = Field(
        default=None,
        description="Splits: BED (record, start, end, split; or record:start-end, split), or TSV with the header file, record, "
        "start0, end, split. "
        "null: `intervals.tsv` in the folder of data.path if there is one, else blocks of the genome chosen "
        "by split_seed.",
    )
    contigs: str | list[str] = Field(
        default="primary",
        description="What of the genome is used: primary (chromosomes, and all records of an assembly without any: no "
        "alternative loci, patches, unplaced scaffolds, decoys, viruses, mitochondria, plastids), all, or names and regions "
        "like chr1 or chr1:1,001-2,000 (from 1, end included). Names may be aliases: chr1, 1, NC_000001.11, CM000663.2.",
    )
    valid_fraction: float = Field(
        default=0.05, ge=0, lt=1, description="Share of validation when there are no intervals."
    )
    test_fraction: float = Field(default=0.05, ge=0, lt=1, description="Share of test when there are no intervals.")
    split_by: Literal["blocks", "records"] = Field(
        default="blocks",
        description="What is given to one split as a whole when there are no intervals: blocks of block_bases, or whole "
        "records (chromosomes), a stricter test.",
    )
    block_bases: int | None = Field(
        default=None,
        ge=2,
        description="Length of the blocks that are split; null: 131072, less for small genomes.",
    )
    split_seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="Seed of the choice of blocks; apart from the training seed, so that seeds compare.",
    )
    max_unknown: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Training windows with a larger share of bases other than A, C, G, T are skipped.",
    )
    case: Literal["upper", "weight", "drop"] = Field(
        default="upper",
        description="What lower case (soft-masked repeats) means in training; tokens never depend on it. upper: nothing | "
        "weight: such bases are scored with the weight data.lower_weight | drop: windows with a larger share of it than "
        "data.max_lower are skipped.",
    )
    lower_weight: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Weight of lower-case bases in the loss under data.case=weight: each is scored with this "
        "probability, drawn anew at every visit, so that the gradient is that of the weighted loss on average.",
    )
    max_lower: float = Field(default=0.5, ge=0, le=1, description="Limit of data.case=drop.")
    weights: dict[str, float] | None = Field(
        default=None,
        description="Share of each genome (FASTA file name without suffixes) among the training windows, in any unit; "
        "genomes not named get none. null: every window of every genome once an epoch.",
    )
    reverse_complement: bool = Field(
        default=False, description="Read every training window from the opposite strand with probability 0.5."
    )
    repeats: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the bases of training windows that are overwritten by copies of earlier pieces of the same "
        "window, so that a model learns to copy (augmentation; validation and test are read as they are). Pieces and "
        "the bases between them are of all lengths, pieces of 32 bases to a quarter of the window and 2,048.",
    )
    repeat_substitutions: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of a copy's bases that are substituted at most, under data.repeats; each copy's own share is "
        "drawn between 0 and this.",
    )
    repeat_reverse: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the copies of data.repeats that are read from the opposite strand.",
    )
    windows: Policy = Field(
        default="tile",
        description="How training intervals are cut into windows of train.length, L: tile end to end | random: the "
        "tiles, each read moved by up to L/2 inside its interval | head: the first of each interval | grow-both: "
        "intervals shorter than L grow to both sides (HyenaDNA's rule), of longer ones the head | grow-ends: shorter "
        "ones give two windows, from their start and up to their end (the Mamba paper's rule), longer ones are tiled "
        "| grow-right: intervals grow to the right to data.grow_to and are tiled (Caduceus' rule).",
    )
    grow_to: int = Field(
        default=1 << 20, ge=2, description="Bases that grow-right grows an interval to; train.length must divide it."
    )
    shared_bases: SharedBases = Field(
        default="drop",
        description="What to do with training windows that hold bases of validation or test, counted after growth: "
        "drop them | trim them to their longest piece without | error | allow. Bases that train and validation "
        "intervals themselves share with a later split are taken from them under drop and trim.",
    )
    num_workers: int = Field(default=0, ge=0, le=256, description="Processes that read data beside the main one.")

    @model_validator(mode="after")
    def _something_to_train_on(self) -> "DnaDataConfig":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction + test_fraction must stay below 1")
        if self.weights is not None:
            values = self.weights.values()
            if not all(0 <= weight < math.inf for weight in values) or not sum(values) > 0:
                raise ValueError("weights are numbers from 0 up, one of them above 0")
        return self
