"""`mba report` on a run folder made by hand: everything in one file, nothing fetched, nothing unescaped."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.jobs import report
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.plain_yaml import parse
from mamba_bio_audio.run.config import load_config, to_yaml
from mamba_bio_audio.training.steps import save_weights


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
    data = DataModule(config.data, length=512, batch_size=2, seed=0)
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
    # What its words mean stands in it, and no line leaves it.
    assert page.count("<dt>") == page.count("<dd>") > 4
    assert "white-space: pre-wrap" in page
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
    assert "the run has not finished" in page
    assert f"mba evaluate {run}" in page
    assert f"mba sample {run}" in page


def test_report_on_something_else_is_one_error(run, tmp_path, capsys):
    assert mba("report", tmp_path / "none") == 2
    assert "not a run folder" in capsys.readouterr().err
    (run / "evaluate-test.json").write_text("{}")
    assert mba("report", run) == 2
    assert "evaluate-test.json: damaged or changed since this program wrote it" in capsys.readouterr().err
    assert not (run / "report.html").exists()


DAMAGED = {
    "evaluate-valid.json": ["[" * 100_000, "[]", '{"model": {}}', '{"split": "valid", "model": {"nats": "<b>"}}'],
    "evaluate-context-valid.json": ["[" * 100_000, "{}"],
    "samples.fa.report.json": ["[" * 100_000, '{"own": 1}', '{"own": {}}'],
    "manifest.json": [
        *("[" * 100_000, '{"data": {"files": []}}', '{"result": 3}', '{"result": {"valid_nats": "x"}}'),
        *('{"sessions": [1]}', '{"sessions": [{"command": 3}]}', '{"length_stages": [1, 2]}'),
    ],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_of_a_run_are_one_error(name, run, capsys):
    """Fails before: KeyError, TypeError, RecursionError and exit code 1."""
    (run / "samples.fa").write_text(">a\nACGT\n")
    for text in DAMAGED[name]:
        (run / name).write_text(text)
        assert mba("report", run, "--quiet") == 2, text[:60]
        error = capsys.readouterr().err
        assert name in error
        assert error.count("\n") == 1
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("evaluate-valid.json", '{"split": "valid", "model": {"nats": 1.0}}'),
        ("manifest.json", '{"result": 3}'),
        ("manifest.json", '{"result": {"valid_nats": "x"}}'),
    ],
)
def test_damaged_files_of_a_run_are_one_error_of_its_export(name, text, run, tmp_path, capsys):
    config = load_config("dna/tiny", ["data.path=demo", "model.vocab_size=12"])
    save_weights(build_model(config.model, seed=0), run / "model.safetensors")
    (run / name).write_text(text)
    assert mba("export", run, "--out", tmp_path / "hub") == 2
    assert "damaged or changed since this program wrote it; restore" in capsys.readouterr().err
    assert not (tmp_path / "hub").exists()


def test_export_card_says_data_metrics_and_limits(run, tmp_path):
    """The model card, from a run's configuration and manifest."""
    import mamba_bio_audio
    from mamba_bio_audio.models.build import build_model
    from mamba_bio_audio.run.described import read_config
    from mamba_bio_audio.run.export import model_card
    from mamba_bio_audio.training.steps import save_weights

    (run / "evaluate-test.json").write_text(json.dumps(evaluation()))
    save_weights(build_model(read_config(run).model, seed=0), run / "model.safetensors")
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


SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"


def page_of(run: Path) -> str:
    assert mba("report", run, "--quiet") == 0
    return (run / "report.html").read_text()


def pictures(page: str) -> int:
    return page.count("data:image/png;base64,")


