"""The small convolutional network that is put beside our models."""

import numpy as np

from mamba_bio_audio.evaluation.cnn import CnnTask, Labelled, cnn_probabilities, fit_cnn
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

CODEC = DnaTokenizer()
MOTIF = "GGATTACAGGCT"


def planted(seed: int, count: int) -> Labelled:
    """Random sequence of 24 to 30 bases; those of class 1 hold a motif on either strand."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        text = "".join(random.choice(list("ACGT"), size=random.integers(24, 31)))
        if i % 2:
            at = random.integers(len(text) - len(MOTIF))
            text = text[:at] + MOTIF + text[at + len(MOTIF) :]
        ids = CODEC.encode(text)
        rows.append(CODEC.reverse_complement(ids) if random.random() < 0.5 else ids)
    return Labelled(rows, np.arange(count) % 2)


def test_it_learns_and_reads_both_strands():
    task = CnnTask(planted(0, 384), planted(1, 100), 2, CODEC.vocab_size, CODEC.reverse_complement, "cpu")
    fit = fit_cnn(task, seed=0, rate=5e-3, epochs=15)
    test = planted(2, 100)
    p = cnn_probabilities(fit.model, test.rows, task)
    assert (p.argmax(1) == test.labels).mean() > 0.9
    assert fit.valid_nats < 0.4
    assert 1 <= fit.epoch <= 15
    turned = cnn_probabilities(fit.model, [CODEC.reverse_complement(row) for row in test.rows], task)
    assert np.allclose(p, turned, atol=1e-6)
    # Training depends on the seed alone.
    again, other = (fit_cnn(task, seed=seed, rate=3e-3, epochs=1) for seed in (0, 1))
    assert fit_cnn(task, seed=0, rate=3e-3, epochs=1).valid_nats == again.valid_nats != other.valid_nats


def test_padding_changes_nothing():
    task = CnnTask(planted(0, 40), planted(1, 10), 2, CODEC.vocab_size, None, "cpu")
    model = fit_cnn(task, seed=0, rate=1e-3, epochs=1).model
    rows = [CODEC.encode("ACGTTGCAAC"), CODEC.encode("TTGACATTGCATTTAGGACCAGATACCAGAAAT" * 3)]
    alone = [cnn_probabilities(model, [row], task)[0] for row in rows]
    assert np.allclose(cnn_probabilities(model, rows, task), alone, atol=1e-6)
