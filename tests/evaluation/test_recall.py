"""Recall read with the state carried is that of whole windows, whatever is read at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mamba_bio_audio.evaluation.context import target_nats
from mamba_bio_audio.evaluation.recall import recall_bar, recall_nats
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.pipelines.scores import CopyBar, RecallTrials
from mamba_bio_audio.run.config import load_config


def trials(count: int = 5) -> RecallTrials:
    draws = np.random.default_rng(0)

    def ids(size: int) -> np.ndarray:
        return draws.integers(7, 11, (count, size)).astype(np.uint8)

    target = ids(16)
    pieces = {"control": ids(16), "foreign control": ids(16), "exact": target}
    gap = ids(40)
    gap[:, 3] = 11  # an unknown base is read
    return RecallTrials(40, 102, ids(30), pieces, gap, target)


@pytest.mark.parametrize("mixer", ["mamba", "transformer"])
@pytest.mark.parametrize("positions", [7, 100, 4096])
def test_recall_is_that_of_whole_windows(mixer: str, positions: int) -> None:
    config = load_config(
        "dna/tiny",
        ["data.path=demo", "model.d_model=16", "model.num_layers=2", f"model.mixer={mixer}", "model.vocab_size=12"],
    )
    model = build_model(config.model, seed=0).eval()
    some, read = trials(), []
    found = recall_nats(
        model, some, known=[7, 8, 9, 10], positions=positions, device="cpu", narrow=False, progress=read.append
    )
    for variant, pieces in some.pieces.items():
        windows = torch.from_numpy(np.concatenate([some.lead, pieces, some.gap, some.target], 1).astype(np.int64))
        whole = target_nats(model, windows, 16, positions=1 << 20, device="cpu", narrow=False)
        np.testing.assert_allclose(found[variant], whole.mean(1), rtol=1e-5)
    # The beginning once, the rest in every variant; the last symbol of all is only predicted.
    assert sum(read) == 5 * (30 + 3 * (16 + 40 + 16 - 1))


def test_the_bar_reads_whole_windows() -> None:
    some, read, seen = trials(), [], []

    def nats(window: np.ndarray, size: int, contexts: list[int]) -> dict[int, np.ndarray]:
        seen.append(window)
        assert (size, contexts) == (16, [102])
        return {102: np.full(size, float(window.sum()))}

    found = recall_bar(CopyBar("sums", nats), some, read.append)
    for variant, pieces in some.pieces.items():
        whole = np.concatenate([some.lead, pieces, some.gap, some.target], 1)
        assert found[variant].tolist() == whole.sum(1).tolist()
    assert sum(read) == 15 * 102
