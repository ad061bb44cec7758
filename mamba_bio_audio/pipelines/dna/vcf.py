"""Reads and writes variant calls (VCF 4.x): every line comes back as it was, with fields added to INFO.

Text is kept as text: numbers, unknown fields and genotypes are never parsed, so nothing is rounded or lost. Only BCF, and
reading a region through an index, need pysam, which is imported there and does not exist for Windows.

The lines are copied to a plain file first, because they are needed twice: by contig, to be scored along the genome, and
in the end in their own order. Memory holds 16 bytes a line, and the lines of one contig at a time.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna import bgzf
from mamba_bio_audio.pipelines.dna.variants import Variant
from mamba_bio_audio.text import printable

STDIN = "-"
PREFIX = "MBA_"
COLUMNS = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO"]
_PIECE_BYTES = 1 << 20
_LONGEST_LINE = 1 << 28


class Malformed(NamedTuple):
    """A line that is no record.

    Attributes:
        line: its number in the file, from 1.
        what: what is wrong, and where.
    """

    line: int
    what: str


class Calls:
    """Lines of variant calls, in the order of the file.

    Args:
        source: VCF, plain, BGZF or gzip; BCF; `-`: standard input.
        copy: file to create for the lines.
        region: `record:start-end`, read through the file's index.

    Attributes:
        header: its lines, without line ends; the last has the names of the columns.
        contigs: numbers of the lines of each contig, in order, by its name in the file.
        first_allele: number of each line's first allele, counted over the file, and at the end of all.
        malformed: lines that are no records; they have no alleles.
        sha256: of header and lines.

    Raises:
        InputError: it is no VCF file, damaged, or needs pysam or an index that is not there.
    """

    def __init__(self, source: str, copy: Path, region: str | None = None) -> None:
        self.source, self.copy = source, copy
        self.header: list[str] = []
        self.contigs: dict[str, array[int]] = {}
        self.first_allele = array("q", [0])
        self.malformed: list[Malformed] = []
        self._at = array("q")
        self._columns = 0
        digest = hashlib.sha256()
        with copy.open("wb") as out:
            for line in _lines(source, copy.with_suffix(".raw"), region):
                digest.update(line)
                if self._columns:
                    self._at.append(out.tell())
                    self._note(line)
                    out.write(line)
                else:
                    self._head(line)
        if not self._columns:
            raise InputError(f"{self.name}: has no line #CHROM, so it is no VCF file, or was cut short; check the file")
        self.sha256 = digest.hexdigest()

    @property
    def name(self) -> str:
        """The file, for messages."""
        return "standard input" if self.source == STDIN else self.source

    def __len__(self) -> int:
        return len(self._at)

    def line_number(self, number: int) -> int:
        """Where in the file a line stands, from 1."""
        return len(self.header) + number + 1

    def where(self, number: int, variant: Variant) -> str:
        """A record for people: file, line, place and alleles."""
        from mamba_bio_audio.pipelines.dna.variants import shortened

        alleles = f"{shortened(variant.reference)}>{shortened(variant.alternative)}"
        return f"{self.name}, line {self.line_number(number):,} ({printable(variant.record)}:{variant.start + 1} {alleles})"

    def variants(self, contig: str) -> Iterator[tuple[int, list[Variant]]]:
        """The records of a contig in order: number of the line, and its alleles."""
        with self.copy.open("rb") as file:
            for number in self.contigs[contig]:
                file.seek(self._at[number])
                yield number, _alleles(_text(file.readline()))

    def lines(self) -> Iterator[tuple[int, str]]:
        """All lines in order, by number, with their ends."""
        with self.copy.open("rb") as file:
            for number, line in enumerate(file):
                yield number, _text(line)

    def _head(self, line: bytes) -> None:
        text = _text(line).rstrip("\r\n")
        if not self.header and not text.startswith("##fileformat=VCF"):
            raise InputError(
                f"{self.name}: not a VCF file: its first line is {printable(text[:60])!r}, not ##fileformat=VCFv4.2 or alike"
            )
        if not text.startswith("#"):
            raise InputError(
                f"{self.name}, line {len(self.header) + 1:,}: a record before the line #CHROM; the header is damaged"
            )
        if text.startswith(f"##INFO=<ID={PREFIX}"):
            raise InputError(f"{self.name}: has the fields {PREFIX}* already; give the file that it was made from")
        self.header.append(text)
        if not text.startswith("##"):
            names = text.split("\t")
            if names[:8] != COLUMNS:
                raise InputError(
                    f"{self.name}, line {len(self.header):,}: the columns must be {' '.join(COLUMNS)}, separated by tabs"
                )
            self._columns = len(names)

    def _note(self, line: bytes) -> None:
        """Remember where a line stands, and whose it is."""
        number = len(self._at) - 1
        fields = _text(line).rstrip("\r\n").split("\t")
        alleles = 0
        # A blank line is no record, and no mistake either.
        if fields != [""]:
            if wrong := self._wrong(fields):
                shown = printable(" ".join(fields[:5])[:60])
                what = f"{self.name}, line {self.line_number(number):,} ({shown}): {wrong}"
                self.malformed.append(Malformed(self.line_number(number), what))
            else:
                self.contigs.setdefault(sys.intern(fields[0]), array("q")).append(number)
                alleles = fields[4].count(",") + 1
        self.first_allele.append(self.first_allele[-1] + alleles)

    def _wrong(self, fields: list[str]) -> str:
        if fields[0].startswith("#"):
            return "a line of a header among the records"
        if len(fields) != self._columns:
            return f"{len(fields):,} columns separated by tabs, but the header names {self._columns:,}"
        if not (fields[1].isascii() and fields[1].isdigit()):
            return f"POS is {printable(fields[1][:20])!r}, not a number"
        empty = [name for name, value in zip(COLUMNS, fields, strict=False) if not value]
        return f"{empty[0].lstrip('#')} is empty" if empty else ""


def read_variants(path: str | os.PathLike[str]) -> list[Variant]:
    """Every allele of a file of calls, in order.

    Raises:
        InputError: as for `Calls`, or a line is no record.
    """
    with tempfile.TemporaryDirectory() as folder:
        calls = Calls(os.fspath(path), Path(folder) / "calls.txt")
        if calls.malformed:
            raise InputError(calls.malformed[0].what)
        first = calls.first_allele
        return [one for number, line in calls.lines() if first[number + 1] > first[number] for one in _alleles(line)]


def _alleles(line: str) -> list[Variant]:
    """The alleles of a record."""
    fields = line.split("\t", 5)
    return [Variant(sys.intern(fields[0]), int(fields[1]) - 1, fields[3], other) for other in fields[4].split(",")]


def annotated(line: str, info: Mapping[str, str]) -> str:
    """A line with fields added to INFO."""
    fields = line.split("\t")
    end = fields[7][len(fields[7].rstrip("\r\n")) :]
    before = fields[7].rstrip("\r\n")
    added = ";".join(f"{key}={value}" for key, value in info.items())
    fields[7] = (added if before in (".", "") else f"{before.rstrip(';')};{added}") + end
    return "\t".join(fields)


def info_line(key: str, number: str, kind: str, description: str) -> str:
    """Declaration of a field of INFO."""
    return f'##INFO=<ID={key},Number={number},Type={kind},Description="{description}">'


def with_header(header: list[str], added: Iterable[str]) -> Iterator[str]:
    """Lines of a header with more of them before the names of the columns."""
    for line in (*header[:-1], *added, header[-1]):
        yield line + "\n"


def write(out: Path, lines: Iterable[str], work: Path) -> None:
    """Write a file by its name, `.vcf`, `.vcf.gz` (BGZF) or `.bcf`; it appears whole.

    Args:
        out: the file.
        lines: header and records.
        work: folder for what is half made.

    Raises:
        InputError: a BCF file cannot hold these lines.
    """
    from mamba_bio_audio.files import atomic_path

    kind = suffix(out)
    if kind == ".vcf.gz":
        with bgzf.writing(out) as put:
            for line in lines:
                put(_bytes(line))
        return
    if kind == ".bcf":
        _write_bcf(out, lines, work / "scored.vcf")
        return
    with atomic_path(out) as temporary:
        _put(temporary, lines)


def check_bcf(calls: Calls, work: Path) -> None:
    """Write calls as BCF to see whether that can be done, before they are scored.

    Raises:
        InputError: it cannot.
    """
    if calls.malformed:
        raise InputError(f"{calls.malformed[0].what}; BCF cannot hold such a line: correct it, or write .vcf.gz")
    trial = work / "calls.bcf"
    write(trial, chain(with_header(calls.header, ()), (line for _, line in calls.lines())), work)
    trial.unlink()


def _write_bcf(out: Path, lines: Iterable[str], text: Path) -> None:
    """Write BCF by way of a file of text. The header of BCF must declare all that the records use, that of VCF need not."""
    from mamba_bio_audio.files import atomic_path

    pysam = import_pysam("BCF")
    from pysam import bcftools

    _put(text, lines)
    with _quiet(pysam), atomic_path(out) as temporary:
        try:
            with pysam.VariantFile(str(text)) as file:
                # Reading adds what is missing to the header.
                for _ in file:
                    pass
                header = str(file.header)
            declared = text.with_suffix(".declared.vcf")
            with text.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                _put(declared, chain([header], (line for line in file if not line.startswith("#"))))
            # Not record by record through pysam, which adds END to symbolic alleles, in a header that has been written by then.
            bcftools.view("--no-version", "-Ob", "-o", str(temporary), str(declared), catch_stdout=False)
        except (OSError, ValueError, pysam.SamtoolsError) as error:
            raise InputError(f"these calls cannot be written as BCF ({error}); write .vcf.gz instead") from None
    text.unlink()
    declared.unlink()


def _put(path: Path, lines: Iterable[str]) -> None:
    with path.open("wb") as file:
        for line in lines:
            file.write(_bytes(line))


def suffix(out: Path) -> str:
    """The kind of file that is written, by its name.

    Raises:
        InputError: it is none of them.
    """
    for kind in (".vcf.gz", ".vcf.bgz", ".vcf", ".bcf"):
        if out.name.lower().endswith(kind):
            return kind.replace(".bgz", ".gz")
    raise InputError(f"{out}: must end in .vcf, .vcf.gz (BGZF) or .bcf")


def begins_with(path: Path, text: str) -> bool:
    """Whether the first megabyte of a file, unpacked, has a text, or the file is empty."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    try:
        with (gzip.open if packed else open)(path, "rb") as file:
            head = file.read(1 << 20)
    except (OSError, EOFError):
        return False
    return not head or text.encode() in head


