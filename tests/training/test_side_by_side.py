"""Lanes beside each other on a GPU do what each does alone."""

import pytest
import torch

from mamba_bio_audio.models.build import build
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.side_by_side import Block, Lane, advance

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def lanes(count, block):
    length, positions = block.tokens.shape[2], block.tokens[0].numel()
    config = TrainConfig(steps=400, length=length, tokens_per_step=positions, lr=3e-3, warmup=0)
    made = []
    for number in range(count):
        model = build(ModelConfig(d_model=64, num_layers=2, vocab_size=16), None, seed=number)
        made.append(Lane(model, config, "cuda", narrow=True))
    advance(made, block)
    for lane in made:
        lane.record(block)
    return made


def weights(lane):
    torch.cuda.synchronize()
    return torch.cat([parameter.detach().flatten() for parameter in lane.model.parameters()]).clone()


@pytest.fixture
def block():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(16, (4, 32, 128), generator=generator).cuda()
    return Block(tokens, tokens.roll(-1, 2))


def test_lanes_beside_each_other_are_what_they_are_alone(block):
    """Each has memory of its own, also what cuBLAS works in."""
    beside, alone = lanes(6, block), lanes(6, block)
    for _ in range(40):
        advance(beside, block)
        for lane in alone:
            advance([lane], block)
            torch.cuda.synchronize()
    for one, other in zip(beside, alone, strict=True):
        assert torch.equal(weights(one), weights(other))


def test_a_lane_outlives_those_that_were_recorded_with_it(block):
    ended, kept = lanes(3, block), lanes(1, block)
    expected = lanes(1, block)
    advance(expected, block)
    advance(ended, block)
    torch.cuda.synchronize()
    del ended
    torch.cuda.empty_cache()
    # Takes the memory that is free now.
    others = [torch.full((1 << 23,), torch.nan, device="cuda") for _ in range(8)]
    advance(kept, block)
    assert torch.equal(weights(kept[0]), weights(expected[0]))
    assert all(other.isnan().all() for other in others)
