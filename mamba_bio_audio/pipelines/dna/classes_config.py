"""Settings of labelled DNA; free of torch."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mamba_bio_audio.pipelines.contract import DataSection


class DnaClassesConfig(DataSection):
    """Which labelled sequence, how it is split, and how windows are drawn from it."""

    packaged: ClassVar[tuple[str, ...]] = ("record",)

    tasks: ClassVar[tuple[str, ...]] = ("classes", "multilabel", "regression")
    kind: Literal["dna-classes"] = Field(default="dna-classes", description="Kind of data.")  # type: ignore[assignment]
    path: str | list[str] | dict[str, str | list[str]] | None = Field(
        default=None,
        description="A table (TSV, CSV or Parquet with the columns sequence, label and, optionally, split and id, or as "
        "data.columns says); a folder of tables train.tsv, dev.tsv, test.tsv (GUE) or of train.fna, test.fna with headers "
        ">name|label (Nucleotide Transformer); FASTA files, or a folder of them, one class each; a folder with one folder of "
        "FASTA per class; either of these in folders train, valid, test; a mapping from class to FASTA files or folders; a "
        "folder train|test / class / id.txt (GenomicBenchmarks); or, with data.labels, the FASTA that it refers to.",
    )
    labels: str | None = Field(
        default=None,
        description="BED file with record, start, end, label and, optionally, split, or with score and strand after the label "
        "(BED6) and then, optionally, split; it refers to the FASTA of data.path.",
    )
    columns: dict[str, str | list[str]] | None = Field(
        default=None,
        description="What the columns of tables are called, for example {sequence: seq, label: target}; also split, id, and "
        "group: rows of one group stay in one split.",
    )
    classes: list[str] | None = Field(
        default=None,
        min_length=2,
        description="Names of the classes to use, in the order of their numbers; null: all, sorted.",
    )
    files: str = Field(default="*", description="Glob for the names of the files to read from folders.")
    sampling: Literal["auto", "windows", "examples"] = Field(
        default="auto",
        description="windows: stretches of train.length bases from anywhere in the sequence of a class; examples: each "
        "sequence is one example and classes are as frequent as in the data; auto: windows for FASTA per class, else examples.",
    )
    contigs: Literal["length", "uniform"] = Field(
        default="length",
        description="How a window of a class, itself drawn uniformly, is placed. length: every start in the sequence of the "
        "class is equally probable; uniform: first a record is drawn, whatever its length (the paper).",
    )
    matched: bool = Field(
        default=False,
        description="Successive training windows show the same locus in every class in turn; records of the same name "
        "are one locus.",
    )
    split: Literal["auto", "intervals", "header", "groups", "blocks", "draw"] = Field(
        default="auto",
        description="Where splits of FASTA come from: data.intervals, the tag split= in FASTA headers, groups drawn with "
        "split_seed, or contiguous blocks drawn with split_seed and a guard of one window between splits; auto: the "
        "first of these that exists. draw: with split_seed, even if headers, columns, files or folders name splits.",
    )
    intervals: str | None = Field(
        default=None,
        description="Splits: TSV with the header file, record, start0, end, split, or 4-column BED.",
    )
    groups: str | None = Field(
        default=None,
        description="Homologous groups, each of which must be in one split: TSV with the header class, record, group; or "
        "`record`: records of the same name are one group; null: groups.tsv of a folder made by mba prepare apes.",
    )
    regions: str | None = Field(
        default=None,
        description="Satellites or other regions; accuracy is also given inside and outside of them. TSV with the header "
        "class, record, start0, end; null: regions.tsv of a folder made by mba prepare apes.",
    )
    valid_fraction: float = Field(
        default=0.1, ge=0, lt=1, description="Share of validation in all data but test, where the data name no splits."
    )
    test_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of test, where the data name no splits.")
    block_bases: int | None = Field(
        default=None,
        ge=2,
        description="Length of the blocks that are given to splits; null: 131072, less for small genomes.",
    )
    split_seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="Seed of splits and evaluation windows, independent of the training seed.",
    )
    few: int | None = Field(
        default=None,
        ge=1,
        description="Train on so many examples of each class (of all, where labels are no single class), drawn with "
        "split_seed, to see what few labels are worth; validation and test stay as they are. null: all.",
    )
    evaluation_windows: int = Field(
        default=500,
        ge=1,
        description="Largest number of windows per class in validation and in test; they do not overlap.",
    )
    max_unknown: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Windows with a larger share of bases other than A, C, G, T are not drawn, and such examples are left out.",
    )
    reverse_complement: bool = Field(
        default=True, description="Read every training sequence from the opposite strand with probability 0.5."
    )
    shared_bases: Literal["error", "allow", "drop"] = Field(
        default="error",
        description="What to do when splits of data.intervals or data.labels have bases in common, or when more than a fifth "
        "of the examples of validation or test are also in train, exactly or nearly (of the windows that are scored: in the "
        "training sequences of their class). With allow, draws keep equal and overlapping examples together but may separate "
        "near-duplicates. drop, for examples: those of validation that are also in train, exactly or nearly, are left out and "
        "counted, and the test split stays as it is.",
    )
    num_workers: int = Field(default=0, ge=0, le=256, description="Processes that read data beside the main one.")

    @model_validator(mode="after")
    def _consistent(self) -> "DnaClassesConfig":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("valid_fraction + test_fraction must stay below 1")
        if self.split == "intervals" and self.intervals is None:
            raise ValueError("split is intervals; name the file in intervals")
        if self.split == "groups" and self.groups is None:
            raise ValueError("split is groups; name the file in groups, or set groups to record")
        strange = set(self.columns or {}) - {"sequence", "label", "split", "id", "group"}
        if strange:
            raise ValueError(f"columns: no {min(strange)!r}; it names sequence, label, split, id and group")
        if any(isinstance(name, list) and key != "label" for key, name in (self.columns or {}).items()):
            raise ValueError("columns: only label may be several columns")
        names = [
            name for given in (self.columns or {}).values() for name in ([given] if isinstance(given, str) else given)
        ]
        low = [name.strip().lower() for name in names]
        twice = next((name for name, own in zip(names, low, strict=True) if low.count(own) > 1), None)
        if twice is not None:
            raise ValueError(f"columns: {twice!r} is named twice; each column has one meaning")
        if self.columns is not None and not self.columns.get("label", "label"):
            raise ValueError("columns: label names no column; name one or more")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("classes names a class twice; remove one of them")
        return self
