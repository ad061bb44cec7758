"""Prepares the human reference with the published split of the pretraining experiments: `mba prepare hg38`.

34,021 training, 2,213 validation and 1,937 test intervals of 131,072 bases (Basenji2, Kelley 2020; Enformer, Avsec et al.
2021), as used by HyenaDNA, the Mamba paper (section E.3.1) and Caduceus. Training intervals overlap each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mamba_bio_audio.errors import InputError, NetworkError
from mamba_bio_audio.files import Maker, growing_folder, read_json, write_json, write_text
from mamba_bio_audio.pipelines.dna import prepare
from mamba_bio_audio.pipelines.dna.bgzf import is_ordinary_gzip, recompress
from mamba_bio_audio.pipelines.dna.prepare_settings import GenomeSettings
from mamba_bio_audio.pipelines.dna.sources import INTERVALS_NAME, MANIFEST_NAME
from mamba_bio_audio.pipelines.download import Downloaded, download, verify
from mamba_bio_audio.pipelines.reporter import Reporter


class Published(NamedTuple):
    """A published split.

    Attributes:
        interval_bases: length of every interval.
        counts: number of intervals in each split.
    """

    interval_bases: int
    counts: Mapping[str, int]


PUBLISHED = Published(131_072, {"train": 34_021, "valid": 2_213, "test": 1_937})
FASTA_NAME = "hg38.fa.gz"
BED_NAME = "human-sequences.bed"
_ORIGIN_NAME = "hg38.fa.gz.source.json"
MAKER = Maker("prepare hg38", (f"{FASTA_NAME}*", BED_NAME, INTERVALS_NAME, MANIFEST_NAME))


@dataclass(frozen=True)
class RemoteFile:
    """A published file.

    Attributes:
        name: its name, which `--from` and `--url` look for; `also` lists its names elsewhere.
        urls: addresses, tried in this order.
        hashes: published hashes.
    """

    name: str
    urls: tuple[str, ...]
    hashes: Mapping[str, str] = field(default_factory=dict)
    also: tuple[str, ...] = ()


_BUCKET = "https://storage.googleapis.com/basenji_barnyard2"
SOURCES: Mapping[str, tuple[RemoteFile, RemoteFile]] = {
    "basenji": (
        RemoteFile(
            "hg38.ml.fa.gz",
            (
                f"{_BUCKET}/hg38.ml.fa.gz",
                "https://storage.googleapis.com/seqnn-share/helper/dependencies/hg38.ml.fa.gz",
            ),
            also=("hg38.ml.fa",),
        ),
        RemoteFile("sequences_human.bed", (f"{_BUCKET}/sequences_human.bed",), also=(BED_NAME,)),
    ),
    "ucsc": (
        RemoteFile(
            "hg38.fa.gz",
            ("https://hgdownload.soe.ucsc.edu/goldenPath/hg38/bigZips/hg38.fa.gz",),
            {"md5": "1c9dcaddfa41027f17cd8f7a82c7293b"},
            also=("hg38.fa",),
        ),
        RemoteFile(
            "human_intervals.tsv",
            ("https://huggingface.co/datasets/Genentech/enformer-data/resolve/main/human_intervals.tsv",),
        ),
    ),
}
_HEADER = {"chrom": "record", "chr": "record", "chromosome": "record", "record": "record", "seqnames": "record"}
_HEADER |= {"start": "start", "start0": "start", "chromstart": "start", "end": "end", "chromend": "end"}
_HEADER |= {"split": "split", "fold": "split", "subset": "split"}


def prepare_hg38(
    out: Path,
    *,
    source: str = "basenji",
    at_hand: Path | None = None,
    url: str | None = None,
    downloads: Path | None = None,
    published: Published = PUBLISHED,
    force: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Download or take hg38 and its published split, check both, and write a folder for `data.path`.

    Running it again after an interruption continues: downloads resume, and a recompressed FASTA is kept.

    Args:
        out: folder to create; receives the FASTA as BGZF if the source is ordinary gzip.
        source: key of `SOURCES`.
        at_hand: folder that contains both files under their published names; nothing is downloaded.
        url: address of a folder that contains them, instead of the published addresses.
        downloads: folder for downloaded files; None means `<out>.downloads`.
        published: the split that the intervals must match.
        force: replace what an earlier call left in `out`.
        reporter: receives notes, and progress in bytes.

    Returns:
        The manifest.

    Raises:
        InputError: the files are not the published ones, or `out` holds something else.
        NetworkError: a download failed.
    """
    reporter = reporter or Reporter()
    if at_hand is not None and not at_hand.is_dir():
        raise InputError(f"--from {at_hand}: no such folder; give the folder that holds the two files")
    given = [path for path in (at_hand, downloads) if path is not None]
    with growing_folder(out.expanduser(), MAKER, MANIFEST_NAME, inputs=given, force=force) as folder:
        fetched = downloads or folder.with_name(f"{folder.name}.downloads")
        fasta, intervals = (_obtain(file, fetched, at_hand, url, reporter) for file in SOURCES[source])
        try:
            rows = read_published(Path(intervals.path), published.interval_bases)
            check_published(rows, intervals.path, published)
        except InputError as error:
            # No hash is published, so a network's log-in page is accepted as the file, and would be used again.
            again = "" if at_hand else f"; remove {intervals.path} to fetch it again"
            raise InputError(f"{error}{again}") from None
        write_text(folder / BED_NAME, "".join(f"{c}\t{start}\t{end}\t{split}\n" for c, start, end, split in rows))
        path = Path(fasta.path)
        if is_ordinary_gzip(path):
            path = _as_bgzf(fasta, folder, reporter)

        reporter.note("reading the FASTA once: index, counts, checksum")
        # The published split stays as it is; bases that its splits share are counted and shown.
        settings = GenomeSettings(intervals=folder / BED_NAME, allow_shared_bases=True, allow_duplicates=True)
        manifest = prepare.write_prepared([str(path)], folder, folder, settings, reporter)
        bases = {"interval_bases": published.interval_bases}
        manifest |= {
            "published": {"source": source, "intervals": dict(published.counts), **bases},
            "sources": [fasta._asdict(), intervals._asdict()],
            "soft_masked": manifest["lower_case_percent"] > 0,
        }
        write_json(folder / MANIFEST_NAME, manifest)
        return manifest


