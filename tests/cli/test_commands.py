"""The commands from prepare to export, in one process; interrupts and kills in real ones."""

import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mamba_bio_audio as mba
from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.training.checkpoints import last_position, load_checkpoint

SETTINGS = [
    "model.d_model=16",
    "model.num_layers=2",
    "train.length=64",
    "train.tokens_per_step=512",
    "train.micro_batch=4",
    "train.steps=12",
    "train.validate_every=4",
    "train.validation_tokens=2048",
    "train.checkpoint_every=2",
    "train.log_every=1",
]


def mba_command(*arguments: str) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    code = stop.value.code
    return 0 if code is None else int(code)


def overrides(fasta: Path, *more: str) -> list[str]:
    return [part for key in (*SETTINGS, f"data.path={fasta}", *more) for part in ("--set", key)]


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> Path:
    """Two records with a strong order-1 structure, so that a few steps show learning."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("genome") / "toy.fa"
    with path.open("w") as file:
        for name, length in (("one", 40_000), ("two", 9_000)):
            bases = [0]
            for jump in rng.random(length - 1):
                bases.append((bases[-1] + 1) % 4 if jump < 0.8 else int(jump * 1000) % 4)
            text = "".join("ACGT"[base] for base in bases)
            file.write(f">{name}\n" + "\n".join(text[i : i + 70] for i in range(0, length, 70)) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(fasta, tmp_path_factory) -> Path:
    """A finished run, uninterrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert mba_command("pretrain", "dna/tiny", *overrides(fasta), "--out", out, "--quiet", "--device", "cpu") == 0
    return out


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_folder_holds_what_was_promised(trained, fasta):
    for name in ("config.yaml", "model.safetensors", "metrics.csv", "manifest.json", "checkpoints/last.safetensors"):
        assert (trained / name).exists(), name
    assert list((trained / "tensorboard").glob("events*"))
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["data"]["files"][0]["name"] == "toy.fa"
    assert len(manifest["data"]["files"][0]["sha256"]) == 64
    assert manifest["torch"] == torch.__version__
    settings = manifest["precision_settings"]
    assert (manifest["precision"], settings["autocast"], settings["kernels"]) == ("fp32", None, "torch")
    assert settings["tf32_matmul"] is False
    assert settings == manifest["sessions"][0]["precision_settings"]
    assert manifest["result"]["step"] == 12
    rows = metrics(trained)
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [int(row["step"]) for row in rows if row["valid_nats"]] == [4, 8, 12]
    assert float(rows[-1]["valid_nats"]) < float(rows[3]["valid_nats"])
    # Warm-up over the first of 12 steps, then cosine down to the floor.
    assert float(rows[0]["lr"]) == pytest.approx(4e-3)
    assert float(rows[-1]["lr"]) == pytest.approx(1e-5)


def test_pretraining_begins_by_naming_the_device_and_the_kernels(fasta, tmp_path, capsys):
    few = ("train.steps=1", "train.validate_every=1", "train.validation_tokens=64")
    assert mba_command("pretrain", "dna/tiny", *overrides(fasta, *few), "--out", tmp_path / "r", "--device", "cpu") == 0
    assert re.search(r"(?m)^device +cpu, \d+ threads, fp32, kernels: torch$", capsys.readouterr().err)


def test_evaluate_beside_baselines(trained, capsys):
    assert mba_command("evaluate", trained, "--json", "--quiet", "--device", "cpu") == 0
    result = json.loads(capsys.readouterr().out)
    assert json.loads((trained / "evaluate-test.json").read_text()) == result
    assert result["scored"] + result["first_of_record"] + result["unknown"] == result["bases"]
    assert result["markov"]["count"] == result["scored"]
    assert len(result["markov"]["orders"]) == 17
    assert result["model"]["perplexity"] == pytest.approx(2 ** result["model"]["bits"])
    manifest = json.loads((trained / "manifest.json").read_text())
    assert result["weights_sha256"] == manifest["result"]["weights_sha256"] == weights_hash(mba.load(trained))
    # The truth: 0.8 to the next base and 0.05 to each of the four.
    floor = -(0.85 * np.log(0.85) + 0.15 * np.log(0.05))
    assert result["markov"]["orders"][1]["nats"] == pytest.approx(floor, abs=0.05)
    assert mba_command("evaluate", trained, "--split", "valid", "--no-baselines", "--quiet", "--device", "cpu") == 0
    assert "valid split" in capsys.readouterr().out


