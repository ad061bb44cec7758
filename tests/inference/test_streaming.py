"""The streaming core: pieces, batches and forks give what one pass over each row gives."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mamba_bio_audio.inference.streaming import (
    Passes,
    Stopped,
    advance,
    batches,
    fork,
    hidden_states,
    log_likelihoods,
    padded,
    passes_of,
    positions,
    stream,
)
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet_config import UNetConfig

BASES, N, PAD = (7, 8, 9, 10), 11, 4
TOLERANCE = 1e-12
UNET = UNetConfig(d_model=8, num_layers=1, pools=[2, 2], vocab_size=12)


def built(config):
    model = build_model(config, seed=0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
    return model.double().eval()


@pytest.fixture(scope="module", params=["mamba", "transformer", "unet"])
def model(request):
    if request.param == "unet":
        return built(UNET)
    return built(ModelConfig(d_model=16, num_layers=3, vocab_size=12, mixer=request.param))


def rows(*lengths):
    random = np.random.default_rng(3)
    return [random.integers(7, 12, length).astype(np.uint8) for length in lengths]


def naive(model, row, start_id=None):
    """Log-likelihood of each symbol of one row by one forward pass."""
    ids = torch.from_numpy(row).long()
    inputs = ids if start_id is None else torch.cat([torch.tensor([start_id]), ids])
    with torch.no_grad():
        log_p = F.log_softmax(model(inputs[None]).logits[0], -1)
    values = [np.nan] if start_id is None else []
    first = len(values)
    values += [float(log_p[at - first, ids[at]]) for at in range(first, len(ids))]
    return np.where(np.isin(row, BASES), values, np.nan)


def collected(model, batch, **options):
    found = [*log_likelihoods(model, batch, known=BASES, pad_id=PAD, **options)]
    assert [low for low, _ in found] == np.cumsum([0, *(values.shape[1] for _, values in found)])[:-1].tolist()
    return np.concatenate([values for _, values in found], 1)


@pytest.mark.parametrize("chunk", [None, 1, 5, 64])
@pytest.mark.parametrize("start_id", [None, 2])
def test_log_likelihoods_of_a_batch_are_those_of_its_rows(model, chunk, start_id):
    batch = rows(33, 1, 70, 64)
    values = collected(model, batch, passes=Passes(chunk=chunk), start_id=start_id)
    assert values.shape == (4, 70)
    for row, own in zip(batch, values, strict=True):
        assert np.isnan(own[len(row) :]).all()
        assert own[: len(row)] == pytest.approx(naive(model, row, start_id), abs=TOLERANCE, nan_ok=True)


def test_unknown_symbols_are_context_but_never_scored(model):
    row = np.array([7, 8, N, 9, N, N, 10], np.uint8)
    values = collected(model, [row], passes=Passes())[0]
    assert np.isnan(values).tolist() == [True, False, True, False, True, True, False]
    other = row.copy()
    other[2] = 7
    assert collected(model, [other], passes=Passes())[0, 3] != values[3]


def test_rows_are_read_in_slices(model):
    class Disk:
        read = 0

        def __init__(self, row):
            self.row = row

        def __len__(self):
            return len(self.row)

        def __getitem__(self, piece):
            part = self.row[piece]
            self.read = max(self.read, len(part))
            return part

    row = rows(50)[0]
    disk = Disk(row)
    assert np.array_equal(
        collected(model, [disk], passes=Passes(chunk=8)),
        collected(model, [row], passes=Passes(chunk=8)),
        equal_nan=True,
    )
    assert disk.read <= 8


@pytest.mark.parametrize("layer", [None, 0, -1])
@pytest.mark.parametrize("chunk", [1, 7, None])
def test_hidden_states_of_pieces_are_those_of_one_pass(model, chunk, layer):
    batch = rows(20, 13)
    pieces = hidden_states(model, batch, pad_id=PAD, layer=layer, passes=Passes(chunk=chunk))
    found = torch.cat([part for _, part in pieces], 1)
    for row, own in zip(batch, found, strict=True):
        with torch.no_grad():
            whole, _ = model.hidden(torch.from_numpy(row).long()[None], layer=layer)
        torch.testing.assert_close(own[: len(row)], whole[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 4, None])
def test_a_forked_prefix_scores_as_the_whole(model, chunk):
    prefix, passes = rows(19)[0], Passes(chunk=chunk)
    tails = np.stack(rows(9, 9, 9))
    # The last symbol of the prefix is read with the tails, so that their first symbol is scored.
    state = advance(model, [prefix[:-1]], passes=passes)
    joined = np.concatenate([np.full((3, 1), prefix[-1]), tails], 1)
    forked = fork(state, [0, 0, 0])
    values = collected(model, joined, passes=passes, state=forked)[:, 1:]
    for tail, own in zip(tails, values, strict=True):
        whole = naive(model, np.concatenate([prefix, tail]))[len(prefix) :]
        assert own == pytest.approx(whole, abs=TOLERANCE, nan_ok=True)
    # What was forked from is as it was.
    again = collected(model, joined[:1], passes=passes, state=state)[0, 1:]
    assert again == pytest.approx(values[0], abs=TOLERANCE, nan_ok=True)


def test_advance_needs_a_common_end(model):
    with pytest.raises(ValueError, match="one length"):
        advance(model, rows(3, 4), passes=Passes())


def test_stop_and_progress(model):
    told, asked = [], iter([False, False, True])
    passes = Passes(chunk=4, stop=lambda: next(asked), progress=told.append)
    with pytest.raises(Stopped):
        collected(model, rows(20, 5), passes=passes)
    # 19 and 4 inputs, in pieces of 4.
    assert told == [8, 4]


def test_a_model_without_a_state_reads_each_row_at_once():
    model = built(ModelConfig(d_model=16, num_layers=2, vocab_size=12))

    class Stateless:
        streaming = "none"

        def hidden(self, tokens, state, layer=None):
            assert state is None
            return model.hidden(tokens)

        lm_head = model.lm_head

    row = rows(30)[0]
    found = collected(Stateless(), [row], passes=Passes(chunk=4))[0]
    assert found == pytest.approx(naive(model, row), abs=TOLERANCE, nan_ok=True)


def test_no_gradients_and_no_context_that_outlives_a_piece(model):
    model = copy.deepcopy(model).float()
    pieces = stream(
        model, rows(6), lambda x, s, low: model.hidden(x, s), pad_id=PAD, passes=Passes(chunk=3, narrow=True)
    )
    for piece in pieces:
        assert not piece.output.requires_grad
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not torch.is_autocast_enabled("cpu")


def test_batches_hold_as_many_neighbours_as_fit():
    lengths = [1, 2, 3, 10, 10, 500]
    found = [[*some] for some in batches(lengths, int, 20, None)]
    assert found == [[1, 2, 3], [10, 10], [500]]
    assert [[*some] for some in batches(lengths, int, 20, 5)] == [[1, 2, 3, 10], [10, 500]]


def test_passes_suit_the_device(model):
    assert passes_of(model) == Passes("cpu", False, 1 << 14, Passes.stop)
    assert passes_of(model, rows=4).chunk == 1 << 12
    assert passes_of(model, rows=1 << 20).chunk == 1
    assert passes_of(model, "bf16", chunk=7, rows=4) == Passes("cpu", True, 7, Passes.stop)
    assert positions("cuda") == 1 << 18


def test_rows_are_padded_to_one_length():
    short, long = np.array([7, 8], np.uint8), np.arange(300, 306, dtype=np.int16)
    assert padded([short], 1, 4, 5).tolist() == [[8, 5, 5]]
    assert padded([short], 0, 2, 5).dtype == torch.uint8
    assert padded([short, long], 1, 4, 5).tolist() == [[8, 5, 5], [301, 302, 303]]
    # One that has ended is of no account.
    assert padded([short, long], 3, 5, 5).dtype == torch.int16
    assert padded([short], 2, 4, 5).tolist() == [[5, 5]]


@pytest.mark.parametrize(("start_id", "read"), [(None, [5, 10, 11]), (2, [4, 9, 11])])
def test_what_was_read_is_told_with_its_state(model, start_id, read):
    (row,) = rows(12)
    kept = []
    whole = collected(model, [row], passes=Passes(chunk=5), start_id=start_id, keep=lambda *one: kept.append(one))[0]
    assert [symbols for symbols, _ in kept] == read
    for symbols, state in kept:
        rest = collected(model, [row[symbols:]], passes=Passes(chunk=5), state=state)[0]
        assert rest[1:] == pytest.approx(whole[symbols + 1 :], abs=TOLERANCE, nan_ok=True)
