"""How drawing is fitted: temperatures that were planted are found, and all cells of the grid draw as `generate` does."""

import numpy as np
import pytest
import torch
from torch import nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.sampling import TEMPERATURES, Cell, calibrate, grid, nearest, pieces
from mamba_bio_audio.inference.generate import generate
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.contract import ModelOutput
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec


class Table(nn.Module):
    """Logits of the next symbol by the last one, multiplied by `sharpness`."""

    streaming = "constant"

    def __init__(self, sharpness=1.0, symbols=6):
        super().__init__()
        table = 2 * torch.randn(symbols, symbols, generator=torch.Generator().manual_seed(0))
        self.table = nn.Parameter(table)
        self.sharpness = sharpness

    def forward(self, tokens, state=None, **_):
        return ModelOutput(self.table[tokens] * self.sharpness, None, None, ())


def chains(rows=64, length=200):
    """Batches of sequences that follow the table as it is."""
    p = Table().table.detach().softmax(1).numpy()
    generator = np.random.default_rng(0)
    found = np.zeros((rows, length + 1), np.int64)
    for at in range(length):
        found[:, at + 1] = [generator.choice(6, p=p[last] / p[last].sum()) for last in found[:, at]]
    return [{"tokens": torch.from_numpy(found[:, :-1]), "targets": torch.from_numpy(found[:, 1:])}]


@pytest.fixture(scope="module")
def batches():
    return chains()


@pytest.mark.parametrize("planted", [0.7, 1.0, 1.3])
def test_a_planted_temperature_is_recovered(batches, planted):
    # Logits divided by 0.7 need a temperature of 1 / 0.7 to be right, and the other way round.
    found = calibrate(Table(planted), batches, range(6))
    assert found.temperature == pytest.approx(planted, abs=0.03)
    assert found.symbols == 64 * 200
    assert min(found.nats, key=found.nats.__getitem__) == pytest.approx(planted, abs=0.051)
    own = torch.nn.functional.cross_entropy(
        (Table(planted).table[batches[0]["tokens"]] * planted).flatten(0, 1), batches[0]["targets"].flatten()
    )
    assert found.nats[1.0] == pytest.approx(float(own.detach()), rel=1e-5)


def test_the_edge_of_the_range_is_taken_where_the_best_lies_beyond(batches):
    assert calibrate(Table(3.0), batches, range(6)).temperature == TEMPERATURES[-1]


def test_only_symbols_that_can_be_drawn_count(batches):
    masked = [{"tokens": batches[0]["tokens"], "targets": batches[0]["targets"].clone()}]
    masked[0]["targets"][:, ::2] = -100
    assert calibrate(Table(), masked, range(6)).symbols == 64 * 100
    some = calibrate(Table(), batches, (1, 3, 4))
    assert some.symbols == int(torch.isin(batches[0]["targets"], torch.tensor([1, 3, 4])).sum())
    with pytest.raises(InputError, match="no symbol that can be drawn"):
        calibrate(Table(), [{"tokens": masked[0]["tokens"], "targets": masked[0]["targets"] * 0 - 100}], range(6))


def test_the_grid_lies_around_the_likelihoods_temperature_and_has_whole_distributions():
    cells = grid(0.8)
    assert Cell(0.8, 0.999) in cells
    assert len(set(cells)) == len(cells) == 33
    assert cells[0].options == {"temperature": cells[0].temperature, "top_p": None, "min_p": None, "hold": None}
    assert {cell.options["top_p"] for cell in cells} == {None, 0.999, 0.995, 0.99, 0.98}
    assert {cell.options["min_p"] for cell in cells} == {None, 0.015, 0.03, 0.05, 0.08, 0.1, 0.13}
    assert min(cell.temperature for cell in cells) < 0.8 < max(cell.temperature for cell in cells)
    both = grid(0.8, (0.0, 0.6))
    assert both[:33] == cells
    assert [cell[1:] for cell in both[33:]] == [cell._replace(hold=0.6)[1:] for cell in cells]
    # Hold calms, so what is held is tried hotter.
    assert all(held.temperature > cell.temperature for held, cell in zip(both[33:], cells, strict=True))


def test_what_is_tried_again_lies_between_neighbours_that_are_both_near():
    def cells(distances, **cut):
        return {Cell(t, 1.0, **cut): d for t, d in zip((1.2, 1.0, 1.1), distances, strict=True)}

    # The nearest of all has neighbours that are far.
    tried = cells((3.0, 3.0, 0.1)) | cells((0.5, 0.9, 0.7), min_p=0.1) | cells((0.2, 3.0, 1.1), min_p=0.1, hold=0.3)
    assert nearest(tried, 2) == [
        Cell(1.125, 1.0, 0.1),
        Cell(1.175, 1.0, 0.1),
        Cell(1.125, 1.0, 0.1, 0.3),
        Cell(1.175, 1.0, 0.1, 0.3),
    ]


@pytest.mark.parametrize("start", ["level", "token"])
@pytest.mark.parametrize("hold", [0.0, 700.0])
def test_every_cell_draws_as_generate_does(start, hold):
    token = {"inputs": 257} if start == "token" else {}
    model = build_model(UNetConfig(d_model=8, num_layers=1, pools=(2,), vocab_size=256, **token), seed=0).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    model.codec = AudioCodec(start=start)
    model.manifest = {"result": {"valid_nats": 4.0}}
    cells = [
        Cell(1.0, 1.0),
        Cell(0.7, 1.0),
        Cell(0.9, 0.6),
        Cell(1.0, 1.0, 0.2),
        Cell(0.9, 0.7, 0.1),
        Cell(1.5, 1.0, 0.0, hold),
    ]
    done = []
    made, along = pieces(
        model,
        cells,
        length=40,
        each=2,
        seed=5,
        first=1,
        valid_nats=4.0,
        progress=lambda at, total: done.append((at, total)),
    )
    for cell, found, own in zip(cells, made, along, strict=True):
        blocks = []
        how = {"seed": 5, "on_tokens": blocks.append} | {k: v for k, v in cell.options.items() if v is not None}
        expected = generate(model, length=40, num_samples=3, **how)
        np.testing.assert_array_equal(np.stack(found), expected[1:].numpy())
        eighths = blocks[0].log_likelihood[1:].reshape(2, 8, 5).sum(2).numpy()
        np.testing.assert_allclose(own, eighths, rtol=1e-5)
    assert done == [(40, 40)]
    assert not np.array_equal(made[0][0], made[1][0])
    assert not np.array_equal(made[0], made[3])
    plain = generate(model, length=40, num_samples=3, seed=5, temperature=1.5)[1:]
    assert np.array_equal(made[-1], plain) == (not hold)
