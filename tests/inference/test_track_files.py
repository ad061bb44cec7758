"""Tracks as files, read back by other means."""

import csv
import math

import numpy as np
import pybigtools
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.track_files import (
    binned,
    track_format,
    write_bedgraph,
    write_bigwig,
    write_table,
    write_totals,
    write_track,
)
from mamba_bio_audio.inference.tracks import plan, values_path
from mamba_bio_audio.pipelines.bed import NamedSpan
from mamba_bio_audio.pipelines.spans import Span

NAN = float("nan")
LENGTHS = {"chr2": 8, "chr10": 5, "empty": 3}
VALUES = {"chr2": [NAN, -1.0, -2.0, NAN, -0.5, -0.25, -4.0, NAN], "chr10": [-1.5, -2.5, NAN, NAN, -1e-9]}


def track(names=("chr2", "chr10")):
    return [(name, 0, np.array(VALUES[name], np.float32)) for name in names]


def bigwig(path):
    with pybigtools.open(str(path)) as file:
        return {name: [tuple(entry) for entry in file.records(name)] for name in file.chroms()}


def test_bins_hold_sums_of_what_is_scored():
    (whole,) = binned([("a", 5, np.array([-1, -2, NAN, -4, -8, NAN, NAN, NAN], np.float32))], 3)
    assert whole.record == "a"
    # [5, 6), [6, 9), [9, 12); nothing is scored in [12, 13).
    assert whole.starts.tolist() == [5, 6, 9]
    assert whole.ends.tolist() == [6, 9, 12]
    assert whole.scored.tolist() == [1, 2, 1]
    assert whole.nats.tolist() == [-1, -6, -8]
    (single,) = binned([("a", 5, np.array([-1, NAN, -3], np.float32))])
    assert (single.starts.tolist(), single.ends.tolist()) == ([5, 7], [6, 8])


@pytest.mark.parametrize("size", [1, 4])
def test_bigwig_is_read_back(tmp_path, size):
    path = tmp_path / "x.bw"
    write_bigwig(path, binned(track(("chr10", "chr2")), size), LENGTHS, "base")
    found = bigwig(path)
    if size == 1:
        for name, entries in found.items():
            wanted = [(at, at + 1, np.float32(v)) for at, v in enumerate(VALUES[name]) if not math.isnan(v)]
            assert entries == wanted
        with pybigtools.open(str(path)) as file:
            read = file.values("chr2", fillna=None)
        assert np.array_equal(read, np.array(VALUES["chr2"], np.float32), equal_nan=True)
    else:
        assert found["chr2"] == [(0, 4, -1.5), (4, 8, pytest.approx(-4.75 / 3))]
        assert found["chr10"] == [(0, 4, -2.0), (4, 5, pytest.approx(-1e-9))]


def test_bedgraph(tmp_path):
    write_bedgraph(tmp_path / "x.bedgraph", binned(track()), LENGTHS, "base")
    lines = [line.split("\t") for line in (tmp_path / "x.bedgraph").read_text().splitlines()]
    assert lines[0] == ["chr2", "1", "2", "-1"]
    assert lines[-1] == ["chr10", "4", "5", "-1e-09"]
    assert len(lines) == 8


def test_table(tmp_path):
    write_table(tmp_path / "x.tsv", binned([("=1.wav", 0, np.array(VALUES["chr2"], np.float32))], 4), LENGTHS, "sample")
    rows = list(csv.DictReader((tmp_path / "x.tsv").open(), delimiter="\t"))
    assert [row["record"] for row in rows] == ["'=1.wav"] * 2
    assert [(row["start"], row["end"], row["scored"], row["log_likelihood_nats"]) for row in rows] == [
        ("0", "4", "2", "-3"),
        ("4", "8", "3", "-4.75"),
    ]
    assert float(rows[1]["bits_per_sample"]) == pytest.approx(4.75 / 3 / math.log(2), rel=1e-5)


def test_what_goes_wrong_while_a_bigwig_is_written_is_raised(tmp_path, capfd):
    def broken():
        yield next(binned(track()))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write_bigwig(tmp_path / "x.bw", broken(), LENGTHS, "base")
    with pytest.raises(OSError, match="not written as a whole"):
        # Beyond the end of its record.
        write_bigwig(tmp_path / "x.bw", binned(track()), {"chr2": 4, "chr10": 5}, "base")
    with pytest.raises(InputError, match="no base was scored, and a bigWig cannot be empty"):
        write_bigwig(tmp_path / "x.bw", binned([("chr2", 0, np.full(3, np.nan, np.float32))]), LENGTHS, "base")
    with pytest.raises(InputError, match="not UTF-8"):
        write_bigwig(tmp_path / "x.bw", binned(track()), LENGTHS | {"\udcff": 3}, "base")


def test_formats_go_by_the_suffix(tmp_path):
    assert track_format(tmp_path / "X.BigWig").write is write_bigwig
    with pytest.raises(InputError, match=r"x\.wig: tracks are written as \.bw, \.bigwig, \.bedgraph, \.tsv"):
        track_format(tmp_path / "x.wig")


@pytest.mark.parametrize("suffix", [".bw", ".bedgraph"])
def test_track_and_totals_of_a_plan(tmp_path, suffix):
    planned = plan({"chr2": 8, "chr10": 5}, strand="forward")
    np.array([*VALUES["chr2"], *VALUES["chr10"]], "<f4").tofile(values_path(tmp_path, "forward"))
    told: list[int] = []
    found = write_track(tmp_path / f"x{suffix}", tmp_path, planned, 1, "base", progress=told.append)
    assert told[-1] == 8
    assert found["scored"] == 8
    assert found["log_likelihood_nats"] == pytest.approx(-11.75)
    assert found["bits_per_symbol"] == pytest.approx(11.75 / 8 / math.log(2))
    if suffix == ".bw":
        # In the order of the names, which readers search by halving.
        assert [*bigwig(tmp_path / "x.bw")] == ["chr10", "chr2"]
    else:
        assert (tmp_path / "x.bedgraph").read_text().startswith("chr2\t")
    write_totals(tmp_path / "totals.tsv", tmp_path, planned, None, "base")
    rows = list(csv.DictReader((tmp_path / "totals.tsv").open(), delimiter="\t"))
    assert [(row["record"], row["end"], row["scored"]) for row in rows] == [("chr2", "8", "5"), ("chr10", "5", "3")]
    assert sum(float(row["log_likelihood_nats"]) for row in rows) == pytest.approx(-11.75)
    write_totals(tmp_path / "totals.tsv", tmp_path, planned, [NamedSpan(Span("chr2", 3, 4), "gap")], "base")
    (row,) = csv.DictReader((tmp_path / "totals.tsv").open(), delimiter="\t")
    assert (row["name"], row["scored"], row["log_likelihood_nats"], row["bits_per_base"]) == ("gap", "0", "", "")
