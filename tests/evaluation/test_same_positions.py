"""The network and its baseline are scored on identical bases with the real data pipeline."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mamba_bio_audio.evaluation.likelihood import evaluate_likelihood
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.markov import MarkovBaseline, markov_table


class FirstOrder(nn.Module):
    """A network that is a table: the baseline's order 1, read from the token before."""

    def __init__(self, baseline: MarkovBaseline) -> None:
        super().__init__()
        table = torch.full((12, 12), float("nan"), dtype=torch.float64)
        for context in range(12):
            table[context, 7:11] = torch.from_numpy(baseline.distribution([context], 1)).log()
        self.table = nn.Parameter(table)

    def forward(self, tokens: Tensor, *, targets: Tensor, logits: str) -> Any:
        scored = targets != -100
        nats = -self.table[tokens[scored], targets[scored]]
        return SimpleNamespace(loss_sum=nats.sum(), count=scored.sum())


def write_genome(folder: Path) -> Path:
    """Two files; records shorter than a window, unknown bases at ends, at borders and in runs."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = ["file\trecord\tstart0\tend\tsplit"]
    for name, lengths in (("one.fa", (900, 13, 2, 1)), ("two.fa", (400,))):
        text = ""
        for number, length in enumerate(lengths):
            letters = np.array(list("ACGT"))[rng.choice(4, length, p=[0.4, 0.1, 0.2, 0.3])]
            letters[rng.random(length) < 0.05] = "N"
            if length > 100:
                letters[60:75] = "N"
                letters[[0, 300]] = "N"
                rows += [
                    f"{name}\tr{number}\t0\t150\tvalid",
                    f"{name}\tr{number}\t150\t290\ttrain",
                    f"{name}\tr{number}\t290\t333\ttest",
                    f"{name}\tr{number}\t333\t360\ttest",
                    f"{name}\tr{number}\t360\t{length}\ttrain",
                ]
            else:
                rows.append(f"{name}\tr{number}\t0\t{length}\ttest")
            text += f">r{number}\n{''.join(letters)}\n"
        (folder / name).write_text(text)
    (folder / "intervals.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("length", [1, 16, 64, 1000])
def test_likelihood_and_markov_score_the_same_bases(tmp_path: Path, length: int) -> None:
    config = DnaDataConfig(path=str(write_genome(tmp_path / "genome")))
    data = DataModule(config, length=length, batch_size=3, seed=0)
    spans = {split: data.corpus.spans(split) for split in ("train", "valid", "test")}
    baseline = MarkovBaseline.fit(data.corpus.genome, spans["train"], max_order=3)
    model = FirstOrder(baseline)
    for split in ("train", "valid", "test"):
        found = evaluate_likelihood(model, data.evaluation_dataloader(split))
        expected = baseline.score(data.corpus.genome, spans[split])
        assert found.count == expected.count == data.corpus.evaluation_windows(split).scored
        assert found.nats == pytest.approx(expected.nats[1], rel=1e-12)
        # Per file: the caller restricts the spans.
        for group, name in enumerate(("one", "two")):
            own = [span for span in spans[split] if data.corpus.genome.genome_of(span.record) == group]
            assert all(span.record.startswith(name) for span in own)
            expected = baseline.score(data.corpus.genome, own)
            assert found.groups[str(group)].count == expected.count
            assert found.groups[str(group)].nats == pytest.approx(expected.nats[1], rel=1e-12)


def test_markov_table_of_the_data_module(tmp_path: Path) -> None:
    data = DataModule(DnaDataConfig(path=str(write_genome(tmp_path / "genome"))), length=64, batch_size=3, seed=0)
    data.setup()
    table = markov_table(
        data.corpus.genome, *(data.corpus.spans(split) for split in ("train", "valid", "test")), max_order=4
    )
    assert 3 < table.test.perplexity[table.order] < 4.2
    assert table.valid.nats[table.order] == table.valid.nats.min()
