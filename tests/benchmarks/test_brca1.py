"""`benchmarks/brca1.py`: its statistics against other programs', and a run from sites to a table at toy size."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import mamba_bio_audio as mba
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

ROOT = Path(__file__).parents[2]
CODEC = DnaTokenizer()


@pytest.fixture
def brca1(script):
    return script("brca1")


def dna(length: int, seed: int) -> str:
    return np.random.default_rng(seed).choice(np.frombuffer(b"ACGT", np.uint8), length).tobytes().decode()


def test_auroc_shares_the_rank_of_equal_scores(brca1):
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, score = rng.random(50) < 0.3, rng.integers(0, 6, 50).astype(float)
        assert brca1.auroc(labels, score) == pytest.approx(roc_auc_score(labels, score))


def test_intervals_hold_the_value_and_compare_on_the_same_draws(brca1):
    rng = np.random.default_rng(1)
    labels = rng.random(300) < 0.3
    good = labels + rng.normal(size=300)
    found = brca1.compared(
        {"good": good, "same": good * 2, "coin bar": rng.normal(size=300)}, labels, ("coin bar", "same")
    )
    assert float(found["good"]["low"]) < float(found["good"]["auroc"]) < float(found["good"]["high"])
    assert float(found["good"]["over_coin_low"]) > 0.1
    assert [found["good"][key] for key in ("over_same", "over_same_low", "over_same_high")] == ["0.0000"] * 3
    assert brca1.is_useful(found["coin bar"]) is False
    assert brca1.is_useful({key: "0.1" for key in ("over_coin_low", "over_same_low")}) is True


def test_markov_ratio_is_that_of_all_bases_it_changes_on_both_strands(brca1, tmp_path):
    text = dna(400, 2)
    (tmp_path / "g.fa").write_text(f">g:1-400\n{text}\n")
    (tmp_path / "m.fa").write_text(f">m\n{dna(60_000, 3)}\n")
    genome = Genome(tmp_path / "g.fa")
    other = "ACGT"["ACGT".index(text[200]) - 1]
    (found,) = brca1.markov_ratios(genome, [brca1.Site("g:1-400", 200, text[200], other)], [tmp_path / "m.fa"])
    changed = text[:200] + other + text[201:]
    model = brca1.fitted([tmp_path / "m.fa"])

    def log_likelihood(sequence: str) -> float:
        ids = CODEC.encode(sequence)
        both = (ids, CODEC.reverse_complement(ids))
        return sum(
            float(np.log(model.distribution(row[:at], brca1.ORDER)[row[at] - 7]))
            for row in both
            for at in range(150, 251)
        )

    assert found == pytest.approx((log_likelihood(changed) - log_likelihood(text)) / 2, abs=1e-9)
    assert found != 0


def test_an_exon_is_never_in_its_own_training(brca1):
    """Labels that are the opposite in one exon: what is learnt on the others is wrong there."""
    rng = np.random.default_rng(4)
    exons = np.repeat(["a", "b", "c", "d"], 60)
    features = rng.normal(size=(240, 3))
    labels = (features[:, 0] > 0) ^ (exons == "d")
    found = brca1.left_out(features, labels, exons)
    assert roc_auc_score(labels[exons == "a"], found[exons == "a"]) > 0.9
    assert roc_auc_score(labels[exons == "d"], found[exons == "d"]) < 0.1


def test_constructed_changes_are_transitions_of_known_kind(brca1):
    rng = np.random.default_rng(5)
    families = rng.integers(7, 11, (2, brca1.FAMILY_BASES)).astype(np.uint8)
    made = brca1.Constructed(50, families, rng)
    assert len(made.ids) == 50 * brca1.SPACING
    kinds = [fixed for _, _, fixed in made.changes]
    assert 0.5 < np.mean(kinds) < 0.8
    for at, new, _ in made.changes:
        assert {int(made.ids[at]), new} in ({7, 9}, {8, 10})


def test_from_sites_to_a_table(brca1, tmp_path, monkeypatch):
    text = dna(6000, 6)
    (tmp_path / "g.fa").write_text(f">chr17:1001-7000\n{text}\n")
    (tmp_path / "m.fa").write_text(f">m\n{dna(30_000, 7)}\n")
    rng = np.random.default_rng(8)
    names = ("pos_GRCh38", "ref", "alt", "consequence", "func_class", "experiment", "phyloP")
    with (tmp_path / "t.tsv").open("w") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(names)
        for number in range(160):
            at = 2000 + number % 40 + 700 * (number // 40)
            label = "LOF" if number % 2 else ("FUNC" if number % 3 else "INT")
            kind = "Missense" if number % 4 < 3 else "Synonymous"
            alternative = "ACGT"["ACGT".index(text[at]) - 1 - number % 3]
            writer.writerow([at + 1001, text[at], alternative, kind, label, f"X{number // 40}", f"{rng.normal():.3f}"])
    torch.manual_seed(0)
    model = IsotropicModel(ModelConfig(vocab_size=12, d_model=8, num_layers=1)).eval()
    model.config = model.model_config
    monkeypatch.setattr(mba, "load", lambda run: model, raising=False)
    monkeypatch.setattr(brca1, "RESAMPLES", 20)
    monkeypatch.setattr(brca1, "EMBEDDED", 64)
    monkeypatch.setattr(brca1, "EMBEDDING_CONTEXT", 128)
    brca1.score("toy", tmp_path / "g.fa", tmp_path / "t.tsv", tmp_path / "s", 9, 10, 9)
    brca1.report(tmp_path / "s", tmp_path / "t.tsv", tmp_path / "g.fa", [tmp_path / "m.fa"], tmp_path / "r")
    with (tmp_path / "r" / "brca1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    every = [row["method"] for row in rows if row["subset"] == "all"]
    assert every == [
        "ratio forward-9",
        "ratio both-9",
        "ratio forward-10",
        "phyloP",
        "consequence rule",
        "transversion rule",
        "Markov order 12",
        "embedding difference, one exon left out",
    ]
    assert {row["subset"] for row in rows} == {"all", "Missense", "all 3,893, as published"}
    first = rows[0]
    assert (first["variants"], first["lof"], first["context"], first["strand"]) == ("160", "80", "512", "forward")
    assert float(first["low"]) <= float(first["auroc"]) <= float(first["high"])
    ratios = np.load(tmp_path / "s" / "brca1_ratios.npz")["forward-9"]
    labels = [number % 2 == 1 for number in range(160)]
    # A lower likelihood of the alternative speaks for loss of function.
    assert float(first["auroc"]) == pytest.approx(roc_auc_score(labels, -ratios), abs=1e-4)
    assert (tmp_path / "r" / "brca1.png").stat().st_size > 1000
    with (tmp_path / "r" / "brca1_groups.csv").open(newline="") as file:
        groups = {row["group"]: row for row in csv.DictReader(file)}
    both = np.load(tmp_path / "s" / "brca1_ratios.npz")["both-9"]
    assert (groups["all"]["method"], groups["all"]["lof"]) == ("ratio both-9", "80")
    assert float(groups["all"]["median_ratio"]) == pytest.approx(np.median(both), abs=6e-4)
    assert float(groups["Synonymous"]["below_zero"]) == pytest.approx((both[3::4] < 0).mean(), abs=6e-4)
    kinds = ("A or T to C or G", "C or G to A or T", "A to T, C to G and back")
    counted = [sum(int(groups[name]["variants"]) for name in names) for names in (kinds, ("Missense", "Synonymous"))]
    assert counted == [160, 160]


def test_the_page_has_the_figures_of_the_results(brca1):
    """Every context with its seconds, every method of every subset, every group; and what the page concludes from them."""
    results = ROOT / "benchmarks" / "results" / "brca1_h200"
    page = (ROOT / "docs" / "results" / "variants.md").read_text(encoding="utf-8")
    rows, seconds, groups = (
        list(csv.DictReader((results / f"{name}.csv").read_text(encoding="utf-8").splitlines()))
        for name in ("brca1", "brca1_seconds", "brca1_groups")
    )

    def short(figure: str) -> str:
        return figure.removeprefix("0").replace("-0.", "-.")

    def interval(row: dict[str, str], prefix: str = "") -> str:
        value = row[prefix.rstrip("_") or "auroc"]
        return f"{short(value)} ({short(row[prefix + 'low'])} to {short(row[prefix + 'high'])})"

    found = {(row["subset"], row["method"]): row for row in rows}
    timed = {(int(row["context"]), row["strand"]): row for row in seconds}
    assert sorted({context for context, _ in timed}) == [1 << power for power in range(9, 20)]
    for power in range(9, 20):
        forward, both = timed[1 << power, "forward"], timed.get((1 << power, "both"))
        cells = [f"{1 << power:,}", interval(found["all", f"ratio forward-{power}"])]
        cells += [interval(found["all", f"ratio both-{power}"]) if both else "", forward["seconds"]]
        cells += [both["seconds"] if both else "", forward["whole_difference"]]
        assert "| " + " | ".join(cells).replace("|  |", "| |") + " |" in page
    named = {
        "ratio both-18": "ratio, both strands, 262,144 bases",
        "ratio forward-19": "ratio, forward, 524,288 bases",
        "embedding difference, one exon left out": "difference of frozen embeddings, one exon left out",
        "Markov order 12": "Markov ratio, order 12, fitted on chrX",
    }
    for method in (*named, "transversion rule", "consequence rule", "phyloP"):
        cells = [interval(found[subset, method]) for subset in ("all", "Missense", "Splice region")]
        assert f"| {named.get(method, method)} | {' | '.join(cells)} |" in page
    for name, _ in brca1.PUBLISHED:
        assert f"| {name}, as published, all 3,893 | {short(found['all 3,893, as published', name]['auroc'])} |" in page
    for method in ("ratio both-18", "embedding difference, one exon left out"):
        assert interval(found["all", method], "over_transversion_") in page
    assert interval(found["all", "ratio both-18"], "over_markov_") in page
    for row in groups:
        cells = (row["group"], f"{int(row['variants']):,}", row["lof"], row["median_ratio"], row["below_zero"])
        assert f"| {' | '.join(cells)} |" in page

    # What is said of them.
    own = [row for row in rows if row["subset"] == "all" and row["method"].startswith("ratio")]
    assert len(own) == 21
    assert {row["useful"] for row in rows if row["method"].startswith("ratio")} == {"no"}
    assert all(float(row["high"]) < 0.5 for row in own)
    assert all(float(row[f"over_{bar}_high"]) < 0 for row in own for bar in ("transversion", "markov"))
    assert max(float(row["auroc"]) for row in own) - min(float(row["auroc"]) for row in own) < 0.001
    assert all(float(row["seconds"]) < 150 for row in seconds)
    longest = timed[1 << 19, "forward"]
    each, all_of_them = longest["whole_seconds_each"], float(longest["whole_seconds_each"]) * int(longest["variants"])
    assert f"{each} s a variant at 524,288 bases" in page
    assert f"all would take {all_of_them:.0f} s instead of {longest['seconds']}." in page
    assert all(float(row["whole_difference"]) < 1e-4 for row in seconds if row["whole_difference"])
    assert {row["scored_on"] for row in own} == {"NVIDIA H200"}
