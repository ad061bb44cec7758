"""What the sequences of each task hold, and that a seed means the same for ever."""

import hashlib

import numpy as np
import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.corpus import Sample
from mamba_bio_audio.pipelines.synthetic.config import InductionConfig, RecallConfig, SelectiveCopyingConfig
from mamba_bio_audio.pipelines.synthetic.corpus import SymbolCodec, SyntheticCorpus
from mamba_bio_audio.pipelines.synthetic.tasks import Samples, bits

ROWS = 2000
CONFIGS = {
    "induction": InductionConfig(),
    "induction, all": InductionConfig(scored="all"),
    "selective copying": SelectiveCopyingConfig(memorize=5),
    "recall": RecallConfig(vocab=40, pairs=4),
    "recall, no filler": RecallConfig(vocab=40, pairs=4, filler="none"),
}

# The first digits of the SHA-256 of a few sequences.
PINNED = {
    "induction": "f3551ed966fb",
    "induction, all": "0698806478f8",
    "selective copying": "d5407be88dbb",
    "recall": "4f826549c8df",
    "recall, no filler": "64a8e5a37da0",
}


def made(config, length=32, seed=0, stream=0):
    return config.task.batch(Samples(seed, stream, torch.arange(ROWS)), length)


def test_the_answer_is_what_followed_the_first_trigger():
    config = InductionConfig(vocab=7)
    tokens, targets = made(config)
    first = (tokens == 6).int().argmax(1)
    assert ((tokens == 6).sum(1) == 2).all()
    assert (tokens[:, -1] == 6).all()
    answers = tokens.gather(1, first[:, None] + 1)[:, 0]
    assert torch.equal(targets[:, -1], answers)
    assert (targets[:, :-1] == -100).all()
    # Any place but the last two, any symbol but the trigger, about equally often.
    for found, count in ((first, 30), (answers, 6)):
        often = torch.bincount(found, minlength=count)
        assert len(often) == count
        assert (often - ROWS / count).abs().max() < 5 * (ROWS / count) ** 0.5


def test_all_positions_of_an_induction_head_predict_what_comes_and_then_the_answer():
    tokens, targets = made(CONFIGS["induction, all"])
    assert torch.equal(targets[:, :-1], tokens[:, 1:])
    assert torch.equal(targets[:, -1], made(CONFIGS["induction"])[1][:, -1])


def test_the_shortest_induction_is_trigger_answer_trigger():
    tokens, targets = made(InductionConfig(vocab=3), length=3)
    assert (tokens[:, [0, 2]] == 2).all()
    assert torch.equal(targets[:, 2], tokens[:, 1])


def test_copied_symbols_are_those_between_the_noise_in_their_order():
    tokens, targets = made(SelectiveCopyingConfig(vocab=6, memorize=5), length=25)
    assert (tokens[:, -5:] == 5).all()
    assert (targets[:, :-5] == -100).all()
    before = tokens[:, :-5]
    assert ((before > 0).sum(1) == 5).all()
    assert torch.equal(before[before > 0].view(ROWS, 5), targets[:, -5:])
    assert set(before.unique().tolist()) == {0, 1, 2, 3, 4}
    often = (before > 0).sum(0)
    assert (often - ROWS / 4).abs().max() < 5 * (ROWS / 4) ** 0.5


@pytest.mark.parametrize("name", ["recall", "recall, no filler"])
def test_the_value_of_a_query_stands_behind_its_key(name):
    tokens, targets = made(CONFIGS[name])
    keys, values = tokens[:, 0:8:2], tokens[:, 1:8:2]
    assert ((keys >= 1) & (keys < 20)).all()
    assert ((values >= 20) & (values < 40)).all()
    assert all(len(set(row)) == 4 for row in keys.tolist())
    assert all(len(set(row)) == 4 for row in values.tolist())
    asked = targets != -100
    assert (asked.sum(1) == 4).all()
    assert not asked[:, :8].any()
    assert not asked[:, 1::2].any()
    for row in range(ROWS):
        pairs = dict(zip(keys[row].tolist(), values[row].tolist(), strict=True))
        queries = tokens[row][asked[row]].tolist()
        assert set(queries) == set(pairs)
        assert targets[row][asked[row]].tolist() == [pairs[key] for key in queries]
    filler = tokens[:, 8:][~asked[:, 8:]]
    assert set(filler.unique().tolist()) == ({0} if name == "recall, no filler" else set(range(40)))


