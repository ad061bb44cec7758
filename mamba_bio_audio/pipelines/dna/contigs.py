"""Names of chromosomes: aliases, primary contigs, and regions.

`chr1`, `1`, `NC_000001.11` and `CM000663.2` are the same sequence. Names are compared only through the tables here,
never guessed from lengths. Accessions carry the version of the assembly: one of GRCh37 never stands for GRCh38's. Plain
names (`chr1`, `1`, `chrM`, `MT`) are interchangeable in any assembly. (In UCSC's hg19, chrM is another mitochondrion,
NC_001807.4, than GRCh37's MT.)

Regions are written `record:start-end`, 1-based with the end included, as in genome browsers; within the library, spans
are 0-based half-open.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

HUMAN = (*(str(number) for number in range(1, 23)), "X", "Y")
# Versions of NC_000001 ... NC_000024 by assembly (NCBI assembly reports GCF_000001405.25, GCF_000001405.40).
_GRCH37 = (10, 11, 11, 11, 9, 11, 13, 10, 11, 10, 9, 11, 10, 8, 9, 9, 10, 9, 9, 10, 8, 10, 10, 9)
_GRCH38 = (11, 12, 12, 12, 10, 12, 14, 11, 12, 11, 10, 12, 11, 9, 10, 10, 11, 10, 10, 11, 9, 11, 11, 10)
# GenBank numbers of T2T-CHM13v2.0 run down from chromosome 1; Y came later.
_CHM13 = (*(f"CP{68277 - index:06}.2" for index in range(23)), "CP086569.2")


def _accessions() -> dict[str, tuple[str, str]]:
    table = {"NC_012920.1": ("rCRS", "M"), "J01415.2": ("rCRS", "M"), "CP068254.1": ("CHM13", "M")}
    for index, name in enumerate(HUMAN):
        for assembly, version, genbank in (("GRCh37", _GRCH37[index], 1), ("GRCh38", _GRCH38[index], 2)):
            table[f"NC_{index + 1:06}.{version}"] = table[f"CM{663 + index:06}.{genbank}"] = (assembly, name)
        table[f"NC_{60925 + index:06}.1"] = table[_CHM13[index]] = ("CHM13", name)
    return table


# Accession -> assembly and plain name of the chromosome.
ACCESSIONS = _accessions()

# Names of parts of an assembly other than its chromosomes.
_SECONDARY = re.compile(
    # UCSC: alternative loci, patches, haplotypes, unlocalised and unplaced scaffolds, decoys, heterochromatin of the fly.
    r".*_(alt|fix|hap\d*|random|decoy|unloc\w*|unplaced\w*)(_.*)?|(chr)?Un(_.+)?|chrU(extra)?|chr\w+Het|"
    # Decoys, HLA alleles and viruses of the analysis sets.
    r"hs3[78]d\d.*|HLA-.+|chrEBV|EBV|NC_007605(\.\d+)?|"
    # Unplaced scaffolds of rice and of the fly, and the fly's ribosomal scaffold.
    r"chrSy|2110000\d{8}|rDNA|"
    # Ensembl: patches, haplotypes. NCBI: scaffolds, and those of GenBank by its prefixes.
    r".+_PATCH|HSCHR.+|CHR_.+|(NT|NW)_\d+(\.\d+)?|(GL|KI|KB|KE|KK|KL|KN|KQ|KV|KZ|ML|JH|MU|DS|CH|GG)\d{6}(\.\d+)?|"
    # Contigs of whole-genome shotgun projects.
    r"[A-Z]{4}\d{8,10}(\.\d+)?|[A-Z]{6}\d{9,11}(\.\d+)?|"
    # Names that assemblers give.
    r"((un)?placed[-_]?)?((super[-_]?)?scaffold|contig|ctg|tig|unitig|node|unplaced|unlocali[sz]ed|unassigned|unanchored|unmapped)"
    r"([-_|.]?\d.*|[-_|.].+)?",
    re.IGNORECASE,
)
# Names of mitochondria and plastids: UCSC, Ensembl, model organisms, and known accessions.
_ORGANELLE = re.compile(
    r"(chr)?(M|MT|Mito|MtDNA|Pt|Pltd|C)(_(maternal|paternal|mat|pat))?|(dmel_)?mitochondri(on|al)(_genome)?|"
    r"(chr_?)?(mitochondri(on|al?)|chloroplast|plastid|apicoplast)|[A-Za-z0-9]+_(API|MIT)(_v[\d.]+)?|"
    r"NC_(012920|001807|001643|001645|001646|005089|001665|024511|001328|001224|037304|000932|001879|001284|002333|040902)\.\d+|"
    r"J01415\.\d+|CP068254\.\d+",
    re.IGNORECASE,
)
# Header text after the name, at NCBI and Ensembl.
_SECONDARY_TITLE = re.compile(
    r"\b(unplaced|unlocali[sz]ed)\b.*\b(scaffold|contig|sequence)|\bgenomic patch\b|\balternate (locus|loci|haplotype)\b|"
    r"\bALT_REF_LOCI|\b(NOVEL|FIX)_PATCH\b|\bdna(_rm|_sm)?:(super)?(contig|scaffold)\b|\bPATCH_(FIX|NOVEL)\b|\bHAP(LOTYPE)?$",
    re.IGNORECASE,
)
_ORGANELLE_TITLE = re.compile(
    r"\b(mitochondri(on|al (genome|dna))|chloroplast|plastid|apicoplast|kinetoplast|organelle)\b|"
    r"\bchromosome[:= ]+(MT|mitochondri\w+)\b|\b(mitochondrial|apicoplast|plastid)_chromosome\b",
    re.IGNORECASE,
)
# Headers of NCBI and ENA, Ensembl, SGD, and VEuPathDB.
_CHROMOSOME_TITLE = re.compile(r"\bchromosome[:= ](?![:= ]*(MT\b|mitochondri))|\bSO=chromosome\b", re.IGNORECASE)
_CHROMOSOME = re.compile(
    # 1, chr2L, chrXVI, chr3B, chr1H; chr1_MATERNAL of a diploid assembly.
    r"((chr)?_?(\d{1,3}[A-Z]?|[WXYZ]|[IVX]+)|chromosome.*|SUPER_\w+)(_(maternal|paternal|mat|pat))?|"
    # Linkage groups; Brassica's A01; SL4.0ch01 of the tomato; Pf3D7_01_v3.
    r"(chr)?LG_?\w{1,4}|(chr)?[A-D]\d\d|\w+(\.\d)?ch\d\d|[A-Za-z0-9]+_\d\d_v[\d.]+|"
    # Gm01 of the soya bean, Bd1: the initials of a species.
    r"(?-i:[A-Z][a-z]_?\d{1,2})",
    re.IGNORECASE,
)
_ACCESSION = re.compile(r"(NC|AC)_\d{6}\.\d+|(CM|CP)\d{6}\.\d+")
# No genome has more; a file with more organelles than chromosomes is a collection of organelles.
_MOST_ORGANELLES = 2
_REGION = re.compile(r"(.+):(\d{1,3}(?:,\d{3}){1,4}|\d{1,15})-(\d{1,3}(?:,\d{3}){1,4}|\d{1,15})", re.ASCII)


class Region(NamedTuple):
    """`record:start-end` as written: 1-based, end included; start and end are None if only the record is given."""

    record: str
    start: int | None
    end: int | None


def parse_region(text: str) -> Region:
    """Split `chr1:1,001-2,000` into its parts; any other text is a record's name."""
    match = _REGION.fullmatch(text)
    if match is None:
        return Region(text, None, None)
    start, end = (int(number.replace(",", "")) for number in match.groups()[1:])
    return Region(match[1], start, end)


