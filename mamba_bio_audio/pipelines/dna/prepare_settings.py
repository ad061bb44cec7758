"""Settings of prepared DNA, free of everything heavy: the command line is made from them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mamba_bio_audio.errors import InputError

# HyenaDNA's held-out numbers, as human chromosomes; their homologous groups are what is held out here.
VALID, TEST = "1,3,12,13", "5,7,9,10,11"


class GenomeSettings(BaseModel):
    """What of a genome is used, and how it is split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    intervals: Path | None = Field(None, description="BED (record, start, end, split) or TSV file with the splits.")
    contigs: tuple[str, ...] = Field(
        (), description="Records to use: primary (default), all, or a name or region like chr1:1-1,000,000; repeatable."
    )
    exclude: tuple[str, ...] = Field(
        (), description="Records to leave out: a name, or a regular expression that matches whole names; repeatable."
    )
    min_length: int = Field(0, ge=0, description="Leave out records with fewer bases.")
    valid_fraction: float = Field(0.05, ge=0, lt=1, description="Share of the validation split, below 1.")
    test_fraction: float = Field(0.05, ge=0, lt=1, description="Share of the test split, below 1.")
    split_by: Literal["blocks", "records"] = Field(
        "blocks", description="What goes to one split as a whole: blocks, or records to hold out whole chromosomes."
    )
    block_bases: int | None = Field(
        None, ge=2, description="Length of the blocks; by default 131,072 bases, less for small genomes."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Random seed for assigning blocks or records to splits.")
    allow_shared_bases: bool = Field(False, description="Accept splits that have bases in common.")
    allow_duplicates: bool = Field(
        False,
        description="Accept a held-out split of which more than a fifth also occurs in train, and keep small records that "
        "repeat another split.",
    )

    @model_validator(mode="after")
    def _something_to_train_on(self) -> GenomeSettings:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                "--valid-fraction and --test-fraction leave nothing to train on; their sum must be below 1"
            )
        return self

    @property
    def contig_policy(self) -> str | list[str]:
        """`contigs` in the form of `data.contigs`: a policy or one name, or a list of names and regions."""
        return list(self.contigs) if len(self.contigs) > 1 else self.contigs[0] if self.contigs else "primary"


class SpeciesSettings(BaseModel):
    """Which species and assemblies are classes, and which chromosomes are held out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    species: tuple[str, ...] = Field(
        (),
        description="Species name, or NAME=ACCESSION_ASSEMBLY for any assembly of NCBI; repeatable. By default the five great "
        "apes, or every folder of --from.",
    )
    generation: Literal["t2t", "older", "hyenadna"] = Field(
        "t2t", description="Which generation of published assemblies to download."
    )
    split: str = Field(
        "homology", description="How to split: homology, or a TSV file with the columns class, record, split."
    )
    valid: str = Field(VALID, description="Human chromosomes whose homologous groups are the validation split.")
    test: str = Field(TEST, description="Human chromosomes whose homologous groups are the test split.")
    groups: Path | None = Field(
        None, description="TSV file with the columns class, record, group: homologous chromosomes of other species."
    )
    regions: tuple[str, ...] = Field(
        (),
        description="NAME=BED: satellites or other regions of a species, scored separately by mba evaluate; repeatable.",
    )
    mix_generations: bool = Field(False, description="Accept assemblies of different generations.")
    unknown_homology: bool = Field(
        False, description="Accept species whose homologous chromosomes are not known; they are held out by number."
    )

    def beds(self) -> dict[str, Path]:
        """`regions` by species.

        Raises:
            InputError: one of them is not NAME=BED.
        """
        found = {}
        for text in self.regions:
            name, equals, path = text.partition("=")
            if not equals:
                raise InputError(f"--regions {text}: write NAME=BED, for example human=censat.bed")
            found[name] = Path(path)
        return found


def chromosomes(text: str) -> list[str]:
    """Chromosomes of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
