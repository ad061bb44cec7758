import numpy as np
import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.classify import classify
from mamba_bio_audio.inference.streaming import Passes
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.pipelines.dna.tokenizer import PAD, DnaTokenizer

CODEC = DnaTokenizer()


@pytest.fixture(params=["mean", "max", "last"])
def model(request) -> Classifier:
    torch.manual_seed(0)
    built = Classifier(
        build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=12)),
        HeadConfig(pool=request.param, classes=("a", "b", "c")),
    )
    torch.nn.init.normal_(built.head.weight)
    torch.nn.init.normal_(built.backbone.embedding.weight)
    return built.double().eval()


def rows() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(7, 11, size).astype(np.uint8) for size in (70, 1, 33, 64)]


def run(model, sequences, **options) -> np.ndarray:
    return classify(model, sequences, pad_id=PAD, reverse=CODEC.reverse_complement, **options)


def test_batches_of_any_lengths_equal_single_records(model) -> None:
    together = run(model, rows())
    assert np.allclose(together.sum(1), 1)
    for row, p in zip(rows(), together, strict=True):
        assert np.allclose(run(model, [row])[0], p, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 32, 33, 500])
def test_chunks_equal_one_pass(model, chunk) -> None:
    assert np.allclose(run(model, rows(), passes=Passes(chunk=chunk)), run(model, rows()), atol=1e-12)


def test_both_strands(model) -> None:
    turned = [CODEC.reverse_complement(row) for row in rows()]
    forward, reverse = run(model, rows()), run(model, rows(), strand="reverse")
    assert np.allclose(run(model, turned), reverse)
    assert not np.allclose(forward, reverse)
    both = run(model, rows(), strand="both")
    assert np.allclose(both, (forward + reverse) / 2)
    assert np.array_equal(both, run(model, turned, strand="both"))


def test_nothing_to_classify(model) -> None:
    with pytest.raises(InputError, match="at least one symbol"):
        run(model, [np.zeros(0, np.uint8)])
