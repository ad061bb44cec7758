"""`benchmarks/score_pieces.py` at toy size, and the figures of a chromosome that `docs/benchmarks.md` quotes."""

import re
from pathlib import Path

import numpy as np
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "chrx_score_h200"


def test_pieces_beside_the_whole(script, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    model = IsotropicModel(ModelConfig(vocab_size=12, d_model=8, num_layers=1)).eval()
    model.codec = DnaTokenizer()
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 300))
    (tmp_path / "a.fa").write_text(f">a\n{letters}\n")
    whole = mba.log_likelihood(model, letters[:200]).per_base.nan_to_num().abs().max()
    monkeypatch.setattr(mba, "load", lambda run: model, raising=False)
    script("score_pieces").main("toy", tmp_path / "a.fa", 200, "50,7", True)
    said = capsys.readouterr().out
    assert "a, first 200 bases" in said
    assert f"largest |log-likelihood| {float(whole):.3f} nats" in said
    found = {what: float(nats) for what, nats in re.findall(r"^(.*): at most (\S+) nats", said, re.MULTILINE)}
    assert set(found) == {
        "pieces of 50 against the whole",
        "pieces of 7 against the whole",
        "whole against fp64",
        "pieces of 50 against fp64",
        "pieces of 50 in fp64 against the whole in fp64",
        "pieces of 7 against fp64",
        "pieces of 7 in fp64 against the whole in fp64",
    }
    assert 0 < found["whole against fp64"] < 1e-5 * whole
    assert found["pieces of 7 in fp64 against the whole in fp64"] < 1e-12


def test_the_page_has_the_figures_of_the_results():
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    section = page.split("## H200: a chromosome")[1].split("\n## ")[0]
    score, embed, pieces = ((RESULTS / f"{name}.txt").read_text() for name in ("score", "embed", "pieces_cpu"))
    rates = [
        round(float(rate.replace(",", "")))
        for rate in re.findall(r'^([\d,]+) bases/s|symbols_per_second": ([\d.]+)', score, re.M)
        for rate in rate
        if rate
    ]
    ended = re.findall(r"exit 0, ([\d.]+) s, at most ([\d.]+) GiB", score)
    assert len(rates) == len(ended) == 4
    for rate, (seconds, memory) in zip(rates, ended, strict=True):
        assert f"| {seconds} | {rate:,} | {memory} |" in section
        assert float(seconds) < 60
    for how, seconds in re.findall(r"^(--.*): (\d+) s$", embed, re.M):
        assert f"| `mba embed {how}` | {seconds} | | |" in section
    apart = re.findall(r"^([\d,]+) bases: pieces of ([\d,]+) differ from the whole by at most (\S+) nats", score, re.M)
    assert len(apart) == 4
    for row in apart:
        assert f"| {' | '.join(row)} |" in section
    largest = float(re.findall(r"largest \|log-likelihood\| ([\d.]+)", pieces)[-1])
    worst = max(float(row[2]) for row in apart)
    assert f"it is {largest} nats" in section
    assert f"{worst:.2e} is at most {worst / largest:.1e} of the largest" in section
    assert worst / largest < 1e-5
    exact = re.findall(r"in fp64 against the whole in fp64: at most (\S+) nats", pieces)
    assert f"equal the whole to {max(exact, key=float)} nats" in section
    shares = sorted(re.findall(r"pieces differ by (\S+) of the largest", embed), key=float)
    assert f"by {shares[0]} to {shares[-1]} of the\nlargest value" in section
