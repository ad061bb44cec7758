"""`mba report` on a run folder made by hand: everything in one file, nothing fetched, nothing unescaped."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.config import load_config, to_yaml
from mamba_bio_audio.pipelines.dna.datamodule import DnaDataModule
from mamba_bio_audio.plain_yaml import parse


def mba(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def run(tmp_path) -> Path:
    """What a finished training leaves, without training."""
    rng = np.random.default_rng(0)
    fasta = tmp_path / "toy.fa"
    fasta.write_text(">one\n" + "".join(rng.choice(list("ACGT"), 60_000)) + "\n")
    folder = tmp_path / "run"
    folder.mkdir()
    config = load_config("dna/tiny", [f"data.path={fasta}", "description=a <b>bold</b> run", "model.vocab_size=12"])
    (folder / "config.yaml").write_text(to_yaml(config))
    data = DnaDataModule(config.data, length=512, batch_size=2, seed=0)
    data.setup()
    manifest = {
        "torch": "2.99",
        "commit": "abc123",
        "device": "cpu, 1 threads",
        "data": data.summary(),
        "sessions": [{"command": ["pretrain", "dna/tiny"], "from_step": 0, "started": "2026-01-01"}],
        "result": {"step": 1000, "best_step": 900, "valid_nats": 1.3},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = [
        f"{step},{step * 8192},512,0.001,0.5,1.38,{'1.37,1.97,3.93' if step % 4 == 0 else ',,'}" for step in range(1, 9)
    ]
    header = "step,tokens,length,lr,grad_norm,train_nats,valid_nats,valid_bits,valid_perplexity"
    (folder / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def evaluation() -> dict:
    scores = {"nats": 1.3, "bits": 1.8755, "perplexity": 3.6693}
    return {
        "split": "test",
        "scored": 99,
        "bases": 100,
        "unknown": 0,
        "first_of_record": 1,
        "length": 512,
        "weights": "best",
        "model": scores,
        "genomes": {},
        "markov": {"orders": [scores] * 3, "chosen_order": 2, "best": scores | {"perplexity": 3.7}},
    }


def test_report_is_one_page_with_everything(run, capsys):
    (run / "evaluate-test.json").write_text(json.dumps(evaluation()))
    genome = (run.parent / "toy.fa").read_text().splitlines()[1]
    (run / "samples.fa").write_text(f">sample_0\n{genome[:3000]}\n>sample_1\n{genome[5000:8000]}\n")
    assert mba("report", run, "--quiet") == 0
    printed = capsys.readouterr().out
    page = (run / "report.html").read_text()
    for title in (
        "What was trained",
        "On what",
        "Curves",
        "Evaluation beside baselines: test",
        "Samples",
        "Provenance",
    ):
        assert f"<h2>{title}</h2>" in page
        assert title in printed
    manifest = json.loads((run / "manifest.json").read_text())
    for text in (
        "toy.fa",
        manifest["data"]["files"][0]["sha256"],
        "4 layers x 64",
        "1.3000 nats",
        "Markov order 2 (best on valid)",
        "abc123",
        "2.99",
        "mba pretrain dna/tiny",
        "along the sequence",
        "longest match",
    ):
        assert text in page, text
    # Curves and spectra are inside; nothing is fetched from anywhere; text is escaped.
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert "a &lt;b&gt;bold&lt;/b&gt; run" in page
    # The measurement is kept, and not repeated.
    measured = run / "samples.fa.report.json"
    result = json.loads(measured.read_text())
    assert result["own"]["longest_match"] == 3000
    measured.write_text(json.dumps(result | {"samples": 77}))
    assert mba("report", run, "--quiet", "--out", run.parent / "page.html") == 0
    assert "77 samples" in (run.parent / "page.html").read_text()
    assert mba("report", run, "--quiet", "--out", run.parent / "page.html") == 2
    assert "--force" in capsys.readouterr().err


def test_report_of_a_young_run_says_what_is_missing(run, capsys):
    (run / "metrics.csv").unlink()
    (run / "manifest.json").unlink()
    assert mba("report", run) == 0
    page = (run / "report.html").read_text()
    assert "No step has been logged yet" in page
    assert "the run has not come to an end" in page
    assert f"mba evaluate {run}" in page
    assert f"mba sample {run}" in page


def test_report_on_something_else_is_one_error(run, tmp_path, capsys):
    assert mba("report", tmp_path / "none") == 2
    assert "not a run folder" in capsys.readouterr().err
    (run / "evaluate-test.json").write_text("{}")
    assert mba("report", run) == 2
    assert "evaluate-test.json: not an evaluation" in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_export_card_says_data_metrics_and_limits(run, tmp_path):
    """The model card, from a run's configuration and manifest."""
    import mamba_bio_audio
    from mamba_bio_audio import checkpoint
    from mamba_bio_audio.export import model_card
    from mamba_bio_audio.models.build import build_model
    from mamba_bio_audio.training.steps import save_weights

    (run / "evaluate-test.json").write_text(json.dumps(evaluation()))
    save_weights(build_model(checkpoint.read_config(run).model, seed=0), run / "model.safetensors")
    assert mba("export", run, "--out", tmp_path / "hub") == 0
    card = (tmp_path / "hub" / "README.md").read_text()
    # An export keeps what it needs to be exported again.
    assert model_card(mamba_bio_audio.load(tmp_path / "hub")) == card
    front = parse(card.split("---")[1], "the card")
    assert front["library_name"] == "mamba-bio-audio"
    # Whoever publishes the weights chooses the licence; the card must not invent one.
    assert "license" not in front
    for text in (
        "60,000 bases",
        "1.3000 nats per base at step 900",
        "perplexity 3.6693",
        "Markov order 2",
        "## Limits",
        "licence",
    ):
        assert text in card, text
    # What stands beside the weights may spoil a card, not the model.
    (run / "evaluate-x.json").write_text("{}")
    assert mamba_bio_audio.load(run).num_parameters() > 0
    assert mba("export", run, "--out", tmp_path / "again") == 2
    assert not (tmp_path / "again").exists()