def summary_rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """The manifest as lines for people: (what, value)."""
    lower = manifest["lower_case_percent"]
    text = f"yes, {lower:.2f} % lower case" if manifest["soft_masked"] else "no, all upper case"
    return [*prepare.summary_rows(manifest), ("soft-masked", f"{text}; tokens do not depend on case")]


def _obtain(file: RemoteFile, folder: Path, at_hand: Path | None, url: str | None, reporter: Reporter) -> Downloaded:
    """The file from `at_hand`, from below `url`, or from the first published address that works; verified."""
    if at_hand is not None:
        names = (file.name, *file.also)
        found = next((at_hand / name for name in names if (at_hand / name).is_file()), None)
        if found is None:
            raise InputError(f"{at_hand}: holds no {' or '.join(names)}; put it there, or omit --from to download it")
        # A hash is that of the published file, not of its unpacked text.
        return verify(found, hashes=file.hashes if found.name == file.name else None)
    addresses = file.urls if url is None else (f"{url.rstrip('/')}/{file.name}",)
    for address in addresses:
        reporter.note(f"{address} -> {folder / file.name}")
        try:
            progress = reporter.part(f"downloading {file.name}")
            return download(address, folder / file.name, hashes=file.hashes, progress=progress)
        except (InputError, NetworkError) as error:
            if address == addresses[-1]:
                raise
            reporter.note(f"{error}\ntrying the mirror")
    raise AssertionError("a published file has an address")


def _as_bgzf(fasta: Downloaded, out: Path, reporter: Reporter) -> Path:
    """The FASTA recompressed into `out`, unless an earlier call did so from the same file."""
    target, note = out / FASTA_NAME, out / _ORIGIN_NAME
    known: Any = None
    with suppress(OSError, ValueError):
        known = read_json(note)
    if not (target.is_file() and isinstance(known, dict) and known.get("sha256") == fasta.sha256):
        reporter.note(f"{fasta.path}: ordinary gzip, recompressing to {target}")
        note.unlink(missing_ok=True)
        recompress(Path(fasta.path), target, reporter.part(f"recompressing {target.name}"))
        write_json(note, fasta._asdict())
    return target


def read_published(path: Path, interval_bases: int = PUBLISHED.interval_bases) -> list[tuple[str, int, int, str]]:
    """Read the intervals of a published file: (record, start, end, split), 0-based half-open.

    The file is BED without a header, or a table with one. Enformer's table has the intervals widened by a quarter of their
    length on each side; this is undone.

    Raises:
        InputError: it is not such a file; names file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give the published file") from None
    columns: dict[str, int] | None = None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number:,}"
        fields = [field.strip() for field in line.split("\t")]
        if columns is None:
            names = [_HEADER.get(field.lower().lstrip("#")) for field in fields]
            if "start" in names:
                columns = {name: names.index(name) for name in ("record", "start", "end", "split") if name in names}
                if len(columns) < 4:
                    raise InputError(f"{where}: the header {fields} must name chromosome, start, end and split")
                continue
            columns = {"record": 0, "start": 1, "end": 2, "split": 3}
        if len(fields) <= max(columns.values()):
            raise InputError(f"{where}: has only {len(fields)} columns; chromosome, start, end and split are needed")
        start, end = fields[columns["start"]], fields[columns["end"]]
        if not (start.isdecimal() and end.isdecimal()):
            raise InputError(f"{where}: start {start!r} and end {end!r} must be whole numbers of bases")
        low, high = int(start), int(end)
        if high - low == interval_bases + interval_bases // 2:
            low, high = low + interval_bases // 4, high - interval_bases // 4
        if high - low != interval_bases:
            raise InputError(
                f"{where}: {high - low:,} bases instead of {interval_bases:,}, so this is not the published split; download "
                "it again"
            )
        split = fields[columns["split"]]
        rows.append((fields[columns["record"]], low, high, "valid" if split in ("val", "validation") else split))
    return rows


def check_published(rows: Sequence[tuple[str, int, int, str]], path: str, published: Published) -> None:
    """Check that every split has its published number of intervals.

    Raises:
        InputError: one of them has not.
    """
    found = Counter(row[3] for row in rows)
    counts = published.counts
    wrong = [
        f"{found[split]:,} {split} instead of {counts.get(split, 0):,}"
        for split in sorted({*found, *counts})
        if found[split] != counts.get(split, 0)
    ]
    if wrong:
        raise InputError(
            f"{path}: {', '.join(wrong)} intervals of {published.interval_bases:,} bases, so this is not the published "
            "split; download it again, or use it as it is with mba prepare genome --intervals"
        )
