"""Prediction of records: lengths, strands, order, batches, unknown bases, streams of a million bases."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.predict import Reading, predict, predict_records, tile
from mamba_bio_audio.inference.streaming import Passes
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.pipelines.contract import Symbols
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.run.config import load_config

CODEC = DnaTokenizer()
LABELS = ("fly", "human", "mouse")


def classifier(pool: str = "mean", seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    config = ModelConfig.model_validate(
        {"d_model": 16, "num_layers": 2, "vocab_size": CODEC.vocab_size, "ssm": {"d_state": 4}}
    )
    model = Classifier(IsotropicModel(config), HeadConfig(pool=pool, classes=LABELS))
    # Far from uniform, so that an error shows.
    torch.nn.init.normal_(model.head.weight, std=2.0)
    return model.eval()


MODEL = classifier()


def known(ids):
    return (ids >= 7) & (ids <= 10)


SYMBOLS = Symbols("base", CODEC.pad_id, known, ("both", "forward", "reverse"), CODEC.reverse_complement)


def run(records, model=MODEL, *, chunk=256, progress=None, reverse=CODEC.reverse_complement, **reading):
    ids = [CODEC.encode(item) if not item.startswith("!") else item[1:] for item in records]
    symbols = replace(SYMBOLS, reverse=reverse)
    how = Reading(**{"length": 64, "batch_symbols": 512} | reading)
    return list(predict_records(model, ids, symbols, how, Passes(chunk=chunk, progress=progress)))


def dna(length: int, seed: int = 0) -> str:
    return CODEC.decode(np.random.default_rng(seed).choice([7, 8, 9, 10], length).astype(np.uint8))


def test_progress_goes_on_within_a_long_record():
    for mode, passes in (("stream", 8), ("windows", 3)):
        seen = []
        run([dna(1000), dna(70, 1)], mode=mode, progress=seen.append, chunk=256)
        assert len(seen) >= passes
        assert max(seen) <= 512
        # Each strand; windows overlap where the last one is moved back.
        assert sum(seen) == (2 * 1070 if mode == "stream" else 2 * (16 * 64 + 2 * 64))


def rc(sequence: str) -> str:
    return CODEC.decode(CODEC.reverse_complement(CODEC.encode(sequence)))


def direct(sequence: str, model=MODEL) -> np.ndarray:
    tokens = torch.from_numpy(CODEC.encode(sequence).astype(np.int64))[None]
    with torch.no_grad():
        return model(tokens, logits="last").logits[0, 0].double().softmax(-1).numpy()


LENGTHS = (1, 2, 63, 64, 65, 100, 128, 129, 200, 1000, 7, 64)


def test_tiles_cover_and_have_one_length():
    assert tile(5, 64) == [(0, 5)]
    assert tile(64, 64) == [(0, 64)]
    assert tile(65, 64) == [(0, 64), (1, 65)]
    assert tile(128, 64) == [(0, 64), (64, 128)]
    assert tile(150, 64) == [(0, 64), (64, 128), (86, 150)]


def test_one_window_is_the_model_itself_and_strands_average():
    sequence = dna(50)
    (found,) = run([sequence])
    assert found.probabilities == pytest.approx((direct(sequence) + direct(rc(sequence))) / 2, abs=1e-6)
    assert (found.length, found.used, found.windows, found.reason) == (50, 50, 2, "")
    assert run([sequence], strand="forward")[0].probabilities == pytest.approx(direct(sequence), abs=1e-6)
    assert run([sequence], strand="reverse")[0].probabilities == pytest.approx(direct(rc(sequence)), abs=1e-6)


def test_long_records_average_their_windows():
    sequence = dna(150)
    (found,) = run([sequence], strand="forward")
    parts = [direct(sequence[low:high]) for low, high in ((0, 64), (64, 128), (86, 150))]
    assert found.probabilities == pytest.approx(np.mean(parts, 0), abs=1e-6)
    assert (found.used, found.windows) == (150, 3)


@pytest.mark.parametrize("mode", ["windows", "stream"])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_reverse_complement_has_exactly_the_same_probabilities(mode, pool):
    sequences = [dna(n, n) for n in LENGTHS] + ["ACGTNN" * 30, dna(70) + "N" * 60 + dna(90)]
    model = classifier(pool)
    forward, backward = run(sequences, model, mode=mode), run([rc(s) for s in sequences], model, mode=mode)
    for a, b in zip(forward, backward, strict=True):
        assert (a.length, a.used, a.windows, a.reason) == (b.length, b.used, b.windows, b.reason)
        assert a.probabilities is None or (a.probabilities == b.probabilities).all()
    assert any((a.probabilities is not None) for a in forward)


@pytest.mark.parametrize("mode", ["windows", "stream"])
def test_mixed_batches_equal_single_records_in_input_order(mode):
    sequences = [dna(n, i) for i, n in enumerate(LENGTHS)]
    together = run(sequences, mode=mode)
    for sequence, found in zip(sequences, together, strict=True):
        (alone,) = run([sequence], mode=mode)
        assert found.length == len(sequence)
        assert found.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
        assert found.probabilities.sum() == pytest.approx(1)
    for size in (1, 64, 100_000):
        again = run(sequences, mode=mode, batch_symbols=size)
        assert [r.probabilities for r in again] == [pytest.approx(r.probabilities, abs=1e-6) for r in together]


def test_stream_equals_one_pass_at_any_length():
    sequence = dna(1000)
    (found,) = run([sequence], mode="stream", strand="forward")
    assert found.probabilities == pytest.approx(direct(sequence), abs=1e-5)
    assert found.windows == 1
    (windows,) = run([sequence], strand="forward")
    assert windows.probabilities != pytest.approx(found.probabilities, abs=1e-4)


def test_nothing_is_dropped_and_reasons_are_given():
    items = [dna(30), "", "N" * 10, "!'1' is not a base", "ANNN", dna(20)]
    found = run(items)
    assert [r.probabilities is None for r in found] == [False, True, True, True, True, False]
    reasons = [r.reason for r in found]
    assert reasons[1] == "empty"
    assert "no known symbol" in reasons[2]
    assert reasons[3] == "'1' is not a base"
    assert "more than 10% unknown" in reasons[4]
    assert [r.length for r in found] == [30, 0, 10, 0, 4, 20]


def test_windows_of_unknown_bases_are_left_out_and_not_counted_as_used():
    first, last = dna(64, 1), dna(64, 2)
    (found,) = run([first + "N" * 64 + last], strand="forward")
    assert found.windows == 2
    assert found.used == 128
    assert found.probabilities == pytest.approx((direct(first) + direct(last)) / 2, abs=1e-6)
    assert run([first + "N" * 64 + last], strand="forward", max_unknown=1.0)[0].windows == 2


def test_records_come_lazily_and_in_bounded_number():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield CODEC.encode(dna(64))

    stream = predict_records(MODEL, endless(), SYMBOLS, Reading(length=64, batch_symbols=512))
    assert next(stream).length == 64
    assert taken <= 200


def test_what_cannot_be_done_is_refused():
    with pytest.raises(InputError, match="one strand"):
        run([dna(5)], reverse=None)

    class Stateless(Classifier):
        streaming = "none"

    model = classifier()
    model.__class__ = Stateless
    with pytest.raises(InputError, match="cannot carry a state"):
        run([dna(5)], model, mode="stream")


def test_a_million_bases_stream(monkeypatch):
    """Law 1 at 2^20: pieces of 2^16 equal pieces of another size; memory is that of a piece."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"d_model": 4, "num_layers": 1, "vocab_size": 12, "ssm": {"d_state": 2}})
    model = Classifier(IsotropicModel(config), HeadConfig(pool="mean", classes=LABELS)).eval()
    torch.nn.init.normal_(model.head.weight, std=2.0)
    sequence = dna(1 << 20)
    (a,) = run([sequence], model, mode="stream", chunk=1 << 16, strand="forward")
    (b,) = run([sequence], model, mode="stream", chunk=100_000, strand="forward")
    assert (a.used, a.windows) == (1 << 20, 1)
    assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


