"""Models that come with the package: found by name, listed, used by every command that takes RUN, made by the script."""

import csv
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.cli.main import run as command_line
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs import models
from mamba_bio_audio.jobs.sample_report import data_of
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.run import packaged
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.export import export, model_card

ROOT = Path(__file__).parents[2]
specification: Any = importlib.util.spec_from_file_location("package_model", ROOT / "scripts" / "package_model.py")
package_model = importlib.util.module_from_spec(specification)
specification.loader.exec_module(package_model)

FACTS = """
name: toy-5k
saw: 5 kb that mean nothing
use: research use only
licence: Apache-2.0
sources:
  - {data: letters, source: this test, licence: none}
limits: [It is a toy.]
measured: ["BRCA1: AUROC .500"]
"""


def mba_exits(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        command_line(list(arguments))
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of packaged models with one in it, made by the script from an export that stands for a run."""
    folder = tmp_path_factory.mktemp("made")
    letters = torch.randint(4, (3, 2000), generator=torch.Generator().manual_seed(0))
    (folder / "data").mkdir()
    for split, row in zip(("train", "valid", "test"), letters, strict=True):
        text = "".join("ACGT"[letter] for letter in row)
        (folder / "data" / f"{split}.fa").write_text(f">{split}\n{text}\n")
    rows = [f"{split}.fa\t{split}\t0\t2000\t{split}" for split in ("train", "valid", "test")]
    (folder / "data" / "intervals.tsv").write_text("\n".join(["file\trecord\tstart0\tend\tsplit", *rows, ""]))
    config = load_config("dna/tiny", [f"data.path={folder / 'data'}", "data.intervals=null", "train.length=128"])
    model: Any = build_model(config.model.model_copy(update={"d_model": 16, "num_layers": 2, "vocab_size": 12}), seed=0)
    model.config, model.codec = config.model_copy(update={"model": model.model_config}), DnaTokenizer()
    model.manifest = {
        "result": {"step": 7, "valid_nats": 0.5, "best_step": 7},
        "commit": "abc",
        "command": ["pretrain"],
    }
    export(model.eval(), folder / "run")
    (folder / "toy.yaml").write_text(FACTS)
    package_model.main(folder / "run", folder / "toy.yaml", None, folder / "packaged" / "toy-5k")
    return folder


@pytest.fixture
def toy(made, monkeypatch, tmp_path):
    """Its name, in an empty directory."""
    monkeypatch.setattr(packaged, "FOLDER", made / "packaged")
    monkeypatch.chdir(tmp_path)
    return "toy-5k"


def test_the_script_makes_an_export_in_bf16_with_scores_of_these_weights(made, toy):
    folder = made / "packaged" / toy
    from safetensors.torch import load_file

    tensors, model = load_file(folder / "model.safetensors"), mba.load(toy)
    kept = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert {name.split(".mixer.")[1] for name in kept} == {"A_log", "D", "dt_proj.bias"}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert {split: found["weights_sha256"] for split, found in model.manifest["evaluations"].items()} == dict.fromkeys(
        ("valid", "test"), weights_hash(model)
    )
    assert all("Markov order" in " ".join(found) for found in model.manifest["evaluations"].values())
    assert "command" not in model.manifest
    card = (folder / "README.md").read_text()
    for text in (
        "5 kb that mean nothing",
        "| letters | this test | none |",
        "Apache-2.0. Research use only.",
        "- It is a toy.",
        "- BRCA1: AUROC .500",
        'mba.load("toy-5k")',
        "test split, windows of 128, model: nats",
    ):
        assert text in card, text
    assert "No licence is stated" not in card
    assert "left out" not in card


def test_the_script_keeps_scores_where_the_weights_stay(made, toy, tmp_path, monkeypatch):
    out = tmp_path / "again"
    package_model.main(made / "run", made / "toy.yaml", None, out)
    monkeypatch.setattr(package_model, "_evaluate", None)
    (made / "other.yaml").write_text(FACTS.replace("AUROC .500", "AUROC .501"))
    package_model.main(made / "run", made / "other.yaml", None, out)
    before, after = (json.loads((at / "config.json").read_text()) for at in (made / "packaged" / toy, out))
    scores = [found["mamba_bio_audio"]["manifest"]["evaluations"] for found in (before, after)]
    assert scores[0] == scores[1]
    assert "AUROC .501" in (out / "README.md").read_text()


def test_data_that_do_not_come_with_a_model_are_no_wrong_path(toy):
    model: Any = mba.load(toy)
    data = model.config.data.model_copy(update={"path": "nowhere"})
    elsewhere = model.config.model_copy(update={"data": data})
    told = "toy-5k comes without its training data"
    assert data_of(packaged.find_model(toy), elsewhere, model.manifest) == (None, told)


def test_what_is_said_of_a_model_does_not_go_over_to_other_weights(toy):
    model: Any = mba.load(toy)
    assert packaged.about(model).saw == "5 kb that mean nothing"
    with torch.no_grad():
        model.norm_f.weight.mul_(2)
    assert packaged.about(model) is None
    assert "BRCA1" not in model_card(model)
    assert "No licence is stated" in model_card(model)


def test_damaged_facts_are_one_error(toy):
    with pytest.raises(InputError, match="about.weights_sha256 in the model's manifest"):
        packaged.read_about({"about": {"name": "x"}})
    assert packaged.read_about({}) is None


def test_a_path_wins_over_a_name_and_home_is_known(made, toy, tmp_path, monkeypatch):
    assert packaged.find_model(toy) == made / "packaged" / toy
    (tmp_path / toy).mkdir()
    assert packaged.find_model(toy) == Path(toy)
    with pytest.raises(InputError, match=f"{toy}: neither a run"):
        mba.load(toy)
    monkeypatch.setenv("HOME", str(made))
    assert weights_hash(mba.load("~/run")) == weights_hash(mba.load(made / "run"))


def test_an_unknown_name_lists_the_names(toy, monkeypatch):
    with pytest.raises(InputError, match="human9gb: no such run, folder or file; packaged models: toy-5k"):
        mba.load("human9gb")
    monkeypatch.setattr(packaged, "FOLDER", Path("nowhere"))
    with pytest.raises(InputError, match=r"no such run, folder or file$"):
        mba.load("human9gb")
    assert models.run(models.ModelsOptions()).text() == "this installation holds no packaged models"


def test_models_lists_what_there_is(toy, capsys, made):
    assert mba_exits("models") == 0
    shown = capsys.readouterr().out
    for text in ("toy-5k: research use only", "2 layers x 16", "saw 5 kb", "windows of 128 bases", "BRCA1: AUROC .500"):
        assert text in shown, text
    assert re.search(r"perplexity on test: model \d+\.\d{3}, Markov order \d+ 4\.\d{3}", shown)
    assert "reads any length in constant memory" in shown
    (described,) = models.run(models.ModelsOptions()).models
    assert "memory grows with the length (transformer)" in described.model_copy(update={"grows": "transformer"}).text()
    assert mba_exits("models", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)
    model = mba.load(toy)
    assert found["parameters"] == model.num_parameters()
    assert found["size_bytes"] == (made / "packaged" / toy / "model.safetensors").stat().st_size
    assert found["scores"]["test"]["model"]["nats"] > 1.3


def test_commands_take_the_name(made, toy, capsys, tmp_path):
    before = sorted(path.name for path in (made / "packaged" / toy).iterdir())
    assert mba_exits("sample", toy, "--length", "50", "--quiet") == 0
    assert re.search(r"^[ACGT]{50}$", capsys.readouterr().out, re.MULTILINE)
    assert mba_exits("evaluate", toy, "--no-baselines", "--quiet") == 2
    assert "data.path: data: no such file or folder" in capsys.readouterr().err
    data = ("--set", f"data.path={made / 'data'}")
    assert mba_exits("evaluate", toy, "--no-baselines", "--quiet", "--json", *data) == 0
    assert json.loads(capsys.readouterr().out)["run"] == toy
    assert mba_exits("export", toy, "--out", "own") == 0
    assert weights_hash(mba.load("own")) == weights_hash(mba.load(toy))
    assert "BRCA1" in (tmp_path / "own" / "README.md").read_text()
    fasta = str(made / "data" / "test.fa")
    assert mba_exits("score", toy, fasta, "--out", "track.tsv", "--quiet") == 0
    assert mba_exits("embed", toy, fasta, "--out", "vectors.npz", "--quiet") == 0
    assert mba_exits("predict", toy, fasta, "--out", "classes.tsv", "--quiet") == 2
    assert "this command needs a classifier" in capsys.readouterr().err
    assert mba_exits("report", toy) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert mba_exits("evaluate", toy, "--context", "8,16", "--blocks", "4", "--quiet") == 2
    assert "--out" in capsys.readouterr().err
    assert mba_exits("evaluate", toy, "--context", "8,16", "--blocks", "4", "--out", "context", "--quiet", *data) == 0
    assert sorted(path.name for path in (made / "packaged" / toy).iterdir()) == before
    assert not (tmp_path / toy).exists()


def test_packaged_models_are_small_and_whole():
    weights = [folder / "model.safetensors" for folder in packaged.packaged_models().values()]
    assert sum(path.stat().st_size for path in weights) < 31_000_000
    for name, folder in packaged.packaged_models().items():
        model: Any = mba.load(name)
        found = packaged.about(model)
        assert found is not None
        assert found.name == name
        assert found.use == "research use only"
        # But for the version that wrote it.
        cards = (model_card(model), (folder / "README.md").read_text())
        assert len({re.sub(r"mamba-bio-audio [\w.]+", "", card).strip() for card in cards}) == 1


def test_models_of_sound_are_told_by_bits_beside_linear_prediction():
    """The piano's figures are those of its run, 0.003 worse in shorter windows and with rounded weights."""
    folder = packaged.packaged_models("audio")["piano18min-2m7"]
    run = json.loads((ROOT / "benchmarks" / "results" / "piano_real_grow_h200" / "evaluate-test.json").read_text())
    (shown,) = re.findall(
        r"bits on test: model (\d\.\d{3}), linear prediction of order 512 2\.319",
        models.run(models.ModelsOptions()).text(),
    )
    assert float(shown) == pytest.approx(run["model"]["bits"], abs=0.003)
    (own,) = re.findall(r"test split, .* model: .*bits (\d\.\d{4})", (folder / "README.md").read_text(encoding="utf-8"))
    assert f"{float(own):.3f}" == shown
    assert f"{shown} bits a sample where tuned linear prediction has 2.319" in (ROOT / "README.md").read_text("utf-8")
    assert list(packaged.packaged_models("dna")) == [
        name for name in packaged.packaged_models() if name.startswith("human")
    ]


def test_a_fresh_process_reaches_the_figure_of_each_card():
    """One process for all of them, since most of its seconds are torch's import."""
    names = packaged.packaged_models()
    runs = [["evaluate", name, *packaged.CHECK, "--device", "cpu", "--json"] for name in names]
    program = (
        "from mamba_bio_audio.cli.main import run\n"
        f"for arguments in {runs!r}:\n"
        "    try:\n"
        "        run(arguments)\n"
        "    except SystemExit as stop:\n"
        "        assert not stop.code, stop.code\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    read = json.JSONDecoder()
    for name, folder in names.items():
        found, end = read.raw_decode(shown)
        shown = shown[end:].lstrip()
        said = re.search(r"on a CPU\): nats (\d\.\d{4})\.", (folder / "README.md").read_text(encoding="utf-8"))
        assert said, name
        assert found["run"] == name
        assert found["model"]["nats"] == pytest.approx(float(said[1]), abs=0.001)


def test_the_figures_said_of_human42mb_are_those_of_its_run():
    """In docs/benchmarks.md; a test perplexity within 0.01 of the first run was wanted."""
    results = ROOT / "benchmarks" / "results" / "human42mb-1m4_h200"
    own, bars = [], []
    for split in ("test", "valid"):
        found = json.loads((results / f"evaluate-{split}.json").read_text())
        own.append(f"{found['model']['perplexity']:.4f}")
        bars.append(f"{found['markov']['best']['perplexity']:.4f}")
        assert found["markov"]["chosen_order"] == 12
    assert abs(float(own[0]) - 3.076) < 0.01
    page = (ROOT / "docs" / "benchmarks.md").read_text().replace("\n", " ")
    assert (
        f"test perplexity {own[0]} and validation {own[1]}, beside {bars[0]} and {bars[1]} of the order-12 Markov"
        in page
    )
    rows = csv.DictReader((results / "evaluate-context-test.csv").read_text().splitlines())
    context = [f"{float(row['perplexity']):.4f}" for row in rows if row["kind"] == "all"]
    assert f"| perplexity | {' | '.join(context)} |" in page


def test_the_card_of_human42mb_has_what_its_rounded_weights_reach():
    """On both held-out splits, whole, beside the Markov models of the run that was rounded; and on BRCA1."""
    card = (packaged.packaged_models()["human42mb-1m4"] / "README.md").read_text(encoding="utf-8")
    assert "Not yet evaluated" not in card
    scores = mba.load("human42mb-1m4").manifest["evaluations"]
    results = ROOT / "benchmarks" / "results"
    yardsticks = list(csv.DictReader((results / "yardsticks_human_cpu.csv").read_text().splitlines()))
    for split in ("test", "valid"):
        run = json.loads((results / "human42mb-1m4_h200" / f"evaluate-{split}.json").read_text())
        found, bar = scores[split], scores[split]["Markov order 24"]
        # Rounding costs nothing that four digits would show.
        assert found["model"]["perplexity"] == pytest.approx(run["model"]["perplexity"], abs=1e-4)
        # The best of all orders that were tried, not the best of those that were evaluated with the run.
        (best,) = (
            row
            for row in yardsticks
            if (row["yardstick"], row["split"], row["locus"], row["chosen"]) == ("markov", split, "all", "True")
        )
        assert bar["nats"] == float(best["nats"]) < run["markov"]["best"]["nats"]
        for name, one in (("model", found["model"]), (f"Markov order {best['size']}", bar)):
            assert f"{split} split, windows of 1,024, {name}: nats {one['nats']:.4f}" in card
    rows = csv.DictReader((results / "brca1_h200" / "brca1.csv").read_text().splitlines())
    brca1 = {row["method"]: row for row in rows if row["subset"] == "all"}
    own = brca1["ratio both-18"]
    assert own["weights_sha256"] == weights_hash(mba.load("human42mb-1m4"))[:16]
    said = (
        f"ROC AUC {own['auroc']} (95 % interval {own['low']} to {own['high']}; both strands, 262,144 bases of context"
    )
    assert said in card
    assert (
        f"rule on the consequence {brca1['consequence rule']['auroc']} and phyloP {brca1['phyloP']['auroc']}." in card
    )


def test_the_card_of_human56mb_has_what_its_run_reached():
    """Both splits as in the run that was rounded, beside simple models; context and recall of the run; BRCA1."""
    results = ROOT / "benchmarks" / "results"
    run = results / "human56mb-7m_h200"
    model = mba.load("human56mb-7m")
    said, rows = " ".join(packaged.about(model).measured), {}
    nats, perplexity = {}, {}
    for name in ("test", "valid", "test-1024"):
        own = json.loads((run / f"likelihood-{name}.json").read_text())
        nats[name], perplexity[name] = own["genomes"], own["model"]["perplexity"]
    assert f"rounded: test perplexity {perplexity['test']:.4f}, validation {perplexity['valid']:.4f};" in said
    for name in ("yardsticks", "geco3"):
        table = csv.DictReader((results / f"{name}_human56mb_cpu.csv").read_text().splitlines())
        rows[name] = [row for row in table if row["split"] == "test"]
    best = {
        kind: min(float(row["perplexity"]) for row in rows[name] if (row["yardstick"], row["locus"]) == (kind, "all"))
        for name, kind in (("yardsticks", "markov"), ("yardsticks", "copies"), ("geco3", "geco3"))
    }
    assert (
        f"Markov models reach {best['markov']:.3f} (order 16), copies within 1,048,576 bases {best['copies']:.3f}, "
        f"GeCo3 {best['geco3']:.3f}." in said
    )
    locus = json.loads((results / "human56mb_packaged_cpu.json").read_text())
    assert locus["weights_sha256"] == weights_hash(model)
    before = nats["test-1024"][locus["locus"]]["model"]["nats"]
    assert f"{locus['model']['nats']:.5f} nats a base; before, on the GPU, {before:.5f}." in said
    assert locus["model"]["nats"] == pytest.approx(before, abs=1e-4)
    small = mba.load("human42mb-1m4").manifest["evaluations"]["test"]["model"]["perplexity"]
    assert f"windows of 1,024: perplexity {perplexity['test-1024']:.4f}, where human42mb-1m4 has {small:.4f}" in said
    context = csv.DictReader((run / "context" / "evaluate-context-test.csv").read_text().splitlines())
    (row,) = (row for row in context if "chrX" in row["stratum"] and row["context"] == "131072")
    (copies,) = (row for row in rows["yardsticks"] if ("chrX" in row["locus"], row["size"]) == (True, "131072"))
    gain, error = float(row["gain_nats"]), float(row["gain_standard_error"])
    assert f"worth {gain:.5f} nats a base (standard error {error:.5f}); copies gain {float(copies['gain']):.4f}" in said
    second = {}
    for name in ("evaluate-recall-test", "copies"):
        table = csv.DictReader((run / "recall" / f"{name}.csv").read_text().splitlines())
        (found,) = (row for row in table if (row["distance"], row["variant"]) == ("64", "exact"))
        second[name] = [float(found[key]) for key in found if key.removeprefix("bar_").startswith("gain")]
    gain, low, high = second["evaluate-recall-test"][:3]
    assert f"{gain:.4f} nats a base ({low:.4f} to {high:.4f}); copies gain {second['copies'][0]:.2f}" in said
    scored = csv.DictReader((results / "brca1_7m_h200" / "brca1.csv").read_text().splitlines())
    auroc = {row["method"]: row["auroc"].lstrip("0") for row in scored if row["subset"] == "all"}
    assert f"ROC AUC {auroc['ratio both-10']} at 1,024 bases of context, {auroc['ratio both-17']} at 131,072" in said
    assert f"the transversion rule has {auroc['transversion rule']}, phyloP {auroc['phyloP']}." in said


def test_variants_scored_by_human42mb_say_what_it_reaches_on_brca1(tmp_path):
    (tmp_path / "g.fa").write_text(">chr1\n" + "GATTACA" * 20 + "\n")
    (tmp_path / "c.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nchr1\t50\t.\tG\tA\t.\t.\t.\n"
    )
    out = tmp_path / "s.vcf"
    files = (str(tmp_path / "c.vcf"), "--genome", str(tmp_path / "g.fa"), "--out", str(out))
    assert mba_exits("variants", "human42mb-1m4", *files, "--context", "16", "--window", "8", "--quiet") == 0
    header = [line for line in out.read_text().splitlines() if line.startswith("##")]
    assert any(line.startswith("##mamba_bio_audio_measured=BRCA1") and "ROC AUC 0.4549" in line for line in header)
    assert any(line.startswith("##mamba_bio_audio_use=research use only") for line in header)