def test_pictures_are_those_that_an_evaluation_drew(run, capsys):
    png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(20)
    (run / "own.png").write_bytes(png)
    (run / "foreign.png").write_bytes(png)
    before = pictures(page_of(run))
    (run / "evaluate-test.json").write_text(json.dumps(evaluation() | {"pictures": ["own.png", "gone.png"]}))
    page = page_of(run)
    assert pictures(page) == before + 1
    assert 'alt="own"' in page
    # What only bears such a name is not put into the page.
    secret = run.parent / "id_rsa"
    secret.write_text(SECRET)
    for make, message in [
        (lambda path: path.symlink_to(secret), "leads out of"),
        (lambda path: path.symlink_to(run / "foreign.png"), "a link"),
        (lambda path: path.write_text(SECRET), "not a PNG"),
        (lambda path: path.mkdir(), "not a regular file"),
    ]:
        own = run / "own.png"
        own.rmdir() if own.is_dir() else own.unlink()
        make(own)
        (run / "report.html").unlink(missing_ok=True)
        capsys.readouterr()
        assert mba("report", run, "--quiet") == 2
        assert message in capsys.readouterr().err
        assert not (run / "report.html").exists()
    for name in ("../id_rsa", str(secret)):
        (run / "evaluate-test.json").write_text(json.dumps(evaluation() | {"pictures": [name]}))
        assert mba("report", run, "--quiet") == 2
        assert "leads out of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "manifest.json",
        "metrics.csv",
        "evaluate-test.json",
        "evaluate-context-test.json",
        "samples.fa",
        "samples.fa.report.json",
    ],
)
def test_nothing_that_a_link_leads_to_elsewhere_is_read(run, name, capsys):
    genome = (run.parent / "toy.fa").read_text().splitlines()[1]
    (run / "samples.fa").write_text(f">sample_0\n{genome[:500]}\n")
    elsewhere = run.parent / "elsewhere"
    path = run / name
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.write_text(json.dumps({"own": {}, "pictures": []}))
    path.symlink_to(elsewhere)
    assert mba("report", run, "--quiet") == 2
    assert f"{path}: leads out of" in capsys.readouterr().err
    assert not (run / "report.html").exists()
    if name in ("config.yaml", "manifest.json", "evaluate-test.json"):
        from mamba_bio_audio.models.build import build_model
        from mamba_bio_audio.models.config import ModelConfig
        from mamba_bio_audio.training.steps import save_weights

        save_weights(build_model(ModelConfig(d_model=64, num_layers=4, vocab_size=12)), run / "model.safetensors")
        assert mba("export", run, "--out", run.parent / "hub") == 2
        assert "leads out of" in capsys.readouterr().err
        assert not (run.parent / "hub").exists()


def test_names_are_written_out_in_the_page(run):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["data"]["files"][0]["name"] = "a\x1b[31m\u202e.fa\udcff"
    (run / "manifest.json").write_text(json.dumps(manifest))
    page = page_of(run)
    assert r"a\x1b[31m\u202e.fa\xff" in page
    assert "\x1b" not in page


def test_damaged_metrics_are_one_error(run, capsys):
    for text in ("step,train_nats\n1,x\n", "a,b\n1,2\n", "step\n\x00\n"):
        (run / "metrics.csv").write_text(text)
        assert mba("report", run, "--quiet") == 2
        assert "not the metrics of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "per"), [("dna/tiny", "base"), ("audio/tiny", "sample"), ("dna/apes@1k", "sequence")]
)
def test_curves_say_what_a_loss_is_per(recipe, per, run, tmp_path, monkeypatch):
    from mamba_bio_audio.jobs import report as workflow

    asked = []
    monkeypatch.setattr(
        "mamba_bio_audio.evaluation.figures.learning_curves", lambda metrics, per: asked.append(per) or b""
    )
    kind = {"dna/apes@1k": [f"data.path={tmp_path}"]}.get(recipe, [f"data.path={tmp_path}"])
    config = load_config(recipe, [*kind, "data.groups=null"] if "apes" in recipe else kind)
    workflow._curves(run, workflow._per(config))
    assert asked == [per]


