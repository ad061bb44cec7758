"""Every recipe of the paper, dry-run on stand-in data, is what the paper states; each has a row in docs/reproduction.md.

The stand-in for hg38 has the real number of intervals of the real length, so that windows, epochs and stages come out
as they will on the real genome; only the bases are random, and the intervals overlap far more.
"""

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.run.config import merge_recipe
from mamba_bio_audio.run.recipes import variants_of
from mamba_bio_audio.training.probe import Probe

ROOT = Path(__file__).parent.parent
specification: Any = importlib.util.spec_from_file_location("hours", ROOT / "scripts" / "hours.py")
hours = importlib.util.module_from_spec(specification)
specification.loader.exec_module(hours)
FACTS: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docs" / "paper_results.yaml").read_text())
DOCUMENT = (ROOT / "docs" / "reproduction.md").read_text()
HG38, YOUTUBEMIX = variants_of("dna/hg38"), variants_of("audio/youtubemix")
RECIPES = [
    *(f"dna/hg38@{size}-paper" for size in HG38 if re.fullmatch(r"[\d.]+[km]", size)),
    *(f"dna/hg38@{size}-{length}-paper" for size in ("1.4m", "7m") for length in HG38 if length.startswith("len")),
    *(f"audio/youtubemix@{length}-paper" for length in YOUTUBEMIX if length.isdecimal()),
    "audio/sc09@small-paper",
    "audio/sc09@large-paper",
    "dna/apes-paper",
]
SEGMENTS, SEGMENT_BASES = 34_021, 2**17


@pytest.fixture(scope="module")
def hg38(tmp_path_factory) -> list[str]:
    """Overrides for a genome of 2.6 Mb with 34,021 training segments."""
    folder = tmp_path_factory.mktemp("hg38")
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGT", np.uint8)
    with (folder / "stand-in.fa").open("w") as file:
        for name, length in (("chr1", 2_300_000), ("chr2", 300_000)):
            file.write(f">{name}\n{rng.choice(letters, length).tobytes().decode()}\n")
    starts = np.sort(rng.integers(0, 2_300_000 - SEGMENT_BASES, SEGMENTS)).tolist()
    rows = [f"chr1\t{start}\t{start + SEGMENT_BASES}\ttrain\n" for start in starts]
    rows += [f"chr2\t{start}\t{start + SEGMENT_BASES}\t{split}\n" for start, split in ((0, "valid"), (150_000, "test"))]
    (folder / "stand-in.bed").write_text("".join(rows))
    return [f"data.path={folder / 'stand-in.fa'}", f"data.intervals={folder / 'stand-in.bed'}"]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[str]:
    """Overrides for twenty clips of a minute."""
    import soundfile

    folder = tmp_path_factory.mktemp("recordings")
    samples = np.random.default_rng(0).integers(-20_000, 20_000, 960_000).astype(np.int16)
    for number in range(20):
        soundfile.write(folder / f"clip{number:02d}.wav", np.roll(samples, number), 16_000)
    return [f"data.path={folder}"]


@pytest.fixture(scope="module")
def apes(tmp_path_factory) -> list[str]:
    """Overrides for five classes with a record of more than 2^20 bases in every split."""
    folder = tmp_path_factory.mktemp("apes")
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGT", np.uint8)
    sequences = [rng.choice(letters, 2**20 + 1000).tobytes().decode() for _ in range(3)]
    for species in ("human", "chimpanzee", "gorilla", "orangutan", "bonobo"):
        records = [f">chr{i} split={split}\n{sequences[i]}\n" for i, split in enumerate(("train", "valid", "test"))]
        (folder / f"{species}.fa").write_text("".join(records))
    # Measured on the machine otherwise; without any effect on the numbers of the paper.
    return [f"data.path={folder}", "train.stream_chunk=null"]


