"""`mba evaluate --metrics unknown`, and `mba predict` on samples: unknown, pairs, short reads, shares."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.cli.main import run as command

RECIPE = """\
model: {d_model: 16, num_layers: 1, ssm: {d_state: 4}}
head: {pool: mean}
data: {kind: dna-classes}
train: {length: 40, tokens_per_step: 640, micro_batch: 16, steps: 40, lr: 3.0e-2, validate_every: 20, checkpoint_every: 40}
"""
RANDOM = np.random.default_rng(0)
KINDS = {"at": [0.4, 0.1, 0.1, 0.4], "gc": [0.1, 0.4, 0.4, 0.1]}


def mba(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return 0 if stop.value.code is None else int(stop.value.code)


def bases(kind: str, length: int = 40) -> str:
    return "".join(RANDOM.choice(list("ACGT"), size=length, p=KINDS[kind]))


def fasta(path: Path, rows: dict[str, str]) -> Path:
    path.write_text("".join(f">{name}\n{text}\n" for name, text in rows.items()))
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A trained classifier of two compositions."""
    folder = tmp_path_factory.mktemp("unknown")
    (folder / "r.yaml").write_text(RECIPE)
    rows = [(bases(kind), kind, split) for split in ("train", "dev", "test") for kind in KINDS for _ in range(60)]
    (folder / "t.csv").write_text("sequence,label,split\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows))
    given = ["classify", folder / "r.yaml", "--set", f"data.path={folder / 't.csv'}", "--device", "cpu", "--quiet"]
    assert mba(*given, "--out", folder / "run") == 0
    return folder


@pytest.fixture(scope="module")
def calibrated(folder) -> Path:
    """The run with its threshold; even composition is foreign to it."""
    even = ["".join(RANDOM.choice(list("ACGT"), size=200)) for _ in range(20)]
    foreign = fasta(folder / "even.fa", {f"e{i}": text for i, text in enumerate(even)})
    given = ["evaluate", folder / "run", "--metrics", "unknown", "--keep", "0.9", "--foreign", foreign]
    assert mba(*given, "--device", "cpu", "--quiet") == 0
    return folder / "run"


def test_what_is_fitted_is_kept_and_told(calibrated, folder, capsys):
    found = json.loads((calibrated / "unknown.json").read_text())
    assert found["sequences"] == {"validation": 120, "validation, shuffled": 120, str(folder / "even.fa"): 100}
    assert 0.08 < found["unknown"]["validation"] <= 0.1
    # Composition is all that the classes are, so shuffled sequence is as known as any, and even sequence is not.
    assert found["unknown"]["validation, shuffled"] < 0.3
    assert found["unknown"][str(folder / "even.fa")] > 0.4
    assert list(found["auroc"]) == ["validation, shuffled", str(folder / "even.fa")]
    assert found["auroc"]["validation, shuffled"] == pytest.approx(found["separation"][found["rule"]])
    assert found["auroc"][str(folder / "even.fa")] > 0.75
    assert found["accuracy"][0] > 0.9
    assert found["accuracy"][1] >= found["accuracy"][0]
    given = ["evaluate", calibrated, "--metrics", "unknown", "--device", "cpu"]
    (folder / "copy").mkdir(exist_ok=True)
    assert mba(*given, "--keep", "0.9") == 0
    text = capsys.readouterr().out
    assert "so that at least 90.0% of validation stay known" in text
    assert "--foreign FILE says" in text


def test_predictions_below_the_threshold_are_unknown(calibrated, folder, tmp_path, capsys):
    rows = {f"k{i}": bases(("at", "gc")[i % 2]) for i in range(40)}
    rows |= {f"e{i}": "".join(RANDOM.choice(list("ACGT"), size=40)) for i in range(40)}
    sample = fasta(tmp_path / "s.fa", rows)
    given = ["predict", calibrated, sample, "--device", "cpu"]
    assert mba(*given, "--out", tmp_path / "plain.tsv") == 0
    assert mba(*given, "--out", tmp_path / "u.tsv", "--threshold", "calibrated") == 0
    assert "unknown: " in capsys.readouterr().out
    found = json.loads((calibrated / "unknown.json").read_text())
    plain, unknown = table(tmp_path / "plain.tsv"), table(tmp_path / "u.tsv")
    assert {row["predicted"] for row in plain} == {"at", "gc"}
    share = [np.mean([row["predicted"] == "unknown" for row in unknown[at : at + 40]]) for at in (0, 40)]
    assert share[0] < 0.3
    assert share[1] > share[0]
    for before, after in zip(plain, unknown, strict=True):
        # A temperature can turn a close decision, because the strands are averaged.
        if abs(float(before["p_at"]) - 0.5) > 0.1:
            assert after["predicted"] in (before["predicted"], "unknown")
        if found["rule"] == "probability":
            least = max(float(after["p_at"]), float(after["p_gc"]))
            assert (after["predicted"] == "unknown") == (least < found["threshold"])
    # It says nothing of what is read in another way.
    for other, message in (
        (["--mode", "stream"], "--mode stream: the calibrated threshold was fitted to windows of 40, strand both"),
        (["--length", "20"], "--length 20: "),
        (["--strand", "reverse"], "--strand reverse: "),
    ):
        capsys.readouterr()
        assert mba(*given, "--out", tmp_path / "x.tsv", "--threshold", "calibrated", *other) == 2
        assert message in capsys.readouterr().err
    assert mba(*given, "--out", tmp_path / "p.tsv", "--threshold", "0.9") == 0
    for before, after in zip(plain, table(tmp_path / "p.tsv"), strict=True):
        assert after["p_at"] == before["p_at"]
        assert (after["predicted"] == "unknown") == (max(float(after["p_at"]), float(after["p_gc"])) < 0.9)


def test_pairs_are_one_row_and_short_reads_are_not_scored(folder, tmp_path):
    first = {"p1/1": bases("at"), "p2/1": bases("gc"), "p3/1": "ACGTA", "p4/1": "ACG"}
    second = {"p1/2": bases("at"), "p2/2": bases("at", 60), "p3/2": bases("gc"), "p4/2": "TTA"}
    r1, r2 = fasta(tmp_path / "r1.fa", first), fasta(tmp_path / "r2.fa", second)
    run = folder / "run"
    given = ["predict", run, r1, r2, "--min-length", "20", "--device", "cpu", "--quiet"]
    assert mba(*given, "--paired", "--out", tmp_path / "pairs.tsv", "--summary", tmp_path / "shares.tsv") == 0
    assert mba(*given, "--out", tmp_path / "single.tsv") == 0
    again = (*given, "--paired", "--out", tmp_path / "pairs.tsv", "--resume")
    assert mba(*again) == 0
    assert mba(*again, "--summary", tmp_path / "more.tsv") == 2
    pairs, single = table(tmp_path / "pairs.tsv"), table(tmp_path / "single.tsv")
    assert [row["record"] for row in pairs] == ["p1", "p2", "p3", "p4"]
    assert [row["length"] for row in pairs] == ["80", "100", "45", "6"]
    for i in (0, 1):
        mean = (float(single[i]["p_at"]) + float(single[i + 4]["p_at"])) / 2
        assert float(pairs[i]["p_at"]) == pytest.approx(mean, abs=2e-6)
    # Of a pair with one read that is too short the other speaks.
    assert float(pairs[2]["p_at"]) == pytest.approx(float(single[6]["p_at"]), abs=2e-6)
    assert (pairs[3]["predicted"], pairs[3]["note"]) == ("", "shorter than --min-length 20")
    assert [row["note"] != "" for row in single] == [False, False, True, True, False, False, False, True]
    shares = {(row["file"], row["predicted"]): row for row in table(tmp_path / "shares.tsv")}
    assert {file for file, _ in shares} == {str(r1)}
    assert shares[str(r1), "not scored"]["records"] == "1"
    assert shares[str(r1), "not scored"]["bases"] == "6"
    assert sum(float(row["share"]) for row in shares.values()) == pytest.approx(1)
    assert sum(int(row["bases"]) for row in shares.values()) == 231


def test_shares_of_several_samples_are_printed(folder, tmp_path, capsys):
    one = fasta(tmp_path / "one.fa", {f"r{i}": bases("at") for i in range(10)})
    two = fasta(tmp_path / "two.fa", {f"r{i}": bases("gc") for i in range(10)})
    assert mba("predict", folder / "run", one, two, "--out", tmp_path / "o.tsv", "--device", "cpu") == 0
    text = capsys.readouterr().out
    assert f"{one}: at " in text
    assert f"{two}: gc " in text


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"a": "ACGT", "x": "ACGT"}, "read 2 is 'x', but in"),
        ({"a": "ACGT"}, "has a read 2, but"),
        ({"a": "ACGT", "b.2": "ACGT"}, "read 2 is 'b.2', but in"),
        (None, "takes files two by two, R1 then R2, and got 1"),
    ],
)
def test_reads_that_are_no_pairs_are_refused(folder, tmp_path, second, message, capsys):
    files = [fasta(tmp_path / "r1.fa", {"a": "ACGT", "b": "ACGT"})]
    files += [] if second is None else [fasta(tmp_path / "r2.fa", second)]
    assert mba("predict", folder / "run", *files, "--paired", "--out", tmp_path / "o.tsv") == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--threshold", "2"], "give a probability between 0 and 1, or calibrated"),
        (["--threshold", "calibrated"], "no threshold has been fitted for it"),
    ],
)
def test_thresholds_that_are_none_are_refused(folder, tmp_path, given, message, capsys, monkeypatch):
    from mamba_bio_audio.run import unknown

    monkeypatch.setattr(unknown, "UNKNOWN_NAME", "nothing.json")
    file = fasta(tmp_path / "r1.fa", {"a": "ACGT"})
    assert mba("predict", folder / "run", file, *given, "--out", tmp_path / "o.tsv") == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