def import_pysam(what: str) -> Any:
    """pysam.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pysam
    except ImportError:
        raise InputError(
            f"{what} needs pysam, which is not installed here (there is none for Windows); convert the file to .vcf.gz "
            "with bcftools view, or pip install pysam"
        ) from None
    return pysam


@contextmanager
def _quiet(pysam: Any) -> Iterator[None]:
    """Without htslib's own messages."""
    before = pysam.set_verbosity(0)
    try:
        yield
    finally:
        pysam.set_verbosity(before)


def _lines(source: str, raw: Path, region: str | None) -> Iterator[bytes]:
    """Lines of a file of any kind; each ends with a line end."""
    path = Path(source)
    if source == STDIN:
        path = raw
        with raw.open("wb") as out:
            shutil.copyfileobj(sys.stdin.buffer, out)
    elif path.is_dir():
        raise InputError(f"{source}: a folder; give a VCF file")
    elif not path.exists():
        raise InputError(f"{source}: there is no such file")
    try:
        if region is not None:
            if source == STDIN:
                raise InputError("--region reads through an index, which standard input has not; leave it out")
            yield from _of_region(path, region)
        elif _is_bcf(path):
            pysam = import_pysam(f"{source}: BCF")
            with _quiet(pysam), _opened(pysam, path) as file:
                yield from _header_of(file)
                yield from _records_of(source, file)
        else:
            yield from _text_lines(source, path)
    finally:
        raw.unlink(missing_ok=True)


