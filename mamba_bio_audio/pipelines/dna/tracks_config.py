"""Settings of a genome with labels along it; free of torch."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mamba_bio_audio.pipelines.contract import DataSection


class DnaTracksConfig(DataSection):
    """Which genome, what is known along it, how it is split, and how windows are read."""

    packaged: ClassVar[tuple[str, ...]] = ("demo",)

    tasks: ClassVar[tuple[str, ...]] = ("bases", "tracks")
    kind: Literal["dna-tracks"] = Field(default="dna-tracks", description="Kind of data.")  # type: ignore[assignment]
    path: str | list[str] | None = Field(
        default=None,
        description="FASTA or 2bit file, a list or a folder of them, or a folder made by `mba prepare genome`.",
    )
    tracks: str | list[str] | dict[str, str] | None = Field(
        default=None,
        description="What is known along the genome: bigWig files of numbers, each a track named after its file or by a "
        "mapping from names to files; or for head.task=bases one BED file of record, start, end, the class of these bases and, "
        "optionally, score and strand.",
    )
    bin: int = Field(
        default=1,
        ge=1,
        le=1 << 20,
        description="Bases per value: the mean of a track over a bin; 1 for head.task=bases.",
    )
    margin: int = Field(
        default=0,
        ge=0,
        description="Bases read on either side of those that are scored in a window: what is predicted for a base has seen at "
        "least so many before and behind it. train.length includes both margins.",
    )
    missing: Literal["zero", "ignore"] = Field(
        default="zero", description="Bases without a value in a bigWig: zero, as in coverage, or not scored."
    )
    stranded: bool = Field(
        default=False,
        description="Classes of a BED count on their own strand only: a window that is read from the opposite strand has those "
        "of that strand. false: on both.",
    )
    intervals: str | None = Field(
        default=None,
        description="Splits: BED, or TSV with the header file, record, start0, end, split; null: as for data.kind=dna.",
    )
    contigs: str | list[str] = Field(
        default="primary",
        description="What of the genome is used: primary, all, or names and regions, as for data.kind=dna.",
    )
    valid_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of validation without intervals.")
    test_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of test without intervals.")
    split_by: Literal["blocks", "records"] = Field(
        default="blocks", description="What is given to one split as a whole without intervals."
    )
    block_bases: int | None = Field(
        default=None, ge=2, description="Length of the blocks that are split; null: 131072, less for small genomes."
    )
    split_seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the choice of blocks.")
    evaluation_windows: int = Field(
        default=2000, ge=1, description="Largest number of windows of validation and of test, spread evenly."
    )
    max_unknown: float = Field(
        default=0.1, ge=0, le=1, description="Windows with a larger share of bases other than A, C, G, T are left out."
    )
    reverse_complement: bool = Field(
        default=True, description="Read every training window from the opposite strand with probability 0.5."
    )
    num_workers: int = Field(default=0, ge=0, le=256, description="Processes that read data beside the main one.")

    @model_validator(mode="after")
    def _consistent(self) -> "DnaTracksConfig":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction + test_fraction must stay below 1")
        return self