@pytest.mark.parametrize("name", ["josé", "two\nlines", "red\x1b[31m", "日本"])
def test_samples_and_exports_of_runs_with_any_name(run, name, tmp_path, capsys):
    """One header line, whatever the folder is called."""
    from mamba_bio_audio.jobs import sample
    from mamba_bio_audio.models.build import build_model
    from mamba_bio_audio.pipelines.dna.records import read_records
    from mamba_bio_audio.run.described import read_config
    from mamba_bio_audio.training.steps import save_weights

    place = run.rename(tmp_path / name)
    save_weights(build_model(read_config(place).model, seed=0), place / "model.safetensors")
    out = place / f"{name}.fa"
    sample.run(sample.SampleOptions(run=place, out=out, length=10, num_samples=2, report=False, device="cpu"))
    assert [len(record.sequence) for record in read_records(out)] == [10, 10]
    text = out.read_text(encoding="utf-8")
    assert text.count("\n") == 4
    assert "\x1b" not in text
    assert mba("sample", place, "--length", 10, "--quiet") == 0
    assert capsys.readouterr().out.split("\n")[1] == text.split("\n")[1]
    assert mba("export", place, "--out", tmp_path / "hub") == 0
    assert "\x1b" not in capsys.readouterr().out


def test_report_leaves_out_scores_of_other_weights(run, capsys):
    from mamba_bio_audio.models.build import build_model
    from mamba_bio_audio.models.weights import weights_hash
    from mamba_bio_audio.run.described import read_config
    from mamba_bio_audio.training.steps import save_weights

    first, second = (build_model(read_config(run).model, seed=seed) for seed in (0, 1))
    (run / "evaluate-test.json").write_text(
        json.dumps(evaluation() | {"which": "best", "weights_sha256": weights_hash(first)})
    )
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["result"]["weights_sha256"] = weights_hash(first)
    (run / "manifest.json").write_text(json.dumps(manifest))

    def page() -> str:
        assert mba("report", run, "--quiet", "--force") == 0
        return (run / "report.html").read_text()

    assert page().count("can no longer be read") == 2
    save_weights(first, run / "model.safetensors")
    shown = page()
    assert "Markov order 2" in shown
    assert "1.3000 nats" in shown
    assert "weights than" not in shown
    save_weights(second, run / "model.safetensors")
    resumed = page()
    assert resumed.count("Scores of other weights than the run holds now are left out") == 2
    assert "Markov order 2" not in resumed
    assert "1.3000 nats" not in resumed
    assert mba("export", run, "--out", run.parent / "hub") == 0
    assert capsys.readouterr().err.count("these scores belong to other weights; the model card leaves them out") == 2
    assert "3.6693" not in (run.parent / "hub" / "README.md").read_text()


def test_report_of_scores_without_a_hash_says_so(run):
    (run / "evaluate-test.json").write_text(json.dumps(evaluation()))
    assert mba("report", run, "--quiet") == 0
    page = (run / "report.html").read_text()
    assert page.count("it is unknown which weights they belong to") == 2
    assert "Markov order 2" in page


def test_the_page_is_a_file(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert mba("report", run, "--out", "-") == 2
    assert "--out -: the page is not written to standard output; give --out FILE.html" in capsys.readouterr().err
    assert not Path("-").exists()
    assert mba("report", run, "--samples", "none.fa") == 2
    assert "--samples none.fa: there is no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "overrides", "options"),
    [
        ("dna/tiny", ["data.path=demo"], "--length 1000"),
        ("dna/tiny", ["data.path=demo", "model.mixer=transformer"], "--length 1000"),
        # A convolution carries no state, and nothing is drawn without one.
        ("dna/tiny", ["data.path=demo", "model.pattern=mamba,hyena", "model.options={hyena: {max_length: 4096}}"], ""),
        ("synthetic/induction", [], ""),
    ],
)
def test_samples_are_proposed_where_they_can_be_drawn(recipe, overrides, options):
    config = load_config(recipe, overrides)
    assert config.first_sample == options
    assert config.model_copy(update={"head": "any"}).first_sample == ""
    proposed = report._samples(Path("run"), config, {}, None, lambda *_: None)
    assert [section.title for section in proposed] == (["Samples"] if options else [])
