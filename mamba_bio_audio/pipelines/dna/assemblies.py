"""Published assemblies for species classification, their chromosome names, and which chromosomes are homologous.

Accessions are NCBI's. Records in NCBI's FASTA files are named by accessions; `*_assembly_report.txt` in the same folder
says which chromosome each one is. Chromosomes with equal numbers are not homologous between apes: human 2 is two ape
chromosomes, the telomere-to-telomere assemblies (Yoo et al. 2025) number by size, and gorilla carries the translocation
t(5;17). Splits therefore go by homologous group (`apes.py`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.unpacked import read_packed

NCBI = "https://ftp.ncbi.nlm.nih.gov/genomes/all"
APES = ("human", "chimpanzee", "bonobo", "gorilla", "orangutan")

_PAN = (
    "1:1 2:3 3:4 4:5 5:6 6:7 7:8 8:10 9:11 10:12 11:9 12:2a 13:2b 14:13 15:14 16:15 17:18 18:16 19:17 20:19 21:20 22:21 "
    "23:22 X:X Y:Y"
)
_PONGO = _PAN.replace("11:9 12:2a 13:2b", "11:2b 12:2a 13:9")
_GORILLA = _PONGO.replace("4:5 ", "4:17x5 ").replace("19:17 ", "19:5x17 ")
# Human numbers throughout, except 2A and 2B: the older assemblies name chromosomes by their human homologue.
_BY_HUMAN = " ".join(f"{n}:{n}" for n in [*range(1, 23), "2A", "2B", "X", "Y"])


@dataclass(frozen=True)
class Assembly:
    """One assembly at NCBI.

    Attributes:
        species: class name.
        accession: accession with version.
        name: name as in NCBI's folder names.
        generations: sets of assemblies of similar quality that it belongs to.
        homologues: chromosome -> human chromosome, `5x17` for a fusion of parts of both; None if unknown.
    """

    species: str
    accession: str
    name: str
    generations: tuple[str, ...]
    homologues: Mapping[str, str] | None = None

    @property
    def stem(self) -> str:
        """Name of its folder at NCBI, with which its file names begin."""
        return f"{self.accession}_{self.name}"

    def url(self, file: str, base: str = NCBI) -> str:
        """Address of one of its files."""
        kind, digits = self.accession[:3], self.accession[4:13]
        return f"{base.rstrip('/')}/{kind}/{digits[:3]}/{digits[3:6]}/{digits[6:9]}/{self.stem}/{file}"


def _table(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())


ASSEMBLIES = (
    Assembly("human", "GCA_009914755.4", "T2T-CHM13v2.0", ("t2t", "hyenadna"), _table(_BY_HUMAN)),
    Assembly("chimpanzee", "GCA_028858775.2", "NHGRI_mPanTro3-v2.0_pri", ("t2t",), _table(_PAN)),
    Assembly("bonobo", "GCA_029289425.2", "NHGRI_mPanPan1-v2.0_pri", ("t2t",), _table(_PAN)),
    Assembly("gorilla", "GCA_029281585.2", "NHGRI_mGorGor1-v2.0_pri", ("t2t",), _table(_GORILLA)),
    Assembly("orangutan", "GCA_028885655.2", "NHGRI_mPonAbe1-v2.0_pri", ("t2t",), _table(_PONGO)),
    Assembly("human", "GCF_000001405.40", "GRCh38.p14", ("older",), _table(_BY_HUMAN)),
    Assembly("chimpanzee", "GCF_002880755.1", "Clint_PTRv2", ("older",), _table(_BY_HUMAN)),
    Assembly("bonobo", "GCF_013052645.1", "Mhudiblu_PPA_v0", ("older",), _table(_BY_HUMAN)),
    Assembly("gorilla", "GCF_008122165.1", "Kamilah_GGO_v0", ("older",), _table(_BY_HUMAN)),
    Assembly("orangutan", "GCF_002880775.1", "Susie_PABv2", ("older",), _table(_BY_HUMAN)),
    Assembly("lemur", "GCA_020740605.1", "mLemCat1.pri", ("hyenadna",)),
    Assembly("mouse", "GCA_921998355.2", "A_J_v3", ("hyenadna",)),
    Assembly("pig", "GCA_002844635.1", "USMARCv1.0", ("hyenadna",)),
    Assembly("hippo", "GCA_023065835.1", "ASM2306583v1", ("hyenadna",)),
)


def find_assembly(species: str, generation: str) -> Assembly:
    """Find the assembly of a species in a generation, or with `species=ACCESSION_NAME` any assembly at NCBI.

    Raises:
        InputError: it is not in the table; lists what is.
    """
    if "=" in species:
        species, _, stem = species.partition("=")
        match = re.fullmatch(r"(GC[AF]_\d{9}\.\d+)_(\S+)", stem)
        if not match or not re.fullmatch(r"\w[\w.-]*", species):
            raise InputError(
                f"--species {species}={stem}: not an assembly; write NAME=ACCESSION_ASSEMBLY as NCBI names its folders, for "
                "example human=GCA_009914755.4_T2T-CHM13v2.0"
            )
        known = by_accession(match[1])
        return known or Assembly(species, match[1], match[2], ())
    for assembly in ASSEMBLIES:
        if assembly.species == species and generation in assembly.generations:
            return assembly
    listed = ", ".join(a.species for a in ASSEMBLIES if generation in a.generations)
    raise InputError(
        f"--species {species}: not among the {generation} assemblies ({listed}); choose another --generation, or write "
        f"{species}=ACCESSION_ASSEMBLY"
    )


def by_accession(accession: str) -> Assembly | None:
    """The listed assembly with an accession, or None."""
    return next((assembly for assembly in ASSEMBLIES if assembly.accession == accession), None)


@dataclass(frozen=True)
class ReportRow:
    """One sequence of an assembly report."""

    sequence_name: str
    role: str
    molecule: str
    location: str
    genbank: str
    refseq: str
    length: int | None
    ucsc: str

    @property
    def chromosome(self) -> str | None:
        """Name of the nuclear chromosome that this sequence is; None for all other sequences."""
        whole = self.role == "assembled-molecule" and self.location.lower() in ("chromosome", "linkage group")
        return self.molecule.removeprefix("chr") if whole and self.molecule not in ("na", "MT") else None

    @property
    def names(self) -> set[str]:
        """Names that a FASTA or BED file may use for it."""
        return {self.sequence_name, self.genbank, self.refseq, self.ucsc} - {"na", ""}


@dataclass(frozen=True)
class AssemblyReport:
    """NCBI's `*_assembly_report.txt`.

    Attributes:
        path: path of the file.
        accessions: GenBank and RefSeq accession of the assembly.
        name: name of the assembly.
        rows: sequences of the assembly.
    """

    path: str
    accessions: tuple[str, ...]
    name: str
    rows: tuple[ReportRow, ...]

    def chromosomes(self) -> dict[str, ReportRow]:
        """Nuclear chromosomes by name."""
        found: dict[str, ReportRow] = {}
        for row in self.rows:
            if row.chromosome is None:
                continue
            if row.chromosome in found:
                raise InputError(f"{self.path}: chromosome {row.chromosome} is listed twice; use a haploid assembly")
            found[row.chromosome] = row
        if not found:
            raise InputError(
                f"{self.path}: the assembly has no chromosomes (sequences of role assembled-molecule); use another one"
            )
        return found


def read_report(path: str | Path) -> AssemblyReport:
    """Parse an NCBI assembly report, plain or gzip.

    Raises:
        InputError: it is not such a report; names file and line.
    """
    try:
        text = read_packed(path).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as an assembly report ({error}); download it again") from None
    facts: dict[str, str] = {}
    columns: list[str] = []
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#"):
            content = line.lstrip("# ")
            if content.startswith("Sequence-Name"):
                columns = content.split("\t")
            elif ":" in content:
                name, _, value = content.partition(":")
                facts.setdefault(name.strip(), value.strip())
            continue
        if not line.strip():
            continue
        fields = line.split("\t")
        if not columns or len(fields) != len(columns):
            reason = f"{len(fields)} columns instead of {len(columns)}" if columns else "no line `# Sequence-Name ...`"
            raise InputError(f"{path}: line {number:,}: {reason}; give an NCBI assembly report")
        row = dict(zip(columns, fields, strict=True))
        try:
            rows.append(
                ReportRow(
                    row["Sequence-Name"],
                    row["Sequence-Role"],
                    row["Assigned-Molecule"],
                    row["Assigned-Molecule-Location/Type"],
                    row["GenBank-Accn"],
                    row["RefSeq-Accn"],
                    int(row["Sequence-Length"]) if row["Sequence-Length"] not in ("na", "") else None,
                    row.get("UCSC-style-name", "na").strip(),
                )
            )
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{path}: line {number:,}: {error} is missing or wrong; give an NCBI assembly report"
            ) from None
    keys = ("GenBank assembly accession", "RefSeq assembly accession")
    accessions = tuple(facts[key] for key in keys if facts.get(key, "na") != "na")
    if not rows:
        raise InputError(f"{path}: lists no sequence; give an NCBI assembly report")
    return AssemblyReport(str(path), accessions, facts.get("Assembly name", ""), tuple(rows))


def group_of(human: str) -> str:
    """Homologous group of a human chromosome or part: 2, 2a and 2b share one, as do 5 and 17, and X and Y.

    X and Y share the pseudoautosomal regions; 5 and 17 are joined by gorilla's t(5;17).
    """
    parts = human.lower().split("x") if re.fullmatch(r"\d+x\d+", human.lower()) else [human.lower()]
    if set(parts) & {"5", "17"}:
        return "5+17"
    if parts[0] in ("x", "y"):
        return "X+Y"
    return parts[0].rstrip("ab")


def check_homologues(report: AssemblyReport, assembly: Assembly) -> None:
    """Check the table of homologues against the `hsa` tags in the sequence names of T2T reports."""
    for chromosome, row in report.chromosomes().items():
        tag = re.search(r"hsa(\d+x\d+|\d+[ab]?|[XY])\b", row.sequence_name)
        listed = (assembly.homologues or {}).get(chromosome)
        if tag and listed is not None and tag[1].lower() != listed.lower():
            raise InputError(
                f"{report.path}: {row.sequence_name} says that chromosome {chromosome} is human {tag[1]}, but the table "
                f"for {assembly.stem} says {listed}; give the groups with --groups"
            )
