"""The tasks hold exactly what they claim, the same whatever is drawn beside."""

import numpy as np
import pytest
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.synthetic.long_memory import CopyTask, NeedleTask


@pytest.mark.parametrize("length", [64, 700, 5000])
def test_the_marker_of_the_class_lies_in_the_first_tenth(length):
    task = NeedleTask()
    tokens, targets = task.batch(3, 40, length)
    assert tokens.shape == targets.shape == (40, length)
    assert set(tokens.unique().tolist()) == {7, 8, 9, 10}
    assert (targets[:, :-1] == -100).all()
    markers = task.markers()
    assert len({marker.tobytes() for marker in markers}) == 4
    starts = set()
    for row, label in zip(tokens.numpy(), targets[:, -1].tolist(), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(row, 64)
        found = np.argwhere((windows[:, None] == markers[None]).all(2))
        assert found[:, 1].tolist() == [label]
        starts.add(int(found[0, 0]))
        assert found[0, 0] + 64 <= max(64, length // 10)
    assert set(targets[:, -1].tolist()) == {0, 1, 2, 3}
    assert len(starts) > 10 or length < 1000


def test_in_training_the_marker_lies_anywhere():
    task = NeedleTask(within=1.0)
    assert (task.markers() == NeedleTask().markers()).all()
    tokens, targets = task.batch(0, 60, 300)
    starts = []
    for row, label in zip(tokens.numpy(), targets[:, -1].tolist(), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(row, 64)
        starts.append(int(np.argwhere((windows == task.markers()[label]).all(1))[0, 0]))
    assert min(starts) < 60
    assert max(starts) > 180


def test_dense_targets_begin_with_the_last_base_of_the_marker():
    task = NeedleTask(within=1.0, dense=True)
    tokens, targets = task.batch(0, 30, 300)
    plain_tokens, plain = NeedleTask(within=1.0).batch(0, 30, 300)
    assert torch.equal(tokens, plain_tokens)
    for row, scored, label in zip(tokens.numpy(), targets, plain[:, -1].tolist(), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(row, 64)
        end = int(np.argwhere((windows == task.markers()[label]).all(1))[0, 0]) + 63
        assert (scored[:end] == -100).all()
        assert (scored[end:] == label).all()


def test_the_second_copy_is_the_first():
    tokens, targets = CopyTask().batch(0, 5, 200)
    assert (tokens[:, 0] == 11).all()
    assert (tokens[:, -16] == 11).all()
    assert torch.equal(tokens[:, 1:17], targets[:, -16:])
    assert torch.equal(tokens[:, -15:], targets[:, -16:-1])
    assert (targets[:, :-16] == -100).all()
    assert len({tuple(row.tolist()) for row in targets[:, -16:]}) == 5


@pytest.mark.parametrize("task", [NeedleTask(), CopyTask()], ids=["needle", "copy"])
def test_rows_depend_on_seed_batch_and_row_only(task):
    few, many = task.batch(7, 2, 300), task.batch(7, 5, 300)
    assert torch.equal(few[0], many[0][:2])
    assert not torch.equal(few[0], task.batch(8, 2, 300)[0])
    assert not torch.equal(few[0], type(task)(seed=1).batch(7, 2, 300)[0])
    with pytest.raises(InputError):
        task.batch(0, 1, 20)


def test_decoys_are_near_hits_and_never_whole():
    plain, decoyed = NeedleTask(within=1.0), NeedleTask(within=1.0, decoys=0.5)
    words = np.lib.stride_tricks.sliding_window_view(plain.markers(), 12, axis=1).reshape(-1, 12) @ 4 ** np.arange(12)

    def hits(task):
        tokens, targets = task.batch(0, 8, 4096)
        view = np.lib.stride_tricks.sliding_window_view(tokens.numpy(), 64, axis=1)
        whole = (view[:, :, None] == task.markers()).all(3)
        # The marker of the class and no other, once.
        assert whole.any(1).argmax(1).tolist() == targets[:, -1].tolist()
        assert (whole.sum((1, 2)) == 1).all()
        short = np.lib.stride_tricks.sliding_window_view(tokens.numpy(), 12, axis=1) @ 4 ** np.arange(12)
        return np.isin(short, words).sum(1)

    assert (hits(plain) < 60).all()
    assert (hits(decoyed) > 300).all()
    # As large a share as asked for, about.
    different = plain.batch(0, 8, 1 << 14)[0] != decoyed.batch(0, 8, 1 << 14)[0]
    assert 0.3 < float(different.float().mean()) / 0.75 < 0.6


def test_filler_without_any_piece_of_a_marker():
    task = NeedleTask(without=6)
    words = np.lib.stride_tricks.sliding_window_view(task.markers(), 6, axis=1).reshape(-1, 6) @ 4 ** np.arange(6)
    for row in task.batch(0, 4, 4096)[0].numpy():
        view = np.lib.stride_tricks.sliding_window_view(row, 6)
        # The marker's own 59, and at its edges by chance.
        assert 59 <= np.isin(view @ 4 ** np.arange(6), words).sum() <= 63
    with pytest.raises(InputError, match="raise `without`"):
        NeedleTask(without=3, classes=20).batch(0, 1, 100)