def dry_run(name: str, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    verb = "classify" if "head" in merge_recipe(name) else "pretrain"
    arguments = [verb, name, "--dry-run", "--json", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        command([*arguments, *(part for text in overrides for part in ("--set", text))])
    printed = capsys.readouterr()
    assert not stop.value.code, printed.err
    return json.loads(printed.out)


def test_there_are_paper_recipes_and_each_has_its_entry_and_row():
    assert set(FACTS) <= set(RECIPES)
    assert len(RECIPES) == 30
    for name in RECIPES:
        assert name in FACTS, f"{name}: add what the paper states of it to docs/paper_results.yaml"
        rows = [line for line in DOCUMENT.splitlines() if line.startswith(f"| `{name}`")]
        assert len(rows) == 1, f"{name}: needs one row in docs/reproduction.md"
        cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
        assert cells[1:] == [
            FACTS[name]["metric"],
            f"{FACTS[name]['value']:.3f}",
            f"{FACTS[name]['gpu_hours']:g}",
        ], f"{name}: docs/reproduction.md and docs/paper_results.yaml differ"


def test_the_hours_are_those_of_the_current_table():
    for path, text in hours.filled().items():
        assert path.read_text(encoding="utf-8") == text, "python scripts/hours.py --write"
    assert hours.hours("dna/hg38@7m-len1k-paper") == pytest.approx(32 * hours.hours("dna/hg38@7m-paper"), rel=0.02)


@pytest.mark.parametrize("name", RECIPES)
def test_paper_recipe_is_what_the_paper_states(name, request, capsys, monkeypatch):
    # Time and memory are measured elsewhere; here only what they would be measured of.
    monkeypatch.setattr("mamba_bio_audio.run.dry_run.probe", lambda *arguments: Probe(0, 0.0))
    fact = FACTS[name]
    data = request.getfixturevalue(
        "apes" if name.startswith("dna/apes") else "hg38" if name.startswith("dna/") else "recordings"
    )
    result = dry_run(name, data, capsys)
    train, model = result["config"]["train"], result["config"]["model"]
    assert {key: train[key] for key in fact["train"]} == fact["train"]
    assert (model["num_layers"], model["d_model"]) == (fact["num_layers"], fact["d_model"])
    assert model.get("pools") == fact.get("pools")
    assert result["tokens_per_step"] == fact["train"]["tokens_per_step"]
    at_each_length = fact.get("steps_at_length", {train["length"]: train["steps"]})
    if "sequences_per_step" not in fact:
        assert result["tokens"] == fact["train"]["tokens_per_step"] * fact["train"]["steps"]
    if "parameters" in fact:
        assert result["parameters"] == fact["parameters"]
    else:
        assert result["parameters"] / 1e6 == pytest.approx(fact["parameters_millions"], abs=0.006)
    stages = result["length_stages"]
    assert stages[-1]["stop"] == train["steps"]
    if "sequences_per_step" in fact:
        assert {stage["sequences_per_step"] for stage in stages} == {fact["sequences_per_step"]}
    assert {stage["length"]: stage["steps"] for stage in stages} == at_each_length
    if "windows" in fact:
        # Two windows per segment beyond 2^17, else pieces: section E.3.1.
        assert stages[-1]["windows"] == fact["windows"]
        # Two epochs at every power of two from 2^10.
        assert all(math.isclose(stage["epochs"], 2, rel_tol=1e-3) for stage in stages[:-1])
        assert result["data"]["shared_policy"] == "allow"


@pytest.mark.parametrize("name", [name for name in RECIPES if "windows" in FACTS.get(name, {})])
def test_paper_recipe_has_derived_windows_of_the_paper(name):
    """The table itself, from the numbers of the text: S = 34,021 segments of 2^17, 2 S windows beyond."""
    fact = FACTS[name]
    length, tokens = fact["train"]["length"], fact["train"]["tokens_per_step"]

    def windows(length: int) -> int:
        return SEGMENTS * SEGMENT_BASES // length if length <= SEGMENT_BASES else 2 * SEGMENTS

    assert fact["windows"] == windows(length)
    shorter = {at: steps for at, steps in fact["steps_at_length"].items() if at < length}
    assert shorter == {at: math.ceil(2 * windows(at) * at / tokens) for at in shorter}
    assert sum(fact["steps_at_length"].values()) == fact["train"]["steps"]


def test_paper_recipe_runs_dry_on_packaged_data(capsys, monkeypatch):
    """What docs/reproduction.md tells to try without the genome."""
    assert "--set data.path=demo --dry-run" in DOCUMENT
    monkeypatch.setattr("mamba_bio_audio.run.dry_run.probe", lambda *arguments: Probe(0, 0.0))
    assert dry_run("dna/hg38@1.4m-paper", ["data.path=demo"], capsys)["parameters"] == 1_401_472


def test_paper_recipes_differ_from_ours_only_in_the_windows():
    for name in RECIPES:
        if name.startswith("dna/hg38@") and "-len" not in name:
            ours, paper = merge_recipe(name.removesuffix("-paper")), merge_recipe(name)
            assert paper["data"] == ours["data"] | {"windows": "grow-ends", "shared_bases": "allow"}
            assert paper["model"] == ours["model"]
            assert paper["train"] == ours["train"]
