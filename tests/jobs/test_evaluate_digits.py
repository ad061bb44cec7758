"""The whole judgement on ten classes of sound, with shortened clips and a short training of the small judge."""

import csv
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file, save_file

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation import digits as judging
from mamba_bio_audio.evaluation.audio_metrics import confidence_limit, paper_selection
from mamba_bio_audio.evaluation.judge import impostors, judge_clips
from mamba_bio_audio.files.folders import check_replaceable
from mamba_bio_audio.jobs import evaluate as job
from mamba_bio_audio.jobs import evaluate_digits, predict
from mamba_bio_audio.jobs.digits_results import DigitsResult, JudgeResult
from mamba_bio_audio.jobs.evaluate import EvaluateOptions
from mamba_bio_audio.jobs.report import judged_samples
from mamba_bio_audio.jobs.sample_results import SampleResult
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.audio import digits
from mamba_bio_audio.pipelines.audio.digits import one_second
from mamba_bio_audio.pipelines.audio.speech_commands import DIGITS
from mamba_bio_audio.run.begin import Session
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.data import open_data
from mamba_bio_audio.run.described import read_config
from mamba_bio_audio.run.folder import run_maker
from mamba_bio_audio.run.saved import load
from mamba_bio_audio.run.train import train
from mamba_bio_audio.signals import Interrupted


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    rng = np.random.default_rng(0)
    rows = ["file\tsplit"]
    for label, word in enumerate(DIGITS):
        (folder / word).mkdir()
        for number, split in enumerate(("train", "train", "train", "valid", "test", "test")):
            audio = 0.4 * np.sin(np.arange(600) * (0.05 + 0.1 * label)) + 0.02 * rng.standard_normal(600)
            soundfile.write(folder / word / f"{number}.wav", audio, 16_000)
            rows.append(f"{word}/{number}.wav\t{split}")
    (folder / "intervals.tsv").write_text("\n".join(rows) + "\n")
    out = tmp_path_factory.mktemp("runs") / "run"
    keys = ["model.d_model=8", "train.steps=2", "train.length=256", "train.tokens_per_step=512"]
    train(load_config("audio/tiny", [f"data.path={folder}", *keys]), out, Session("cpu", quiet=True))
    return out


