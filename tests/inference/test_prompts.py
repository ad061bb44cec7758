"""Prompts of several lengths in one batch: each row is that of a single run; long ones are read in pieces."""

import numpy as np
import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference import decoding
from mamba_bio_audio.inference import prompts as module
from mamba_bio_audio.inference.generate import Place, generate, generate_blocks, prepared
from mamba_bio_audio.inference.prompts import batches, check_prompt
from mamba_bio_audio.inference.row_files import RowFiles
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.sample_writer import RowForm


class Bytes(RowForm):
    def encode(self, tokens, row=0):
        return tokens.tobytes()


class OnDisk:
    """A row that says which pieces of it were read."""

    def __init__(self, ids):
        self.ids, self.read = ids, []

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, piece):
        self.read.append((piece.start, piece.stop))
        return self.ids[piece]


@pytest.fixture(scope="module")
def dna():
    made = build_model(ModelConfig(d_model=16, num_layers=2, ssm=SsmConfig(d_state=4), vocab_size=12), seed=0).eval()
    made.codec = DnaTokenizer()
    return made


@pytest.fixture(scope="module")
def audio():
    """A U-Net of period 4 whose codec has a start."""
    made = build_model(UNetConfig(d_model=8, num_layers=1, pools=(2, 2), vocab_size=256), seed=0).eval()
    made.codec = AudioCodec()
    return made


def alone(model, prompt, row, **options):
    (block,) = generate_blocks(model, prompt=prompt, place=Place(row=row), **options)
    return block


def test_rows_of_several_lengths_are_those_of_single_runs(dna):
    texts = ["A", "ACGTTGCATN", "GG", "acgt" * 20]
    blocks = list(generate_blocks(dna, length=60, num_samples=4, prompt=texts, seed=3))
    assert [block.tokens.shape for block in blocks] == [(4, 60)]
    for row, text in enumerate(texts):
        single = alone(dna, text, row, length=60, seed=3)
        assert torch.equal(single.tokens[0], blocks[0].tokens[row])
        torch.testing.assert_close(single.log_likelihood[0], blocks[0].log_likelihood[row], rtol=0, atol=1e-6)
    ids = [dna.codec.encode(text) for text in texts]
    assert torch.equal(
        generate(dna, length=60, num_samples=4, prompt=ids, seed=3, batch_size=3), blocks[0].tokens.long()
    )


def test_prompts_of_one_symbol_need_no_state(dna):
    texts = ["A", "C", "G"]
    tokens = generate(dna, length=20, num_samples=3, prompt=texts, seed=3)
    assert torch.equal(tokens, generate(dna, length=20, num_samples=3, prompt=[[7], [8], [9]], seed=3))


def test_a_batch_of_a_unet_ends_where_the_phase_changes(audio):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 256, n) for n in (3, 7, 5, 9, 9, 1)]
    assert list(batches(audio, check_prompt(audio, prompts, 6), 6, 4)) == [(0, 2), (2, 4)]
    assert list(batches(audio, check_prompt(audio, prompts, 6), 6, 3)) == [(0, 2), (2, 3), (5, 1)]
    tokens = generate(audio, length=30, num_samples=6, prompt=prompts, seed=2)
    for row, prompt in enumerate(prompts):
        assert torch.equal(alone(audio, prompt, row, length=30, seed=2).tokens[0].long(), tokens[row])


def test_a_state_that_grows_takes_prompts_of_one_length():
    stages = [{}, {"mixer": "transformer"}, {}]
    config = {"d_model": 8, "num_layers": 1, "pools": (2,), "vocab_size": 16, "stages": stages}
    model = build_model(UNetConfig.model_validate(config), seed=0).eval()
    assert model.streaming == "growing"
    prompts = [[1, 2, 3], [3, 2, 1], [1, 2, 3, 4, 5]]
    assert list(batches(model, check_prompt(model, prompts, 3), 3, 3)) == [(0, 2), (2, 1)]
    tokens = generate(model, length=12, num_samples=3, prompt=prompts, seed=2)
    for row, prompt in enumerate(prompts):
        assert torch.equal(alone(model, prompt, row, length=12, seed=2).tokens[0].long(), tokens[row])


def test_a_long_prompt_is_read_in_pieces_and_once(dna, monkeypatch):
    ids = np.random.default_rng(0).integers(7, 11, 1000).astype(np.uint8)
    expected = generate(dna, length=40, num_samples=3, prompt=ids, seed=1)
    monkeypatch.setattr(module, "_PIECE", 256)
    row = OnDisk(ids)
    assert torch.equal(generate(dna, length=40, num_samples=3, prompt=[row], seed=1), expected)
    assert row.read == [(0, 256), (256, 512), (512, 768), (768, 999), (999, 1000)]
    # Two samples of each of two prompts.
    other = OnDisk(ids[:300])
    tokens = generate(dna, length=40, num_samples=4, prompt=[row, row, other, other], seed=1)
    assert torch.equal(tokens[:2], expected[:2])
    assert len(row.read) == 10
    assert len(other.read) == 3
    assert torch.equal(tokens[3], alone(dna, ids[:300], 3, length=40, seed=1).tokens[0].long())


def test_rows_are_resumed_within_their_batch(audio, tmp_path, monkeypatch):
    monkeypatch.setattr("mamba_bio_audio.inference.generate._BLOCK", 16)
    prompts = [np.full(n, 100) for n in (3, 7, 5, 9)]
    options = {"length": 50, "num_samples": 4, "batch_size": 4, "prompt": prompts, "seed": 2}
    expected = generate(audio, length=50, num_samples=4, prompt=prompts, seed=2)
    files = RowFiles(tmp_path / "p", {}, Bytes())
    files.begin()
    calls = 0
    while files.sample(audio, **options, stop=lambda: True) is None:
        calls += 1
        files.begin(resume=True)
    assert calls == 7
    assert [files.path(row).read_bytes() for row in range(4)] == [bytes(row.tolist()) for row in expected]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (["A", ""], "prompt 1 is empty"),
        (["A", "ACX"], "has 'X' at position 3"),
        (["A", "AC", "ACG"], "3 prompts, but num_samples is 2"),
        ([[7], [7, 12]], "valid ids are 0 to 11"),
        ([[7], [7.5, 8.5]], "prompt 1 is float64"),
        ([[7], [[7, 8], [8, 9]]], "of shape"),
    ],
)
def test_bad_prompts_are_refused_before_the_first_block(dna, prompt, message):
    with pytest.raises(InputError, match=message):
        generate_blocks(dna, length=3, num_samples=2, prompt=prompt)


def test_reading_is_told(monkeypatch):
    """In symbols of all prompts of a batch; those that several rows share are read once."""
    monkeypatch.setattr("mamba_bio_audio.inference.prompts._PIECE", 8)
    monkeypatch.setattr(decoding, "positions", lambda device: 8)
    model = build_model(ModelConfig(d_model=8, num_layers=1, vocab_size=12), seed=0).eval()
    long, short = np.full(20, 7), np.full(5, 8)
    told: list[tuple[int, int]] = []
    stepper = prepared(model, rows=3, reading=lambda done, total: told.append((done, total)))
    list(generate_blocks(stepper, length=3, num_samples=3, prompt=[long, long, short]))
    assert told[0] == (8, 25)
    assert told[-1] == (25, 25)
    assert told == sorted(told)
    told.clear()
    # All rows of a piece together.
    monkeypatch.setattr(decoding, "positions", lambda device: 26)
    list(generate_blocks(stepper, length=3, num_samples=3, prompt=long))
    assert told == [(8, 19), (16, 19), (19, 19)]
