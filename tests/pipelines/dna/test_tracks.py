"""Labels along a genome: which base a target belongs to, on both strands, with margins and bins; and what is refused."""

import numpy as np
import pybigtools
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.dna.tracks import summary_rows
from mamba_bio_audio.pipelines.dna.tracks_config import DnaTracksConfig

SIZES = {"chr1": 3000, "chr2": 1000}


@pytest.fixture
def folder(tmp_path):
    """A genome, its splits, its starts of ATG on either strand as BED, and two bigWigs."""
    rng = np.random.default_rng(0)
    texts = {name: "".join(rng.choice(list("ACGT"), size)) for name, size in SIZES.items()}
    texts["chr1"] = texts["chr1"][:500] + "N" * 10 + texts["chr1"][510:]
    (tmp_path / "g.fa").write_text("".join(f">{name}\n{text}\n" for name, text in texts.items()))
    (tmp_path / "splits.bed").write_text("chr1\t0\t2000\ttrain\nchr1\t2000\t3000\tvalid\nchr2\t0\t1000\ttest\n")
    lines = ""
    for name, text in texts.items():
        for at in range(len(text) - 2):
            if text[at : at + 3] == "ATG":
                lines += f"{name}\t{at}\t{at + 1}\tstart\t0\t+\n"
            if text[at : at + 3] == "CAT":
                lines += f"{name}\t{at + 2}\t{at + 3}\tstart\t0\t-\n"
    (tmp_path / "atg.bed").write_text(lines)
    # At base i the number i / 10; and 5 on every third base, nothing elsewhere.
    ramp = [(name, at, at + 1, at / 10) for name, size in SIZES.items() for at in range(size)]
    third = [(name, at, at + 1, 5.0) for name, size in SIZES.items() for at in range(0, size, 3)]
    for file, rows in (("ramp", ramp), ("third", third)):
        pybigtools.open(str(tmp_path / f"{file}.bw"), "w").write(SIZES, iter(rows))
    return tmp_path


def corpus_of(folder, task: str, length: int, tracks, **options):
    given = [str(folder / name) for name in tracks]
    config = DnaTracksConfig(
        path=str(folder / "g.fa"), intervals=str(folder / "splits.bed"), tracks=given, contigs="all", **options
    )
    data = DataModule(config, length=length, batch_size=2, seed=0)
    data.task = task
    return data.corpus, data


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("margin", [0, 4])
def test_a_target_stands_at_its_base(folder, reverse, margin):
    """The class of a base of the core is that of the strand that is read, whichever that is."""
    corpus, _ = corpus_of(folder, "bases", 40 + 2 * margin, ["atg.bed"], margin=margin, stranded=True)
    assert (corpus.classes, corpus.outputs) == (("none", "start"), "classes")
    seen = 0
    for window in corpus.windows(40 + 2 * margin):
        ids, label, *_ = corpus._read(window, reverse=reverse)
        text = DnaTokenizer().decode(ids)
        assert len(ids) == len(window) + 2 * margin
        for base, target in enumerate(label):
            if target == -100:
                assert not margin <= base < len(text) - margin or text[base] == "N"
                continue
            assert margin <= base < len(text) - margin
            # Two bases more than the window has are not seen here.
            if base + 3 <= len(text):
                assert target == (text[base : base + 3] == "ATG")
                seen += int(target)
    assert seen > 20