def test_queries_are_nearer_the_lower_the_power():
    def gaps(power):
        targets = made(RecallConfig(vocab=40, pairs=4, power=power), length=128)[1]
        return (targets != -100).nonzero()[:, 1].double().mean().item() - 8

    near, even = gaps(0.01), gaps(1.0)
    assert near < 40
    assert even == pytest.approx((128 - 8) / 2 - 1, abs=2)


def test_a_seed_means_the_same_for_ever():
    """Changing any of these changes every recorded result."""
    found = {}
    for name, config in CONFIGS.items():
        tokens, targets = config.task.batch(Samples(3, 1, torch.arange(5, 9)), 40)
        found[name] = hashlib.sha256(torch.stack([tokens, targets]).numpy().tobytes()).hexdigest()[:12]
    assert found == PINNED


def test_bits_are_uniform_and_unrelated():
    numbers = torch.arange(500)
    draws = [bits(Samples(seed, stream, numbers), draw, 64) for seed in (0, 1) for stream in (-1, 0) for draw in (0, 1)]
    everything = torch.stack(draws)
    assert len(everything.unique()) == everything.numel()
    as_bits = ((everything[..., None] >> torch.arange(62)) & 1).numpy().astype(np.float64)
    assert abs(as_bits.mean((0, 1, 2)) - 0.5).max() < 5 * 0.5 / everything.numel() ** 0.5
    # Neighbours in any direction have half of their bits in common.
    for axis in range(3):
        one, other = (
            np.take(as_bits, range(*ends), axis) for ends in ((0, -1 % as_bits.shape[axis]), (1, as_bits.shape[axis]))
        )
        assert abs((one == other).mean() - 0.5) < 0.002


def test_batches_for_a_device_are_those_of_the_data_module():
    corpus = SyntheticCorpus(RecallConfig(vocab=40, pairs=4), 32)
    windows = corpus.windows(32)
    samples = [Sample(5, 2, number, lambda number: 0) for number in (7, 3, 100)]
    read = corpus.examples(windows, samples)
    tokens, targets = corpus.batch(5, 2, torch.tensor([7, 3, 100]), 32)
    assert tokens.tolist() == [example.ids.tolist() for example in read]
    assert targets.tolist() == [example.label.tolist() for example in read]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_corpus_tells_how_many_answers_a_sequence_has(name):
    corpus = SyntheticCorpus(CONFIGS[name], 32)
    _, targets = made(CONFIGS[name])
    assert ((targets != -100).sum(1) == (32 if corpus.answers is None else corpus.answers)).all()
    assert (corpus.answers is None) == (name == "induction, all")


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="induction needs sequences of at least 3 symbols"):
        SyntheticCorpus(InductionConfig(), 2)
    with pytest.raises(InputError, match="at least 32 symbols with these settings, not 31"):
        SyntheticCorpus(SelectiveCopyingConfig(), 64).windows(31)
    with pytest.raises(ValueError, match="20 different keys need a vocab of 42, not 40"):
        RecallConfig(vocab=40, pairs=20)
    with pytest.raises(InputError, match="are made fresh; evaluate valid or test"):
        SyntheticCorpus(InductionConfig(), 8).check_evaluation("train")


def test_text_of_symbols():
    codec = SymbolCodec(16)
    codec.check_prompt("3 15 0")
    with pytest.raises(InputError, match="'16' at position 2 is no symbol; write numbers up to 15"):
        codec.check_prompt("3 16 0")
    with pytest.raises(InputError, match="'-1' at position 1"):
        codec.check_sequence("-1")
    with pytest.raises(InputError, match="is empty"):
        codec.check_prompt(" ")
    with pytest.raises(InputError, match="is text"):
        codec.check_sequence(3)
