"""`mba evaluate --suite` on folders made here."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.run.described import read_config

RECIPE = """\
model: {d_model: 8, num_layers: 1, ssm: {d_state: 4}}
head: {pool: mean}
data: {kind: dna-classes}
train: {length: 32, tokens_per_step: 256, micro_batch: 8, steps: 6, lr: 1.0e-2, validate_every: 3, checkpoint_every: 6}
"""


def mba(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return 0 if stop.value.code is None else int(stop.value.code)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two tasks, told apart by composition; one has a test sequence of train, and a dev sequence."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "r.yaml").write_text(RECIPE)
    random = np.random.default_rng(0)
    for task in ("tf/0", "prom/prom_core_x"):
        place = folder / "GUE" / task
        place.mkdir(parents=True)
        for split, count in (("train", 60), ("dev", 20), ("test", 20)):
            rows = ["sequence,label"]
            for i in range(count):
                weights = [0.4, 0.1, 0.1, 0.4] if i % 2 else [0.15, 0.35, 0.35, 0.15]
                rows.append("".join(random.choice(list("ACGT"), size=40, p=weights)) + f",{i % 2}")
            (place / f"{split}.csv").write_text("\n".join(rows) + "\n")
    first = (folder / "GUE/tf/0/train.csv").read_text().splitlines()[1]
    for split in ("dev", "test"):
        with (folder / f"GUE/tf/0/{split}.csv").open("a") as file:
            file.write(first + "\n")
    return folder


def arguments(folder: Path, out: Path, *more: str) -> list:
    given = ["evaluate", "--suite", "gue", folder / "GUE", "--recipe", folder / "r.yaml", "--seeds", "0,1"]
    return [*given, "--rates", "1e-2,3e-2", "--out", out, "--device", "cpu", "--quiet", *more]


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "all"
    assert mba(*arguments(folder, out)) == 0
    return out


def test_every_model_on_every_task(done, folder):
    found = json.loads((done / "suite.json").read_text())
    assert [task["task"] for task in found["tasks"]] == ["prom_core_x", "tf_0"]
    for task in found["tasks"]:
        assert [model["name"] for model in task["models"]] == ["k-mers", "CNN", "from scratch"]
        assert [len(model["seeds"]) for model in task["models"]] == [1, 2, 2]
        assert task["models"][0]["seeds"][0]["all"]["auroc"] > 0.8
        assert len(task["test_opened"]) == 1
        assert {(row["model"], row["against"]) for row in task["gains"]} == {
            ("from scratch", "k-mers"),
            ("from scratch", "CNN"),
        }
        ours = task["models"][2]
        assert {row["rate"] for row in ours["candidates"]} == {1e-2, 3e-2}
        best = min(ours["candidates"], key=lambda row: row["valid_nats"])
        assert ours["chosen"] == f"rate {best['rate']:g}"
        # Runs of other rates are gone; those of the seeds stay.
        runs = sorted(path.name for path in (done / "runs" / task["task"]).iterdir())
        assert runs == [f"from-scratch-lr{best['rate']:g}-seed{seed}" for seed in (0, 1)]
    assert [task["stranded"] for task in found["tasks"]] == [True, False]
    tf_0 = found["tasks"][1]
    assert tf_0["sizes"] == {"train": 60, "valid": 20, "test": 21}
    assert tf_0["faults"] == {"valid_dropped": 1, "test_equal": 1, "test_near": 0, "two_labels": 0, "ceiling": 1.0}
    assert tf_0["models"][0]["seeds"][0]["clean"]["count"] == 20
    with (done / "suite.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (1 + 2 + 2)
    assert {row["part"] for row in rows} == {"all", "clean"}


def test_predictions_are_kept(done, folder):
    """A row for each test sequence in its order, from which the scores can be made again."""
    with (done / "predictions" / "tf_0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    given = [line.split(",")[1] for line in (folder / "GUE/tf/0/test.csv").read_text().splitlines()[1:]]
    assert [row["label"] for row in rows] == given
    assert [row["in_train"] for row in rows] == ["0"] * 20 + ["1"]
    scores = [float(row["from scratch, seed 1, p 1"]) for row in rows]
    (task,) = (task for task in json.loads((done / "suite.json").read_text())["tasks"] if task["task"] == "tf_0")
    found = task["models"][2]["seeds"][1]["all"]["auroc"]
    assert roc_auc_score([int(label) for label in given], scores) == pytest.approx(found, abs=1e-6)


def test_passes_through_the_training_sequences(folder, tmp_path):
    """60 sequences, 8 a step: 2.5 passes are 19 steps, and each of two parts ends in a validation."""
    out = tmp_path / "out"
    given = ("--task", "tf_0", "--arms", "scratch", "--seeds", "0", "--rates", "1e-2", "--epochs", "2.5")
    assert mba(*arguments(folder, out, *given)) == 0
    (run,) = (out / "runs" / "tf_0").iterdir()
    train = read_config(run).train
    assert (train.steps, train.validate_every, train.checkpoint_every) == (19, 10, 19)


def test_text_says_what_was_published_and_what_is_wrong(folder, tmp_path, capsys):
    assert mba(*arguments(folder, tmp_path / "bars", "--arms", "kmers", "--task", "tf_0")) == 0
    text = capsys.readouterr().out
    assert "published, other protocol (auroc, Feng et al. 2025, frozen embeddings)" in text
    assert "Caduceus-Ph 0.880" in text
    assert "tf_0: 1 of dev are also in train and were left out; 1 of test are also in train and 0 nearly" in text


def test_pretrained_models_bring_their_architecture(folder, tmp_path, capsys):
    """Whatever the recipe says of the model, which is for training from scratch; models of one name are refused."""
    (tmp_path / "g.fa").write_text(f">chr1\n{''.join(np.random.default_rng(1).choice(list('ACGT'), size=4000))}\n")
    text = RECIPE.replace("d_model: 8", "d_model: 12").replace("head: {pool: mean}\n", "")
    (tmp_path / "lm.yaml").write_text(text.replace("dna-classes", f"dna, path: {tmp_path / 'g.fa'}"))
    assert mba("pretrain", tmp_path / "lm.yaml", "--out", tmp_path / "lm", "--device", "cpu", "--quiet") == 0
    begin = ("--task", "tf_0", "--seeds", "0", "--arms", "scratch,frozen,finetuned", "--pretrained", tmp_path / "lm")
    assert mba(*arguments(folder, tmp_path / "out", *begin)) == 0
    (task,) = json.loads((tmp_path / "out" / "suite.json").read_text())["tasks"]
    assert [model["name"] for model in task["models"]] == ["from scratch", "lm, frozen", "lm, fine-tuned"]
    widths = {
        run.name.partition("-lr")[0]: read_config(run).model.d_model for run in (tmp_path / "out/runs/tf_0").iterdir()
    }
    assert widths == {"from-scratch": 8, "lm-fine-tuned": 12}
    frozen = task["models"][1]
    assert frozen["chosen"].startswith("penalty 1/")
    assert [seed["seed"] for seed in frozen["seeds"]] == [0]
    # Told apart by composition, which the mean hidden state of any model knows.
    assert frozen["seeds"][0]["all"]["auroc"] > 0.8
    # What only a pretrained backbone can be is told of random weights before anything is trained.
    low_rank = (*begin, "--set", "head.lora_rank=2", "--rates", "1e-2", "--arms")
    capsys.readouterr()
    assert mba(*arguments(folder, tmp_path / "low", *low_rank, "cnn,scratch,finetuned")) == 2
    assert "head.lora_rank keeps the weights of a pretrained backbone" in capsys.readouterr().err.replace("\n", " ")
    assert not list((tmp_path / "low").rglob("*.csv"))
    assert mba(*arguments(folder, tmp_path / "lora", *low_rank, "finetuned")) == 0
    assert [read_config(run).head.lora_rank for run in (tmp_path / "lora/runs/tf_0").iterdir()] == [2]
    capsys.readouterr()
    assert mba(*arguments(folder, tmp_path / "two", *begin, "--pretrained", tmp_path / "other" / "lm")) == 2
    assert "two models would be called 'lm'; rename one" in capsys.readouterr().err


def test_finished_tasks_are_kept(folder, tmp_path, capsys):
    """What a killed call has done is not done again; the test split of a task that it had opened is counted twice."""
    out = tmp_path / "out"
    given = arguments(folder, out, "--arms", "kmers")
    assert mba(*given) == 0
    before = (out / "tasks" / "prom_core_x.json").read_text()
    (out / "suite.json").unlink()
    (out / "tasks" / "tf_0.json").unlink()
    capsys.readouterr()
    assert mba(*given) == 0
    assert "The test split was opened more than once: tf_0 2 times" in capsys.readouterr().out
    assert (out / "tasks" / "prom_core_x.json").read_text() == before
    assert mba(*given) == 0
    again = capsys.readouterr()
    assert "The test split was opened more than once: tf_0 2 times" in again.out
    assert f"{out} is finished and was shown; --force does it again" in again.err.replace("\n", " ")
    assert mba(*given, "--task", "tf_0") == 2
    assert "is not empty" in capsys.readouterr().err
    # Finished or not, other data are other results.
    place = folder / "GUE/tf/0/train.csv"
    text = place.read_text()
    place.write_text(text + text.splitlines()[1] + "\n")
    assert mba(*given) == 2
    (out / "suite.json").unlink()
    assert mba(*given) == 2
    assert capsys.readouterr().err.replace("\n", " ").count("the files have changed since") == 2
    place.write_text(text)
    assert mba(*arguments(folder, out, "--arms", "cnn")) == 2
    assert "was begun with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["evaluate", "RUN", "--seeds", "1"], "--seeds goes with --suite"),
        (["evaluate", "--suite", "gue", "RUN", "--arms", "tree"], "no 'tree'; choose from kmers, cnn"),
        (["evaluate", "--suite", "gue", "RUN", "--seeds", "1,1"], "write different whole numbers"),
        (["evaluate", "--suite", "gue", "RUN", "--rates", "2"], "write different numbers between 0 and 1"),
        (
            ["evaluate", "--suite", "gue", "RUN", "--rates", "1e-3,4e-3,0.001"],
            "write different numbers between 0 and 1",
        ),
        (
            ["evaluate", "--suite", "gue", "RUN", "--epochs", "2", "--set", "train.steps=9"],
            "--epochs says what train.steps is; leave one of them out",
        ),
        (
            ["evaluate", "--suite", "gue", "RUN", "--epochs", "2", "--set", "train.validate_every=9"],
            "--epochs says what train.validate_every is; leave one of them out",
        ),
        (["evaluate", "--suite", "gue", "RUN", "--context", "8"], "leave out --metrics, --context"),
        (["evaluate", "--suite", "gue", "GUE", "--arms", "frozen"], "need --pretrained RUN"),
    ],
)
def test_what_does_not_go_together_is_refused(folder, given, message, capsys, tmp_path):
    given = [str(folder / "GUE") if part == "GUE" else part for part in given]
    assert mba(*given, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