def test_bins_are_means(folder):
    corpus, data = corpus_of(folder, "tracks", 60, ["ramp.bw", "third.bw"], bin=10, margin=10)
    assert (corpus.classes, corpus.outputs) == (("ramp", "third"), "numbers")
    window = corpus.windows(60)[3]
    assert (window.start, window.end) == (120, 160)
    for reverse in (False, True):
        label = corpus._read(window, reverse=reverse).label
        there = np.flatnonzero(~np.isnan(label[:, 0]))
        assert there.tolist() == [19, 29, 39, 49]
        means = [
            [np.mean(np.arange(at, at + 10)) / 10, 5 * len(range(-(-at // 3) * 3, at + 10, 3)) / 10]
            for at in (120, 130, 140, 150)
        ]
        assert label[there] == pytest.approx(np.float32(means[::-1] if reverse else means))
    batch = next(iter(data.train_dataloader()))
    assert batch["targets"].shape == (2, 60, 2)
    statistics = corpus.label_statistics()
    assert statistics["mean"][0] == pytest.approx(np.mean(np.arange(2000)) / 10, rel=0.02)
    # What is missing is not measured.
    ignoring, _ = corpus_of(folder, "tracks", 60, ["third.bw"], bin=10, margin=10, missing="ignore")
    assert ignoring.read(window).label[there, 0].tolist() == [5.0] * 4


def test_windows_lie_in_their_split_and_read_across_its_ends(folder):
    corpus, _ = corpus_of(folder, "bases", 48, ["ramp.bw"], margin=4)
    spans = {split: corpus.spans(split) for split in ("train", "valid", "test")}
    windows = corpus.windows(48)
    assert all(window.record == "chr1" and 0 <= window.start < window.end <= 2000 for window in windows)
    # The window with the Ns is left out, at 25 %, and the last one is short.
    assert (len(windows), len(windows[len(windows) - 1])) == (49, 40)
    test = corpus.evaluation_windows("test").windows
    assert sum(map(len, test)) == 1000 == len(spans["test"][0])
    first = corpus.read(test[0])
    assert DnaTokenizer().decode(first.ids)[:5] == "NNNN" + DnaTokenizer().decode(corpus.genome.fetch("chr2", 0, 1))
    assert first.label[4, 0] == 0.0
    assert np.isnan(first.label[:4, 0]).all()
    some, _ = corpus_of(folder, "bases", 48, ["ramp.bw"], margin=4, evaluation_windows=5)
    assert len(some.evaluation_windows("test").windows) == 5
    assert corpus.summary()["splits"]["test"]["evaluation_bases"] == 1000


@pytest.mark.parametrize(
    ("task", "tracks", "options", "message"),
    [
        ("bases", [], {}, "data.tracks: missing"),
        ("bases", ["ramp.bw", "atg.bed"], {}, "either bigWig files"),
        ("tracks", ["atg.bed"], {}, "a BED file of classes; give bigWig files"),
        ("bases", ["ramp.bw"], {"bin": 4}, "head.task=bases predicts every base"),
        ("tracks", ["ramp.bw"], {"margin": 30}, r"has 0 between margins of 30 \(data.margin\)"),
        ("tracks", ["ramp.bw"], {"bin": 7}, "whole number of bins of 7"),
        ("bases", ["both.bed"], {}, r"chr1:\[15, 20\) is both a and b; a base has one class"),
        ("bases", ["wrong.bed"], {}, "line 1: end 5,000 lies beyond 'chr1'"),
        ("bases", ["plain.bed"], {"stranded": True}, "strand '.'; with data.stranded write"),
        ("bases", ["blank.bed"], {"stranded": True}, "line 1: strand ''; with data.stranded write"),
        ("tracks", ["other.bw"], {}, "chr1 has 2,999 bases, but 'chr1' of the genome 3,000"),
        ("tracks", ["foreign.bw"], {}, "has no record of the genome"),
        ("tracks", ["broken.bw"], {}, "cannot be read as a bigWig"),
        ("bases", ["ramp.bw"], {"stranded": True}, "data.stranded is for the classes"),
    ],
)
def test_mistakes(folder, task, tracks, options, message):
    (folder / "both.bed").write_text("chr1\t10\t20\ta\nchr1\t15\t30\tb\n")
    (folder / "wrong.bed").write_text("chr1\t10\t5000\ta\n")
    (folder / "blank.bed").write_text("chr1\t10\t20\ta\t0\t\n")
    (folder / "plain.bed").write_text("chr1\t10\t20\ta\n")
    (folder / "broken.bw").write_text("no bigWig")
    for file, name, size in (("other", "chr1", 2999), ("foreign", "scaffold", 100)):
        pybigtools.open(str(folder / f"{file}.bw"), "w").write({name: size}, iter([(name, 0, 10, 1.0)]))
    with pytest.raises(InputError, match=message):
        corpus_of(folder, task, 60, tracks, **options)


def test_lines_of_one_class_may_overlap(folder):
    (folder / "twice.bed").write_text("track name=x\nchr1\t10\t20\ta\nchr1\t15\t30\ta\nchr1\t40\t41\tb\n")
    corpus, _ = corpus_of(folder, "bases", 60, ["twice.bed"])
    found = corpus.values.fetch("chr1", 5, 45, reverse=False)
    assert found.tolist() == [0] * 5 + [1] * 20 + [0] * 10 + [2] + [0] * 4
    assert corpus.values.fetch("chr1", 12, 14, reverse=True).tolist() == [1, 1]


def test_a_number_that_is_infinite_is_told_wherever_it_is_read(folder):
    values = [("chr1", 0, 10, 1.0), ("chr1", 20, 25, float("inf"))]
    pybigtools.open(str(folder / "inf.bw"), "w").write({"chr1": 3000}, iter(values))
    corpus, _ = corpus_of(folder, "tracks", 60, ["inf.bw"])
    assert corpus.values.fetch("chr1", 0, 20, reverse=False)[:, 0].tolist() == [1.0] * 10 + [0.0] * 10
    with pytest.raises(InputError, match=r"inf\.bw: chr1: base 20 is inf; correct the file"):
        corpus.values.fetch("chr1", 15, 30, reverse=False)


def test_a_number_that_never_changes(folder):
    pybigtools.open(str(folder / "same.bw"), "w").write(SIZES, iter([("chr1", 0, 3000, 2.0)]))
    corpus, _ = corpus_of(folder, "tracks", 60, ["same.bw"])
    with pytest.raises(InputError, match="'same' is always 2 in training"):
        corpus.label_statistics()


def test_records_of_which_a_track_says_nothing_are_told(folder):
    pybigtools.open(str(folder / "one.bw"), "w").write(SIZES, iter([("chr1", 0, 3000, 1.0)]))
    corpus, data = corpus_of(folder, "tracks", 40, ["ramp.bw", "one.bw"], bin=4)
    data.setup()
    described = corpus.summary()
    assert described["lacking"] == {"one": ["chr2"]}
    assert ("without values", "one names no base of chr2") in summary_rows(described)
    (folder / "late.bed").write_text("chr2\t10\t20\tx\n")
    corpus, _ = corpus_of(folder, "bases", 40, ["late.bed"])
    assert corpus.summary()["lacking"] == {"late.bed": ["chr1"]}
    with pytest.raises(InputError, match="no base of training is x, so there is nothing to learn"):
        corpus.label_statistics()


def test_an_n_counts_in_no_bin(folder):
    """Bases 500 to 509 are N, and in a bin with others only those count."""
    corpus, _ = corpus_of(folder, "tracks", 40, ["ramp.bw"], bin=4, max_unknown=1.0)
    window = next(window for window in corpus.windows(40) if window.start <= 500 < window.end)
    label = corpus.read(window).label[3::4, 0]
    at = (500 - window.start) // 4
    assert np.isnan(label[at : at + 2]).all()
    assert label[at + 2] == pytest.approx(51.05)