def test_the_public_function_gives_a_row_of_probabilities_for_each_sequence():
    model = classifier()
    with pytest.raises(InputError, match="a language model has no classes"):
        predict(model.backbone, "ACGT")
    model.config = load_config("dna/tiny", ["data.path=demo", "train.length=64", "train.tokens_per_step=512"])
    model.codec = CODEC
    texts = [dna(300), dna(20, 1), "N" * 70, dna(64, 2)]
    found = predict(model, texts)
    assert found.shape == (4, 3)
    assert found.dtype == torch.float64
    assert found[2].isnan().all()
    expected = [row.probabilities for row in run(texts)]
    for at in (0, 1, 3):
        assert np.abs(found[at].numpy() - expected[at]).max() < 1e-6
    # Ids, whole rows of them, and the reverse complement say the same.
    assert torch.allclose(predict(model, [CODEC.encode(texts[0]), rc(texts[1])]), found[:2], atol=1e-6)
    assert torch.allclose(predict(model, model.encode(texts[0])), found[:1], atol=1e-6)
    one = predict(model, texts[0], mode="stream", strand="forward", chunk=33)
    assert np.abs(one.numpy() - direct(texts[0], model)).max() < 1e-6
    for options, message in (
        ({"strand": "up"}, "strand is 'up'"),
        ({"mode": "whole"}, "choose windows or stream"),
        ({"length": 0}, "length is 0"),
        ({"precision": "fp8"}, "precision"),
    ):
        with pytest.raises(InputError, match=message):
            predict(model, texts, **options)