@pytest.fixture(autouse=True)
def short(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(digits, "CLIP_SAMPLES", 160)
    monkeypatch.setattr(evaluate_digits, "RESAMPLES", 5)
    monkeypatch.setenv("MAMBA_BIO_AUDIO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def clips_of(run: Path, split: str) -> list[Path]:
    folder = Path(read_config(run).data.path)
    rows = csv.DictReader((folder / "intervals.tsv").open(newline=""), delimiter="\t")
    return [folder / row["file"] for row in rows if row["split"] == split]


def options(run: Path, **more) -> EvaluateOptions:
    given = {"run": run, "metrics": "sc09", "device": "cpu", "quiet": True, "judge_epochs": 2, "num_samples": 40}
    return EvaluateOptions.model_validate(given | more)


def judged(run: Path, **more) -> DigitsResult:
    result = job.run(options(run, **more))
    assert isinstance(result, DigitsResult)
    return result


def prepared(run: Path) -> JudgeResult:
    result = job.run(options(run, metrics="sc09-judge"))
    assert isinstance(result, JudgeResult)
    return result


def test_a_model_of_another_rate_is_heard_at_the_rate_of_the_judge(run, tmp_path) -> None:
    keys = ["model.d_model=8", "train.steps=2", "train.length=256", "train.tokens_per_step=512"]
    folder = read_config(run).data.path
    config = load_config("audio/tiny", [f"data.path={folder}", "data.sample_rate_hz=8000", *keys])
    train(config, tmp_path / "run", Session("cpu", quiet=True))
    data = open_data(read_config(tmp_path / "run"), "cpu")
    clips, labels = digits.labelled_clips(data, "test")
    assert data.codec.sample_rate_hz == 8000
    assert labels.tolist() == sorted(2 * list(range(10)))
    # The lowest digits' tones are far below 4 kHz; the noise beside them is halved.
    for clip, file in zip(clips[:6], clips_of(run, "test"), strict=False):
        heard = soundfile.read(file, dtype="float32")[0]
        assert clip.shape == (16_000,)
        assert np.abs(clip[20:140] - heard[20:140]).max() < 0.12
    found = judged(tmp_path / "run", num_samples=10, judge_epochs=1)
    assert found.generated == 10
    made = next((tmp_path / "run" / "sc09").glob("samples-*/sample-00003.flac"))
    audio, rate = soundfile.read(made)
    assert (len(audio), rate) == (80, 8000)


def test_every_row_and_why_it_does_not_compare(run, monkeypatch) -> None:
    told = set()
    monkeypatch.setattr(job, "counters", lambda quiet: nullcontext(lambda what, done, total: told.add(what)))
    found = judged(run)
    result = found.to_json()
    assert told == {"training the judge", "training the recogniser", "scoring test clips", "sampling"}
    assert list(result["rows"]) == [
        "generated",
        "train",
        "test",
        "noise",
        "reversed",
        "shuffled",
        "shaped noise",
        "joined halves",
        "silence",
        "one class",
    ]
    assert result["rows"]["train"]["FID"] == pytest.approx(0, abs=1e-6)
    assert result["rows"]["train"]["NDB"] == 0
    assert result["rows"]["silence"]["IS_pooled"] == pytest.approx(1)
    assert result["judge"]["clips"] == {"train": 30, "valid": 10, "test": 20}
    assert not result["comparable"]
    assert "not SC09: 30 train" in " ".join(result["not_comparable_because"])
    recognised = result["recognised"]
    assert list(recognised["limits"]) == ["noise", "reversed", "shuffled", "shaped noise"]
    assert recognised["threshold"] == max(0.5, *recognised["limits"].values())
    for name in recognised["limits"]:
        assert recognised["shares"][name] <= 0.05
    assert list(recognised["shares"]) == list(result["rows"])
    # The recogniser is another network than the judge, of one class more, and says how often it refuses.
    recogniser, note = judging.open_judge(Path(recognised["recogniser"]["cached"]))
    assert recogniser.head.out_features == 11
    assert recognised["recogniser"]["cached"] != result["judge"]["cached"]
    assert note["accuracy"].keys() == {"train", "valid", "test"}
    assert list(note["refused"]) == list(recognised["limits"])
    assert "refused" not in result["judge"]
    # Of the digits only, not of its last class.
    heard = [soundfile.read(file, dtype="float32")[0][: digits.CLIP_SAMPLES] for file in clips_of(run, "test")]
    test = np.stack([one_second(audio) for audio in heard])
    p = {
        name: judge_clips(recogniser, x).probabilities[:, :10] for name, x in (impostors(test) | {"test": test}).items()
    }
    assert recognised["limits"]["reversed"] == pytest.approx(confidence_limit(p["reversed"]))
    assert recognised["shares"]["test"] == (p["test"].max(1) > recognised["threshold"]).mean()
    assert set(recognised["judge_agrees"]) == {"generated", "train", "test"}
    written = json.loads((run / "sc09" / "metrics.json").read_text())
    assert written["rows"]["test"]["n"] == 20
    assert written["weights_sha256"] == weights_hash(load(run))
    assert (run / "sc09" / "first-samples.png").exists()
    check_replaceable(run, run_maker("pretrain"))
    text = found.text()
    assert "Mamba 24.3M" in text
    assert "not comparable" in text

    # Neither the judge nor the samples are made twice.
    monkeypatch.setattr(judging, "train_judge", None)
    monkeypatch.setattr("mamba_bio_audio.jobs.sample.sample", None)
    assert judged(run).rows == found.rows
    paper = judged(run, protocol="paper")
    assert (paper.generated, paper.scored) == (40, 11)


@pytest.mark.parametrize(("protocol", "few", "left"), [("paper", 4, 1), ("paper", 7, 1), ("plain", 1, 1)])
def test_too_few_samples_to_score_are_refused(run, protocol, few, left) -> None:
    fewest = judging.FEWEST[protocol]
    with pytest.raises(InputError, match=rf"protocol {protocol} leaves {left} .*--num-samples {fewest} or more"):
        judging.samples_wanted(few, protocol)
    if few >= 4:
        with pytest.raises(InputError, match=f"protocol {protocol} leaves {left} "):
            judged(run, num_samples=few, protocol=protocol)


def test_the_fewest_samples_are_scored(run) -> None:
    for protocol, fewest in judging.FEWEST.items():
        # Below what --num-samples allows, too.
        found = job.run(options(run, protocol=protocol).model_copy(update={"num_samples": fewest}))
        assert isinstance(found, DigitsResult)
        assert found.scored == 2
        assert np.isfinite(list(found.rows["generated"].values())).all()
    assert min(len(paper_selection(np.zeros(n))) for n in range(judging.FEWEST["paper"], 99)) == 2


def test_a_stopped_sampling_ends_the_evaluation_as_stopped(run, tmp_path, monkeypatch) -> None:
    stopped = SampleResult(out=tmp_path, num_samples=1, length=16_000, stopped_by="SIGTERM")
    monkeypatch.setattr("mamba_bio_audio.jobs.sample.sample", lambda *given: stopped)
    with pytest.raises(Interrupted, match="SIGTERM"):
        judged(run, num_samples=9)


@pytest.mark.parametrize("name", ["sample-00001.flac", "samples.json"])
def test_a_lost_clip_names_the_way_out(run, name) -> None:
    def again() -> DigitsResult:
        return judged(run, num_samples=4)

    again()
    (folder,) = (run / "sc09").glob("samples-*-4-0")
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: missing or damaged .*delete the folder {folder}, and"):
        again()
    shutil.rmtree(folder)
    assert again().scored == 4


def test_other_runs_are_refused(run, tmp_path) -> None:
    folder = tmp_path / "words"
    for split in ("train", "valid", "test"):
        (folder / "bed").mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "bed" / f"{split}.wav", np.zeros(300), 16_000)
    rows = "".join(f"bed/{split}.wav\t{split}\n" for split in ("train", "valid", "test"))
    (folder / "intervals.tsv").write_text("file\tsplit\n" + rows)
    with pytest.raises(InputError, match="folders named zero"):
        judged(run, overrides=[f"data.path={folder}"])


def test_the_judge_can_be_trained_before_the_run_has_weights(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MAMBA_BIO_AUDIO_CACHE", str(tmp_path / "cache"))
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    notes = prepared(begun)
    for note in (notes.judge, notes.recogniser):
        assert note.clips == {"train": 30, "valid": 10, "test": 20}
    text = notes.text()
    assert "judge: small" in text
    assert "recogniser: refused as no digit: " in text
    assert "test " in text
    monkeypatch.setattr(judging, "train_judge", None)
    result = judged(run)
    assert (result.judge, result.recognised.recogniser) == (notes.judge, notes.recogniser)


def test_scores_of_before_the_recogniser_name_the_way_out(tmp_path) -> None:
    (tmp_path / "sc09").mkdir()
    before = {"judge": {}, "recognised": {"threshold": 0.99, "shares": {}}}
    (tmp_path / "sc09" / "metrics.json").write_text(json.dumps(before))
    with pytest.raises(
        InputError, match="damaged or changed since this program wrote it; evaluate with --metrics sc09 again"
    ):
        judged_samples(tmp_path)


def test_the_judge_is_a_classifier_that_predict_asks(run, tmp_path, monkeypatch) -> None:
    notes = prepared(run)
    monkeypatch.setattr(digits, "CLIP_SAMPLES", 16_000)
    folder = Path(notes.judge.cached)
    assert f"mba predict {folder} FILE..." in notes.text()
    audio = 0.4 * np.sin(np.arange(44_100 * 2) * 0.1)
    soundfile.write(tmp_path / "long.flac", audio, 44_100)
    soundfile.write(tmp_path / "short.wav", audio[:500], 16_000)
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    out = tmp_path / "p.tsv"
    files = [str(tmp_path / name) for name in ("long.flac", "torn.wav", "short.wav")]
    summary = predict.run(predict.PredictOptions(run=folder, files=files, out=out, device="cpu"))
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["length"], row["samples_used"]) for row in rows] == [("32000", "16000"), ("0", "0"), ("500", "500")]
    judge, _ = judging.open_judge(folder)
    expected = judge_clips(judge, one_second(soundfile.read(files[2], dtype="float32")[0])[None]).probabilities[0]
    assert [float(rows[2][f"p_{word}"]) for word in DIGITS] == pytest.approx(expected, rel=1e-5)
    assert rows[0]["predicted"] in DIGITS
    assert (rows[1]["predicted"], rows[1]["p_zero"]) == ("", "")
    assert "torn.wav" in rows[1]["note"]
    assert summary.records == 3
    assert "1 not scored" in summary.text()
    predict.run(predict.PredictOptions(run=notes.recogniser.cached, files=files, out=tmp_path / "r.tsv"))
    with (tmp_path / "r.tsv").open(newline="") as file:
        row = next(csv.DictReader(file, delimiter="\t"))
    assert sum(float(row[f"p_{word}"]) for word in (*DIGITS, "none")) == pytest.approx(1, abs=1e-4)
    with pytest.raises(InputError, match="hears the first second of each file; leave out"):
        predict.run(predict.PredictOptions(run=folder, files=files, out=tmp_path / "q.tsv", length=100))
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    tensors = load_file(damaged / "judge.safetensors")
    tensors["head.bias"][2] = float("nan")
    save_file(tensors, damaged / "judge.safetensors")
    with pytest.raises(
        InputError, match=r"a damaged judge \(head\.bias holds what is not a number\); delete the folder"
    ):
        predict.run(predict.PredictOptions(run=damaged, files=files, out=tmp_path / "q.tsv"))
    (damaged / "judge.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"a damaged judge .*delete the folder"):
        predict.run(predict.PredictOptions(run=damaged, files=files, out=tmp_path / "q.tsv"))


def test_clips_of_each_class_are_judged_by_what_was_asked_for(run, tmp_path):
    config = read_config(run)
    keys = [f"data.path={config.data.path}", "data.start=token", "model.d_model=8", "train.steps=2", "train.length=256"]
    keys += ["train.tokens_per_step=512", f"model.classes=[{', '.join(reversed(DIGITS))}]"]
    by_class = tmp_path / "by-class"
    train(load_config("audio/tiny", keys), by_class, Session("cpu", quiet=True))
    result = judged(by_class, num_samples=15, temperature=0.5, guidance=2.0)
    assert result.generated == 20
    assert "protocol plain, temperature 0.5, guidance 2, best" in result.text()
    kept = json.loads((by_class / "sc09" / "metrics.json").read_text())["by_class"]
    assert [(row["digit"], row["n"]) for row in kept["generated"]] == [(word, 2) for word in DIGITS]
    assert [(row["digit"], row["n"]) for row in kept["test"]] == [(word, 2) for word in DIGITS]
    assert all(sum(row["heard"]) == 2 for row in kept["generated"])
    assert "asked for" in result.text()
    # The first clips are those of the model's first class.
    folder = next((by_class / "sc09").glob("samples-*-20-0-temperature-0.5-guidance-2"))
    note = json.loads((folder / "samples.json").read_text())
    assert (note["temperature"], note["guidance"]) == (0.5, 2)
    rows = list(csv.DictReader((folder / "index.tsv").open(newline=""), delimiter="\t"))
    assert {row["class"] for row in rows if int(row["row"]) < 2} == {"nine"}
    with pytest.raises(InputError, match="was trained without classes"):
        judged(run, guidance=2.0)
    assert judged(run).by_class is None
    assert "by_class" not in json.loads((run / "sc09" / "metrics.json").read_text())


def test_what_was_asked_for_and_what_was_heard():
    """Five clips: right, named wrongly, not sure enough, taken for another digit, and another class."""
    asked = np.array([3, 3, 3, 3, 7])
    judged = np.eye(10)[[3, 4, 3, 3, 7]]
    digit = np.zeros((5, 10))
    digit[range(5), [3, 3, 3, 5, 7]] = [0.9, 0.9, 0.4, 0.9, 0.9]
    three, seven = judging.asked_for(asked, judged, digit, 0.5)
    assert (three["digit"], three["n"], three["named"], three["recognised"], three["both"]) == (
        "three",
        4,
        0.75,
        0.5,
        0.25,
    )
    assert three["heard"] == [0, 0, 0, 3, 1, 0, 0, 0, 0, 0]
    assert (seven["digit"], seven["both"]) == ("seven", 1.0)