def test_evaluate_a_part_of_the_split(trained, capsys):
    """--max-bases: whole windows, spread over the split, the same for the baselines and every time; and it is said."""
    before = sorted(path.name for path in trained.iterdir())
    arguments = ("evaluate", trained, "--length", "64", "--quiet", "--device", "cpu")
    assert mba_command(*arguments, "--json") == 0
    whole = json.loads(capsys.readouterr().out)
    assert "part" not in whole
    found = []
    for _ in range(2):
        assert mba_command(*arguments, "--max-bases", "700", "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    part = found[0]
    assert part == found[1]
    assert part["part"] == {
        "max_bases": 700,
        "windows": 10,
        "of_windows": -(-(whole["bases"] - whole["first_of_record"]) // 64),
        "of_bases": whole["bases"],
    }
    assert part["scored"] + part["unknown"] == part["bases"] <= 640
    assert part["markov"]["count"] == part["scored"]
    assert part["markov"]["chosen_order"] == whole["markov"]["chosen_order"]
    assert part["model"]["nats"] == pytest.approx(whole["model"]["nats"], rel=0.1)
    assert mba_command(*arguments, "--max-bases", "700") == 0
    assert "A part of the split, evenly spread (--max-bases 700): 10 of" in capsys.readouterr().out
    # More than there is: the whole split, and nothing to say.
    assert mba_command(*arguments, "--max-bases", "1000000000", "--json") == 0
    assert json.loads(capsys.readouterr().out) == whole
    for wrong, message in (
        (("--max-bases", "63"), "less than one window of 64 bases"),
        (("--max-bases", "700", "--context", "16,64"), "--context has --blocks instead"),
    ):
        assert mba_command(*arguments, *wrong) == 2
        assert message in capsys.readouterr().err
    # Neither is what the run folder keeps as its evaluation.
    assert sorted(path.name for path in trained.iterdir()) == before


def test_sample_writes_fasta_of_bases_only(trained, tmp_path, capsys):
    out = tmp_path / "s.fa"
    arguments = ("sample", trained, "--length", "150", "--num-samples", "3", "--quiet", "--device", "cpu")
    assert mba_command(*arguments, "--out", out) == 0
    records = out.read_text().split(">")[1:]
    sequences = ["".join(record.splitlines()[1:]) for record in records]
    assert [len(sequence) for sequence in sequences] == [150] * 3
    assert set("".join(sequences)) <= set("ACGT")
    assert all("first_base=drawn from training composition A:" in record for record in records)
    assert max(len(line) for record in records for line in record.splitlines()[1:]) == 80
    capsys.readouterr()
    # The batch size does not change the result; another seed does. A record on its way has no log-likelihood yet.
    for batch_size in ("1", "2", "16"):
        assert mba_command(*arguments, "--batch-size", batch_size) == 0
        assert capsys.readouterr().out == re.sub(r" log_likelihood=\S+ path=\S+", "", out.read_text())
    assert mba_command(*arguments, "--seed", "1") == 0
    assert capsys.readouterr().out != out.read_text()
    assert mba_command(*arguments, "--out", out) == 2
    assert "exists" in capsys.readouterr().err
    assert mba_command(*arguments, "--prompt", "ACGTACGT", "--temperature", "0") == 0
    greedy = capsys.readouterr().out
    assert "prompt=ACGTACGT" in greedy
    # Without chance the seed changes nothing but the header.
    assert mba_command(*arguments, "--prompt", "ACGTACGT", "--temperature", "0", "--seed", "9") == 0
    bases = [line for line in greedy.splitlines() if not line.startswith(">")]
    assert bases == [line for line in capsys.readouterr().out.splitlines() if not line.startswith(">")]
    assert mba_command(*arguments, "--prompt", "ACGX") == 2
    assert "'X' at position 4" in capsys.readouterr().err


def test_sample_to_a_pipe_shows_bases_at_once_and_ends_with_it(trained):
    """A billion bases would take days; `head` has its lines after the first block."""
    code = "from mamba_bio_audio.cli.main import run; run()"
    arguments = [
        sys.executable,
        "-c",
        code,
        "sample",
        trained,
        "--length",
        "1000000000",
        "--num-samples",
        "2",
        "--quiet",
    ]
    process = subprocess.Popen(
        [*arguments, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines = [process.stdout.readline() for _ in range(5)]
    assert lines[0].startswith(">sample_0 length=1000000000 ")
    assert all(re.fullmatch(r"[ACGT]{80}\n", line) for line in lines[1:])
    process.stdout.close()
    assert process.wait(timeout=120) != 0
    assert "Traceback" not in process.stderr.read()


def test_sample_report_beside_the_training_data(trained, fasta, tmp_path, capsys):
    out = tmp_path / "s.fa"
    arguments = ("sample", trained, "--length", "700", "--num-samples", "2", "--quiet", "--device", "cpu", "--out", out)
    assert mba_command(*arguments) == 0
    text = capsys.readouterr().out
    assert "along the sequence" in text
    assert "Divergence and matches are to " in text
    result = json.loads((tmp_path / "s.fa.report.json").read_text())
    assert (result["samples"], result["bases"], result["note"]) == (2, 1400, None)
    assert result["valid"]["bases"] == 1400
    assert 0 < result["own"]["divergence"] < 1
    assert result["match"]["bases"] == result["own"]["longest_match"] >= 6
    # Where the genome is no longer the one it was trained on, the samples stand alone.
    original = fasta.read_text()
    try:
        fasta.write_text(original.replace("A", "T", 1))
        assert mba_command(*arguments, "--force") == 0
        assert "not the file" in capsys.readouterr().err
        assert "train" not in json.loads((tmp_path / "s.fa.report.json").read_text())
    finally:
        fasta.write_text(original)
    (tmp_path / "s.fa.report.json").unlink()
    assert mba_command(*arguments, "--force", "--no-report") == 0
    assert not (tmp_path / "s.fa.report.json").exists()


def test_sample_stopped_by_a_signal_resumes_to_the_same_file(trained, tmp_path, capsys, monkeypatch):
    from mamba_bio_audio.inference import generate
    from mamba_bio_audio.inference.row_files import RowFiles

    monkeypatch.setattr(generate, "_BLOCK", 32)
    arguments = ("sample", trained, "--length", "100", "--num-samples", "2", "--quiet", "--device", "cpu")
    assert mba_command(*arguments, "--out", tmp_path / "whole.fa") == 0
    write = RowFiles._write

    def interrupt(self, *arguments):
        write(self, *arguments)
        monkeypatch.setattr(RowFiles, "_write", write)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RowFiles, "_write", interrupt)
    out = tmp_path / "s.fa"
    capsys.readouterr()
    assert mba_command(*arguments, "--out", out) == 130
    assert f"--resume (so far: {out}.part)" in capsys.readouterr().err
    assert not out.exists()
    assert len((tmp_path / "s.fa.part" / "row-00001.txt").read_text()) == 32
    assert mba_command(*arguments, "--out", out) == 2
    assert "s.fa.part: unfinished; continue it with --resume" in capsys.readouterr().err
    assert mba_command(*arguments, "--seed", "3", "--out", out, "--resume") == 2
    assert "seed 0 -> 3" in capsys.readouterr().err
    assert mba_command(*arguments, "--out", out, "--resume") == 0
    assert out.read_text() == (tmp_path / "whole.fa").read_text()
    assert not (tmp_path / "s.fa.part").exists()
    assert mba_command(*arguments, "--out", out, "--resume") == 0
    assert "already complete" in capsys.readouterr().out
    assert mba_command(*arguments, "--seed", "3", "--out", out, "--resume") == 2
    assert "sampled with length=100 seed=0 temperature=1, not length=100 seed=3" in capsys.readouterr().err
    assert mba_command(*arguments, "--resume") == 2
    assert "--out" in capsys.readouterr().err


def test_load_and_generate_from_python(trained):
    model = mba.load(trained)
    assert isinstance(model.codec, DnaTokenizer)
    assert model.config.train.steps == 12
    tokens = mba.generate(model, length=20, num_samples=2, prompt="ACGT", seed=3)
    assert tokens.shape == (2, 20)
    assert set(model.codec.decode(tokens[0].numpy())) <= set("ACGT")
    last = mba.load(trained, which="last")
    best_step = json.loads((trained / "manifest.json").read_text())["result"]["best_step"]
    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), last.parameters(), strict=True))
    assert same == (best_step == 12)


