"""The public functions: each is found by its name, importing the package waits for none, and they fit together."""

import math
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.export import export

ROOT = Path(__file__).parent.parent
CODEC = DnaTokenizer()


@pytest.mark.parametrize("name", mba._FUNCTIONS)
def test_a_public_function_is_that_of_its_module(name):
    function = getattr(mba, name)
    assert function is getattr(import_module(f"mamba_bio_audio.{mba._FUNCTIONS[name]}"), name)
    assert function.__name__ == name
    assert name in dir(mba)
    assert name in mba.__all__


def test_there_is_nothing_else():
    with pytest.raises(AttributeError, match="'nope'"):
        mba.nope  # noqa: B018


def test_the_package_imports_no_torch():
    code = (
        "import sys, mamba_bio_audio as mba; dir(mba); assert 'torch' not in sys.modules; "
        "mba.load; assert 'torch' in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with `runs/mine` and `genome.fa`, as the page expects them."""
    config = load_config("dna/tiny", ["data.path=demo", "train.length=64", "train.tokens_per_step=512"])
    model = build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=CODEC.vocab_size), seed=0).eval()
    model.config, model.codec = config, CODEC
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    export(model, tmp_path / "runs" / "mine")
    bases = np.random.default_rng(0).choice(list("ACGT"), 6000)
    bases[5000] = "A"
    (tmp_path / "genome.fa").write_text(">chr1\n" + "".join(bases) + "\n")
    return tmp_path


def test_the_example_of_the_page_runs_as_written(folder):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), flags=re.DOTALL)
    found: dict = {}
    exec(compile(block, "docs/api.md", "exec"), found)
    assert found["bits"].shape == (4,)
    # Untrained weights: the 16 ids of the padded vocabulary are about equally likely.
    assert 3.9 < found["bits"].mean() < 4.1
    assert found["vectors"].shape == (4, 16)
    assert [tuple(track.shape) for track in found["tracks"]] == [(8, 16), (1, 16)]
    assert found["scores"][0].why == ""
    assert math.isfinite(found["scores"][0].ratio)


def test_what_one_function_returns_the_others_take(folder):
    model = mba.load("runs/mine")
    tokens = mba.generate(model, length=50, num_samples=3, seed=1)
    texts = model.decode(tokens)
    scored = mba.log_likelihood(model, tokens)
    vectors = mba.embed(model, tokens)
    for given in (texts, list(tokens), tokens.numpy(), [model.encode(text) for text in texts]):
        assert torch.allclose(mba.log_likelihood(model, given).total, scored.total)
        assert torch.allclose(mba.embed(model, given), vectors, atol=1e-6)
    # And back: they are prompts.
    longer = mba.generate(model, length=10, num_samples=3, prompt=tokens, seed=2)
    assert longer.shape == (3, 10)
    assert mba.generate(model, length=10, prompt=texts[0], seed=2).equal(
        mba.generate(model, length=10, prompt=tokens[0], seed=2)
    )
    whole = mba.log_likelihood(model, torch.cat([tokens, longer], 1))
    assert torch.allclose(whole.per_base[:, :50], scored.per_base, equal_nan=True, atol=1e-5)
    # The vector of the last base is the one that the next base is predicted from.
    (track,) = mba.embed(model, tokens[0], pool="none")
    logits = model.lm_head(track[-1]).double().log_softmax(0)
    assert logits[longer[0, 0]].item() == pytest.approx(whole.per_base[0, 50].item(), abs=1e-5)