def same_sequence(first: str, second: str) -> bool:
    """Whether two names mean the same chromosome according to the tables."""
    (assembly, name), (other_assembly, other_name) = _identity(first), _identity(second)
    return name == other_name and (not assembly or not other_assembly or assembly == other_assembly)


def primary(names: Iterable[str], titles: Iterable[str] | None = None) -> list[str]:
    """Names of the chromosomes, and of records that cannot be distinguished from them.

    Alternative loci, patches, unplaced and unlocalised scaffolds, decoys, viruses, mitochondria and plastids, recognised
    by names or headers, are left out if there are chromosomes beside them; an assembly of scaffolds only, or a collection
    of organelles, is kept as a whole. For accessions the headers tell which are organelles.

    Args:
        names: names of the records of one file.
        titles: text after the names in their headers, in the same order.
    """
    names = list(names)
    about = dict(zip(names, titles if titles is not None else [""] * len(names), strict=True))
    organelles = {name for name in names if _is_organelle(name, about[name])}
    parts = [name for name in names if not _is_secondary(name, about[name])]
    kept = [name for name in parts if name not in organelles]
    # An accession alone may belong to anything.
    told = [name for name in kept if _is_chromosome(name, about[name])]
    if not told and not any(_ACCESSION.fullmatch(name) for name in kept):
        return names
    collection = not told or len(organelles) > max(_MOST_ORGANELLES, len(told))
    return parts if collection else kept


def _is_secondary(name: str, title: str) -> bool:
    """Whether a record, judging by name or header, is a part other than a chromosome."""
    return bool(_SECONDARY.fullmatch(name) or _SECONDARY_TITLE.search(title))


def _is_organelle(name: str, title: str) -> bool:
    if _ORGANELLE.fullmatch(name):
        return True
    # The header of a chromosome may mention a mitochondrial gene.
    return bool(_ORGANELLE_TITLE.search(title)) and not _CHROMOSOME_TITLE.search(title)


def _is_chromosome(name: str, title: str) -> bool:
    """Whether a record is a chromosome, judging by its name or header."""
    return name in ACCESSIONS or bool(_CHROMOSOME.fullmatch(name) or _CHROMOSOME_TITLE.search(title))


def _identity(name: str) -> tuple[str, str]:
    """Assembly (empty if the name does not tell it) and plain name of the chromosome."""
    if name in ACCESSIONS:
        return ACCESSIONS[name]
    bare = name[3:] if name[:3].lower() == "chr" and len(name) > 3 else name
    return "", "M" if bare in ("MT", "M") else bare