def test_export_opens_in_hugging_face_and_here(trained, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    assert mba_command("export", trained, "--out", tmp_path / "hub") == 0
    assert "MambaForCausalLM" in capsys.readouterr().out
    model = mba.load(trained)
    tokens = torch.randint(7, 11, (1, 50))
    with torch.no_grad():
        expected = model(tokens).logits
        theirs = transformers.MambaForCausalLM.from_pretrained(tmp_path / "hub").eval()(tokens, use_cache=False).logits
        again = mba.load(tmp_path / "hub")
        assert torch.equal(again(tokens).logits, expected)
    assert (theirs - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert again.codec.name == "dna"
    assert again.config == model.config
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "toy.fa" in card
    assert mba_command("export", trained, "--out", tmp_path / "hub") == 2
    assert mba_command("evaluate", tmp_path / "hub", "--no-baselines", "--quiet", "--device", "cpu") == 0


def test_export_replaces_its_own_folder_only_and_names_scores_of_other_weights(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    out = tmp_path / "new" / "hub"
    assert mba_command("evaluate", run, "--quiet", "--device", "cpu") == 0
    assert mba_command("export", run, "--out", out) == 0
    first = capsys.readouterr()
    assert "other weights" not in first.err
    assert "perplexity" in (out / "README.md").read_text()
    assert {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} <= set(os.listdir(out))
    # The scores are those of the best weights; these are others, as after training has gone on.
    weights = load_file(run / "model.safetensors")
    weights["norm_f.weight"] *= 1.01
    save_file(weights, run / "model.safetensors")
    (out / "tokenizer.json").unlink()
    assert mba_command("export", run, "--out", out) == 2
    assert not (out / "tokenizer.json").exists()
    assert mba_command("export", run, "--out", out, "--force") == 0
    assert capsys.readouterr().err.count("these scores belong to other weights") >= 2
    assert "perplexity" not in (out / "README.md").read_text()
    assert (out / "tokenizer.json").exists()
    (out / "thesis.txt").write_text("mine")
    assert mba_command("export", run, "--out", out, "--force") == 2
    assert (out / "thesis.txt").read_text() == "mine"
    assert mba_command("export", run, "--out", tmp_path, "--force") == 2


def test_prepare_then_pretrain(fasta, tmp_path, capsys):
    assert mba_command("prepare", "genome", fasta, "--out", tmp_path / "data", "--block-bases", "2000") == 0
    assert "bases in two splits" in capsys.readouterr().out
    code = mba_command(
        "pretrain",
        "dna/tiny",
        *overrides(tmp_path / "data", "train.steps=2"),
        "--out",
        tmp_path / "run",
        "--json",
        "--quiet",
        "--device",
        "cpu",
    )
    assert code == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2


def test_dry_run_estimates_and_writes_nothing(fasta, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mba_command("pretrain", "dna/tiny", *overrides(fasta), "--dry-run", "--json", "--device", "cpu") == 0
    result = json.loads(capsys.readouterr().out)
    # 2 layers x 16: blocks of in_proj, convolution, x_proj, dt_proj, A, D, out_proj, norm; final norm; tied embedding.
    block = 2 * 16 * 32 + 5 * 32 + 32 * (1 + 32) + 32 + 32 + 16 * 32 + 32 + 32 * 16 + 16
    assert result["parameters"] == 2 * block + 16 + 16 * 16
    assert result["accumulate"] * result["micro_batch"] * 64 == 512
    assert 0 < result["seconds_per_step"] < 60
    assert result["config"]["model"]["vocab_size"] == 12
    assert not list(tmp_path.iterdir())


def test_dry_run_memory_is_within_a_quarter(fasta, tmp_path, capsys):
    """Of the peak resident memory of the same training in a process of its own."""
    settings = overrides(
        fasta, "train.micro_batch=8", "train.length=2048", "train.tokens_per_step=16384", "train.steps=2"
    )
    arguments = ["pretrain", "dna/tiny", *settings, "--device", "cpu"]
    assert mba_command(*arguments, "--dry-run", "--json") == 0
    estimate = json.loads(capsys.readouterr().out)["memory_bytes"]
    code = (
        "import resource, sys\n"
        "from mamba_bio_audio.cli.main import run\n"
        "try:\n    run()\n"
        "finally:\n    print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    peak = int(out.stderr.split("peak")[-1])
    assert estimate == pytest.approx(peak, rel=0.25)


def test_all_configuration_mistakes_at_once(capsys):
    mistakes = ("train.lr=-1", "model.d_modl=3", "train.precision=fp8", "data.path=nowhere.fa")
    code = mba_command(
        "pretrain",
        "dna/tiny",
        *(part for key in mistakes for part in ("--set", key)),
    )
    error = capsys.readouterr().err
    assert code == 2
    assert "4 mistakes" in error
    assert "train.lr: " in error
    assert "allowed: number > 0" in error
    assert "did you mean d_model?" in error
    assert "auto | fp32 | bf16" in error
    assert "data.path: nowhere.fa: no such file" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pretrain", "dna/tinny"), "did you mean dna/tiny?"),
        (("pretrain", "dna/tiny", "--set", "oops"), "key=value"),
        (("pretrain", "dna/tiny"), "data.path: missing"),
        (("evaluate", "nowhere"), "no such run"),
        (("sample", "nowhere", "--length", "3"), "no such run"),
        (("prepare", "genome", "nowhere.fa", "--out", "x"), "nowhere.fa"),
        (("configs", "nope"), "packaged recipes"),
    ],
)
def test_bad_usage_exits_with_2_and_one_message(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mba_command(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_run_is_never_overwritten_by_accident(trained, fasta, tmp_path, capsys):
    before = (trained / "metrics.csv").read_bytes()
    assert mba_command("pretrain", "dna/tiny", *overrides(fasta), "--out", trained) == 2
    assert "--resume" in capsys.readouterr().err
    assert mba_command("pretrain", "dna/tiny", *overrides(fasta), "--out", trained, "--resume") == 2
    assert "already complete" in capsys.readouterr().err
    changed = overrides(fasta, "train.lr=1e-3")
    assert mba_command("pretrain", "dna/tiny", *changed, "--out", trained, "--resume") == 2
    assert "train.lr: was 0.004, now 0.001" in capsys.readouterr().err
    assert (trained / "metrics.csv").read_bytes() == before
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    assert mba_command("pretrain", "dna/tiny", *overrides(fasta), "--out", precious, "--force") == 2
    assert "not marked as made by mba pretrain" in capsys.readouterr().err
    assert (precious / "thesis.tex").exists()


def test_micro_batches_do_not_change_the_training(trained, fasta, tmp_path):
    out = tmp_path / "run"
    settings = overrides(fasta, "train.micro_batch=8")
    assert mba_command("pretrain", "dna/tiny", *settings, "--out", out, "--quiet", "--device", "cpu") == 0
    for a, b in zip(metrics(trained), metrics(out), strict=True):
        assert float(a["train_nats"]) == pytest.approx(float(b["train_nats"]), rel=1e-5)


def test_streamed_training_is_the_same_training(trained, fasta, tmp_path):
    out = tmp_path / "run"
    settings = overrides(fasta, "train.stream_chunk=24")
    assert mba_command("pretrain", "dna/tiny", *settings, "--out", out, "--quiet", "--device", "cpu") == 0
    for a, b in zip(metrics(trained), metrics(out), strict=True):
        assert float(a["train_nats"]) == pytest.approx(float(b["train_nats"]), rel=1e-5)
        assert float(a["grad_norm"]) == pytest.approx(float(b["grad_norm"]), rel=1e-3)


def test_stream_chunk_auto_is_resolved_and_kept(fasta, tmp_path, capsys, monkeypatch):
    from mamba_bio_audio.training import probe

    settings = overrides(fasta, "train.stream_chunk=auto", "train.length=4096", "train.tokens_per_step=4096")
    settings += ["--set", "train.micro_batch=1", "--set", "train.steps=2", "--set", "train.stream_offload=true"]
    # 100 bytes a position; the dry run itself measures as ever.
    monkeypatch.setattr(probe, "probe", lambda model, train, *_: probe.Probe(100 * train.stream_chunk, 1.0))
    monkeypatch.setattr(probe, "_memory_limit", lambda device: 100 * 3000)
    assert mba_command("pretrain", "dna/tiny", *settings, "--device", "cpu", "--dry-run") == 0
    text = capsys.readouterr().out
    assert "stream_chunk: 2048" in text
    assert "stream chunk     2,048, the largest that fits" in text
    out = tmp_path / "run"
    monkeypatch.setattr(probe, "_memory_limit", lambda device: 2**50)
    assert mba_command("pretrain", "dna/tiny", *settings, "--out", out, "--quiet", "--device", "cpu") == 0
    kept = (out / "config.yaml").read_text()
    assert "stream_chunk: null" in kept
    # There are no states to keep; with true the run could not be read again.
    assert "stream_offload: false" in kept
    assert mba_command("pretrain", "dna/tiny", *settings, "--out", out, "--resume", "--quiet", "--device", "cpu") == 2
    assert "already complete" in capsys.readouterr().err


def test_configs_lists_and_shows(capsys):
    assert mba_command("configs") == 0
    lines = capsys.readouterr().out.splitlines()
    family = next(number for number, line in enumerate(lines) if line.startswith("dna/hg38 "))
    after = next(number for number, line in enumerate(lines) if line.startswith("dna/hg38-caduceus "))
    variants = [line.split()[0] for line in lines[family + 1 : after]]
    assert (variants[0], variants[4], variants[-1]) == ("@250k", "@7m", "@hyenadna")
    assert mba_command("configs", "--json") == 0
    assert json.loads(capsys.readouterr().out)["dna/hg38@7m"] == "16 layers x 256 (7,012,608 parameters)"
    assert mba_command("configs", "dna/hg38@7m") == 0
    assert "d_model: 256" in capsys.readouterr().out


def test_doctor_passes_its_self_test(capsys):
    assert mba_command("doctor", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert all(test["passed"] for test in result["self_test"])
    assert result["backend"]["cpu"] == "torch"


def start(fasta: Path, out: Path, *more: str) -> subprocess.Popen:
    arguments = ["pretrain", "dna/tiny", *overrides(fasta, *more), "--out", str(out), "--device", "cpu"]
    code = "from mamba_bio_audio.cli.main import run; run()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_step(out: Path, process: subprocess.Popen, step: int) -> None:
    """Until that row is there, however long this machine takes."""
    while not ((out / "metrics.csv").exists() and len(metrics(out)) >= step):
        assert process.poll() is None, f"ended early: {process.communicate()[1]}"
        time.sleep(0.005)


def assert_same_run(run: Path, whole: Path) -> None:
    """Rows, best weights, and the last checkpoint with optimiser, random states and all."""
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert sorted(os.listdir(run / "checkpoints")) == sorted(os.listdir(whole / "checkpoints"))
    last = [(folder / "checkpoints" / "last.safetensors").read_bytes() for folder in (run, whole)]
    assert last[0] == last[1]
    results = [json.loads((folder / "manifest.json").read_text())["result"] for folder in (run, whole)]
    assert results[0]["best_step"] == results[1]["best_step"]


@pytest.fixture(scope="module")
def long_whole(fasta, tmp_path_factory) -> Path:
    """An uninterrupted run, long enough to be interrupted anywhere; the last step is not a multiple of anything."""
    out = tmp_path_factory.mktemp("runs") / "long"
    settings = overrides(fasta, *LONG)
    assert mba_command("pretrain", "dna/tiny", *settings, "--out", out, "--quiet", "--device", "cpu") == 0
    return out


LONG = (
    "train.steps=61",
    "train.validate_every=20",
    "train.checkpoint_every=7",
    "train.lr=0.05",
    "train.validation_tokens=null",
)


@pytest.mark.parametrize("what", ["checkpoint", "weights", "row"])
def test_a_full_disk_ends_a_run_that_resumes_to_the_same_result(what, trained, fasta, tmp_path, capsys, monkeypatch):
    """The fourth write of its kind fails in the middle: what was there is intact, one error names the file."""
    from mamba_bio_audio.files import tensors
    from mamba_bio_audio.training import metrics as rows
    from mamba_bio_audio.training import steps

    out = tmp_path / "run"
    arguments = ("pretrain", "dna/tiny", *overrides(fasta), "--out", out, "--quiet", "--device", "cpu")
    calls = 0

    def failing(write, path_of, at):
        def call(*values, **options):
            nonlocal calls
            calls += 1
            if calls == at:
                with open(path_of(values), "ab") as file:
                    file.write(b"7,35")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(*values, **options)

        return call

    owner, name, path_of, at, file = {
        "checkpoint": (tensors, "save_file", lambda values: values[1], 4, "checkpoints/last.safetensors"),
        "weights": (steps, "save_weights", lambda values: values[1], 2, "model.safetensors"),
        "row": (rows, "append", lambda values: values[0], 7, "metrics.csv"),
    }[what]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing(getattr(owner, name), path_of, at))
        assert mba_command(*arguments) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "no space left on the disk" in error or "No space left on device" in error
    if what != "row":
        assert str(out / file) in error
    assert not list(out.rglob(".*.tmp"))
    assert last_position(out).step >= 4
    assert mba.load(out).num_parameters() > 0
    assert mba_command(*arguments, "--resume") == 0
    assert_same_run(out, trained)


# Any two of a signal, a moment and a number of workers meet.
@pytest.mark.parametrize(
    ("number", "rows", "workers"),
    [
        (signal.SIGINT, 3, 0),
        (signal.SIGINT, 19, 2),
        (signal.SIGTERM, 3, 2),
        (signal.SIGTERM, 19, 0),
        (signal.SIGKILL, 3, 0),
        (signal.SIGKILL, 19, 2),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_an_interrupted_run_resumes_to_the_same_result(number, rows, workers, long_whole, fasta, tmp_path):
    """Signals go to the whole process group, as Ctrl-C does; 19 rows is just before a validation."""
    out = tmp_path / "run"
    settings = (*LONG, f"data.num_workers={workers}")
    process = start(fasta, out, *settings)
    wait_for_step(out, process, rows)
    os.killpg(process.pid, number)
    output, error = process.communicate(timeout=600)
    assert (out / "metrics.csv").read_text() != (long_whole / "metrics.csv").read_text(), "ended before the signal"
    if number != signal.SIGKILL:
        assert process.returncode == 130, output + error
        assert f"stopped by {number.name} after step " in output
        assert (out / "checkpoints" / "last.safetensors").exists()
        assert "Traceback" not in error
    arguments = [*overrides(fasta, *settings), "--out", out, "--resume", "--quiet", "--device", "cpu"]
    assert mba_command("pretrain", "dna/tiny", *arguments) == 0
    assert_same_run(out, long_whole)


def test_stopping_inside_a_validation_and_at_the_last_step(long_whole, fasta, tmp_path, monkeypatch):
    """The row waits in the checkpoint; nothing is validated that an uninterrupted run would not."""
    from mamba_bio_audio.training import steps

    arguments = ["pretrain", "dna/tiny", *overrides(fasta, *LONG), "--out", tmp_path / "run", "--device", "cpu"]
    nats = steps.Steps._validation
    calls = []

    def stop_in_the_middle(self, trainer, module):
        calls.append(trainer.global_step)
        if len(calls) in (1, 3, 5):
            os.kill(os.getpid(), signal.SIGTERM)
        return nats(self, trainer, module)

    monkeypatch.setattr(steps.Steps, "_validation", stop_in_the_middle)
    assert mba_command(*arguments) == 130
    for _ in range(2):
        assert mba_command(*arguments, "--resume") == 130
    assert mba_command(*arguments, "--resume") == 0
    assert calls == [20, 20, 40, 40, 60, 60, 61]
    assert_same_run(tmp_path / "run", long_whole)


def test_as_many_processes_as_devices(fasta, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    settings = overrides(fasta, "train.devices=2")
    assert mba_command("pretrain", "dna/tiny", *settings, "--out", tmp_path / "run", "--device", "cpu") == 2
    assert "4 processes were started, but train.devices x train.nodes is 2 x 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_length_warm_up_resumes_inside_a_stage(fasta, tmp_path, monkeypatch, capsys):
    """Stopped in the first stage and at its end, continued with other workers: the uninterrupted run, bit for bit."""
    from mamba_bio_audio.training.steps import Steps

    stages = "train.length_warmup=[{length: 16, steps: 3}, {length: 32, epochs: 0.08}]"

    def arguments(out: str, workers: int = 0) -> list:
        settings = overrides(fasta, stages, f"data.num_workers={workers}")
        return ["pretrain", "dna/tiny", *settings, "--out", tmp_path / out, "--device", "cpu"]

    assert mba_command(*arguments("run"), "--dry-run", "--json") == 0
    found = json.loads(capsys.readouterr().out)["length_stages"]
    assert [(stage["length"], stage["steps"]) for stage in found] == [(16, 3), (32, 7), (64, 2)]
    assert mba_command(*arguments("run"), "--dry-run") == 0
    assert "  steps 4 to 10, 16 sequences each: 0.08" in capsys.readouterr().out

    assert mba_command(*arguments("whole"), "--quiet") == 0
    rows = metrics(tmp_path / "whole")
    assert [int(row["length"]) for row in rows] == [16] * 3 + [32] * 7 + [64] * 2
    assert [int(row["tokens"]) for row in rows] == [512 * step for step in range(1, 13)]
    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    assert manifest["length_stages"] == found

    step_end = Steps.on_train_batch_end

    def stop_at(self, trainer, module, outputs, batch, batch_idx):
        # The same step number is seen by the first micro-batch of the next step; a second signal would end pytest.
        if trainer.global_step in (2, 3, 7) and (batch_idx + 1) % self.accumulate == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        step_end(self, trainer, module, outputs, batch, batch_idx)

    monkeypatch.setattr(Steps, "on_train_batch_end", stop_at)
    assert mba_command(*arguments("run", workers=2)) == 130
    assert mba_command(*arguments("run"), "--resume") == 130
    assert mba_command(*arguments("run"), "--resume") == 130
    monkeypatch.undo()
    assert mba_command(*arguments("run", workers=1), "--resume", "--quiet") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_share_each_sequence(trained, fasta, tmp_path, monkeypatch):
    """Streamed, stopped in the middle and resumed: the training of one process."""
    out, script = tmp_path / "run", tmp_path / "mba.py"
    # What the second process would measure does not count: chunks must be the same for both.
    script.write_text(
        "import os\n"
        "from mamba_bio_audio.cli.main import run\n"
        "from mamba_bio_audio.run import begin\n"
        "begin.choose_chunk = lambda *_: 7 if os.environ.get('LOCAL_RANK', '0') == '1' else 12\n"
        "run()\n"
    )
    settings = overrides(fasta, "train.devices=2", "train.sequence_parallel=2", "train.stream_chunk=auto")
    arguments = [sys.executable, script, "pretrain", "dna/tiny", *settings, "--out", out, "--quiet", "--device", "cpu"]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_step(out, process, 5)
    os.killpg(process.pid, signal.SIGTERM)
    output, error = process.communicate(timeout=600)
    assert process.returncode == 130, output + error
    assert output.count("stopped by SIGTERM") == 1
    assert "stream_chunk: 12" in (out / "config.yaml").read_text()
    # One process goes on where two stopped.
    alone = Path(shutil.copytree(out, tmp_path / "alone"))
    assert mba_command("pretrain", "dna/tiny", *overrides(fasta), "--out", alone, "--resume", "--device", "cpu") == 0
    assert json.loads((alone / "manifest.json").read_text())["sessions"][-1]["changed"].keys() == {
        "train.devices",
        "train.sequence_parallel",
        "train.stream_chunk",
    }
    done = subprocess.run([*arguments, "--resume"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for run in (out, alone):
        rows = metrics(run)
        assert [row["step"] for row in rows] == [str(step) for step in range(1, 13)]
        for a, b in zip(metrics(trained), rows, strict=True):
            assert float(a["train_nats"]) == pytest.approx(float(b["train_nats"]), rel=1e-5)
            assert float(a["grad_norm"]) == pytest.approx(float(b["grad_norm"]), rel=1e-3)
            assert bool(a["valid_nats"]) == bool(b["valid_nats"])
        assert float(rows[-1]["valid_nats"]) == pytest.approx(float(metrics(trained)[-1]["valid_nats"]), rel=1e-5)


def test_a_second_signal_ends_at_once(fasta, tmp_path):
    out = tmp_path / "run"
    process = start(fasta, out, "train.steps=100000", "train.validate_every=100000", "train.tokens_per_step=131072")
    wait_for_step(out, process, 1)
    os.kill(process.pid, signal.SIGINT)
    # Only what has been noted can be followed by a second one.
    while "stopping after this step" not in (line := process.stderr.readline()):
        assert line, "ended without a word"
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "stopped at once" in error
    assert "Traceback" not in error


def test_a_diverged_run_stops_and_keeps_what_was_good(fasta, tmp_path, capsys):
    settings = ("train.lr=300", "train.log_every=20", "train.checkpoint_every=3", "train.validate_every=20")
    arguments = ["pretrain", "dna/tiny", *overrides(fasta, *settings), "--out", tmp_path / "run", "--quiet"]
    assert mba_command(*arguments, "--device", "cpu") == 1
    assert "lower train.lr" in capsys.readouterr().err
    last = tmp_path / "run" / "checkpoints" / "last.safetensors"
    if last.exists():
        assert all(torch.isfinite(tensor).all() for tensor in load_checkpoint(last).weights.values())


def test_force_keeps_the_old_run_until_the_new_one_can_start(trained, fasta, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    bad = tmp_path / "bad.fa"
    bad.write_text(">a\nACGT\n>a\nACGT\n")
    assert mba_command("pretrain", "dna/tiny", *overrides(bad), "--out", run, "--force") == 2
    assert "a" in capsys.readouterr().err
    assert (run / "model.safetensors").exists()


def test_changed_data_are_noticed(fasta, tmp_path, capsys):
    mine = tmp_path / "toy.fa"
    shutil.copy(fasta, mine)
    run = tmp_path / "run"
    arguments = ["pretrain", "dna/tiny", *overrides(mine), "--out", run, "--quiet", "--device", "cpu"]
    assert mba_command(*arguments) == 0
    mine.write_text(mine.read_text().replace("ACG", "TTT"))
    capsys.readouterr()
    assert mba_command("evaluate", run, "--quiet") == 2
    assert "not the file" in capsys.readouterr().err
    # Saying so evaluates it, and leaves the run's own result alone.
    own = ("--no-baselines", "--quiet", "--json", "--device", "cpu")
    assert mba_command("evaluate", run, "--set", f"data.path={mine}", *own) == 0
    assert json.loads(capsys.readouterr().out)["overrides"] == [f"data.path={mine}"]
    assert not (run / "evaluate-test.json").exists()
    assert mba_command("evaluate", run, "--set", "model.d_model=3") == 2
    (run / "checkpoints" / "last.safetensors").write_bytes(b"")
    assert mba_command(*arguments, "--resume") == 2
    assert "damaged" in capsys.readouterr().err


def test_evaluate_the_same_bases_under_every_context(trained, tmp_path, capsys):
    out = tmp_path / "tables"
    arguments = ["evaluate", trained, "--context", "256,16,64", "--blocks", "40", "--out", out, "--device", "cpu"]
    assert mba_command(*arguments, "--json", "--quiet") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["contexts"] == [16, 64, 256]
    rows = [row for row in result["matched"] if row["kind"] == "all"]
    assert [row["context"] for row in rows] == [16, 64, 256]
    assert {row["count"] for row in rows} == {result["target_bases"]} == {result["blocks"] * 4}
    assert result["by_position"][0]["first"] == 1
    assert result["by_position"][-1]["first"] == 256
    names = ["evaluate-context-test-position.csv", "evaluate-context-test.csv"]
    names += ["evaluate-context-test.json", "evaluate-context-test.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert result["weights_sha256"] == weights_hash(mba.load(trained))
    assert json.loads((out / "evaluate-context-test.json").read_text()) == result | {
        "pictures": ["evaluate-context-test.png"]
    }
    with (out / "evaluate-context-test.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(result["matched"]) + len(result["copied"])
    assert mba_command(*arguments) == 0
    assert "the same " in capsys.readouterr().out
    # Beside the run, where it goes without --out, it hinders nothing that reads the run.
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    assert mba_command("evaluate", run, "--context", "16,64", "--blocks", "8", "--device", "cpu", "--quiet") == 0
    assert (run / "evaluate-context-test.json").exists()
    assert mba_command("export", run, "--out", tmp_path / "export") == 0
    assert mba_command("report", run, "--quiet") == 0
    assert "bases in 8 blocks under every context" in (run / "report.html").read_text()
    assert mba_command("evaluate", trained, "--context", "64,10000000", "--out", out) == 2
    assert "the longest possible context is" in capsys.readouterr().err
    assert mba_command("evaluate", trained, "--context", "64,1k", "--out", out) == 2
    assert "write whole numbers" in capsys.readouterr().err


def test_evaluate_at_another_length_and_with_exchanged_splits(fasta, tmp_path, capsys):
    bed = tmp_path / "splits.bed"
    rows = [("one", 0, 36_000, "train"), ("one", 36_000, 38_000, "valid"), ("one", 38_000, 40_000, "test")]
    bed.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    run = tmp_path / "run"
    settings = overrides(fasta, f"data.intervals={bed}", "train.steps=2")
    assert mba_command("pretrain", "dna/tiny", *settings, "--out", run, "--quiet", "--device", "cpu") == 0
    evaluate = ("evaluate", run, "--no-baselines", "--quiet", "--json", "--device", "cpu")
    for length in ("16", "500"):
        capsys.readouterr()
        assert mba_command(*evaluate, "--length", length) == 0
        assert json.loads(capsys.readouterr().out)["scored"] == 2000
    bed.write_text(bed.read_text().replace("valid", "x").replace("test", "valid").replace("x", "test"))
    assert mba_command(*evaluate) == 2
    assert "was trained on other splits" in capsys.readouterr().err


def test_a_last_step_that_destroys_the_weights_is_no_success(fasta, tmp_path, capsys):
    settings = overrides(fasta, "train.steps=1", "train.lr=1e30", "train.warmup=0")
    out = tmp_path / "run"
    assert mba_command("pretrain", "dna/tiny", *settings, "--out", out, "--quiet", "--device", "cpu") == 1
    assert "validation loss is nan" in capsys.readouterr().err
    assert not (out / "model.safetensors").exists()


def test_a_torn_metrics_row_does_not_stop_a_resume(fasta, tmp_path):
    from mamba_bio_audio.training import metrics as file

    path = tmp_path / "metrics.csv"
    file.start(path, 0)
    file.append(path, {"step": 1, "tokens": 512})
    with path.open("a") as stream:
        stream.write("\0\0\0")
    file.start(path, 5)
    assert [row["step"] for row in metrics(tmp_path)] == ["1"]


def test_sample_and_export_destroy_nothing(trained, tmp_path, capsys):
    keep = tmp_path / "keep.fa"
    keep.write_text(">precious\n")
    assert mba_command("sample", trained, "--length", "5", "--out", keep, "--force", "--top-p", "0") == 2
    assert keep.read_text() == ">precious\n"
    assert mba_command("sample", trained, "--length", "5", "--out", tmp_path) == 2
    assert mba_command("export", trained, "--out", trained, "--force") == 2
    assert "run folder" in capsys.readouterr().err
    assert isinstance(mba.load(trained).codec, DnaTokenizer)