def _text_lines(source: str, path: Path) -> Iterator[bytes]:
    rest = b""
    with bgzf.reading(path) as read:
        while data := read(_PIECE_BYTES):
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            if len(rest) > _LONGEST_LINE:
                raise InputError(f"{source}: a line of more than {_LONGEST_LINE:,} bytes; it is no VCF file")
            yield from (line + b"\n" for line in lines)
    if rest:
        yield rest + b"\n"


def _of_region(path: Path, region: str) -> Iterator[bytes]:
    pysam = import_pysam("--region")
    with _quiet(pysam), _opened(pysam, path) as file:
        yield from _header_of(file)
        try:
            found = file.fetch(region=region.replace(",", ""))
        except ValueError as error:
            raise InputError(
                f"{path}: --region {region} cannot be read ({error}); it needs an index (tabix -p vcf {path.name}), and "
                "record:start-end with a record of the file"
            ) from None
        if _is_bcf(path):
            yield from _records_of(str(path), found)
            return
    with pysam.TabixFile(str(path), encoding="utf-8") as table:
        for line in table.fetch(region=region.replace(",", "")):
            yield _bytes(line + "\n")


@contextmanager
def _opened(pysam: Any, path: Path) -> Iterator[Any]:
    try:
        file = pysam.VariantFile(str(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the file") from None
    with file:
        yield file


def _header_of(file: Any) -> Iterator[bytes]:
    yield from str(file.header).encode("utf-8", "surrogateescape").splitlines(keepends=True)


def _records_of(source: str, records: Iterable[Any]) -> Iterator[bytes]:
    try:
        for record in records:
            yield _bytes(str(record))
    except OSError as error:
        raise InputError(f"{source}: damaged ({error}); it is truncated, or was not copied completely") from None


def _is_bcf(path: Path) -> bool:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    if not packed:
        return False
    try:
        with gzip.open(path, "rb") as file:
            return file.read(4) == b"BCF\x02"
    except (OSError, EOFError):
        return False


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _bytes(line: str) -> bytes:
    return line.encode("utf-8", "surrogateescape")


def standard_output(lines: Iterable[str], to: IO[str]) -> None:
    """Write lines to a text stream, in bytes where it has them."""
    binary = getattr(to, "buffer", None)
    for line in lines:
        if binary is None:
            to.write(line)
        else:
            binary.write(_bytes(line))
    to.flush()


def size_and_time(source: str) -> list[int]:
    """What tells one state of a file from another; nothing for standard input."""
    if source == STDIN or not os.path.exists(source):
        return []
    status = os.stat(source)
    return [status.st_size, status.st_mtime_ns]
