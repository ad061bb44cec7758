"""The k-mer bar of `pipelines/dna/kmers.py` by torch, for tables that take scikit-learn hours: same features, penalties, grid.

    p = softmax(x W + b); minimised is the mean loss + |W|^2 / (2 C n), by L-BFGS, to gradients of 1e-5 or 300 steps

Counts are sparse, once by rows and once by columns: 5 GB for 345,600 windows of 1,024 bases.
Legend: n windows, F words, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from mamba_bio_audio.pipelines.dna.kmers import (
    FIRST_STEP,
    LAST_STEP,
    START_STEP,
    Regression,
    _climb,
    _strength,
    canonical_columns,
)
from mamba_bio_audio.pipelines.dna.tokenizer import A, T

# Windows whose dense counts exist at once.
DENSE_CELLS = 1 << 27


class Shares(NamedTuple):
    """Shares of the words, (n, F) and (F, n), both in CSR."""

    rows: Tensor
    columns: Tensor | None


def shares_of(windows: Sequence[NDArray[np.uint8]], k: int, device: str, both: bool = True) -> Shares:
    """Shares of the canonical k-mers of windows of one length, as `kmer_frequencies` has them.

    Args:
        both: also by columns, for gradients.
    """
    column = torch.from_numpy(canonical_columns(k)).to(device)
    count = int(column.max()) + 1
    table = np.stack(list(windows))
    chunk = max(1, DENSE_CELLS // (count + 1))
    words, values, starts = [], [], [torch.zeros(1, dtype=torch.int64, device=device)]
    for at in range(0, len(table), chunk):
        ids = torch.from_numpy(table[at : at + chunk]).to(device)
        known = (ids >= A) & (ids <= T)
        base = torch.where(known, ids - A, 0).long()
        width = ids.shape[1] - k + 1
        word, whole = torch.zeros_like(base[:, :width]), torch.ones_like(known[:, :width])
        for offset in range(k):
            word = word * 4 + base[:, offset : offset + width]
            whole &= known[:, offset : offset + width]
        # Words with an unknown base go into a column of their own, which is cut off.
        found = torch.where(whole, column[word], count)
        dense = torch.zeros(len(ids), count + 1, device=device)
        dense.scatter_add_(1, found, torch.ones_like(found, dtype=torch.float32))
        dense = dense[:, :count] / dense[:, :count].sum(1, keepdim=True).clamp(min=1)
        row, where = dense.nonzero(as_tuple=True)
        words.append(where.int())
        values.append(dense[row, where])
        starts.append(torch.bincount(row, minlength=len(ids)))
        del dense, row, where
    place, value = torch.cat(words), torch.cat(values)
    del words, values
    ends = torch.cat(starts).cumsum(0).int()
    shape = (len(table), count)
    by_rows = torch.sparse_csr_tensor(ends, place, value, size=shape)
    if not both:
        return Shares(by_rows, None)
    if device == "cpu":
        # The same in less memory.
        turned = csr_matrix((value.numpy(), place.numpy(), ends.numpy()), shape=shape).tocsc()
        at, where, shares = (torch.from_numpy(part) for part in (turned.indptr, turned.indices, turned.data))
        return Shares(by_rows, torch.sparse_csr_tensor(at, where, shares, size=shape[::-1]))
    of_row = torch.repeat_interleave(torch.arange(len(table), dtype=torch.int32, device=device), ends.diff().long())
    sorted_places, order = torch.sort(place, stable=True)
    column_ends = torch.zeros(count + 1, dtype=torch.int64, device=device)
    column_ends[1:] = torch.bincount(sorted_places, minlength=count).cumsum(0)
    by_columns = torch.sparse_csr_tensor(column_ends.int(), of_row[order], value[order], size=shape[::-1])
    return Shares(by_rows, by_columns)


class Model(NamedTuple):
    """A fitted regression on shares."""

    weight: Tensor  # (F, K), of shares as they are
    bias: Tensor  # (K,)

    def probabilities(self, shares: Tensor) -> NDArray[np.float64]:
        """Class probabilities (n, K)."""
        return np.asarray(torch.softmax((shares @ self.weight + self.bias).double(), 1).cpu())


def fit(
    known: Shares, labels: NDArray[np.int64], unseen: Tensor, valid_labels: NDArray[np.int64], classes: int
) -> Regression:
    """As `kmers.fit_regression`: along the grid of penalties, first to weaker ones, until the loss on validation rises."""
    rows, columns = known
    assert columns is not None
    n, count = rows.shape
    device = rows.device
    squares = torch.sparse_csr_tensor(
        columns.crow_indices(), columns.col_indices(), columns.values() ** 2, size=columns.shape
    )
    ones = torch.ones(n, 1, device=device)
    variance = (squares @ ones / n - (columns @ ones / n) ** 2).clamp(min=0)
    del squares
    scale = torch.where(variance > 0, variance.rsqrt(), 1.0)
    target = torch.from_numpy(labels).to(device)
    hot = torch.nn.functional.one_hot(target, classes).float()
    weight, bias = torch.zeros(count, classes, device=device), torch.zeros(classes, device=device)
    table: list[dict[str, Any]] = []

    def at(step: int) -> Regression:
        penalty = 1 / (_strength(step) * n)
        weight.requires_grad_(True), bias.requires_grad_(True)
        optimiser = torch.optim.LBFGS(
            [weight, bias],
            max_iter=300,
            history_size=10,
            tolerance_grad=1e-5,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )
        passes = 0

        @torch.no_grad()
        def closure() -> Tensor:
            nonlocal passes
            passes += 1
            logits = rows @ (weight * scale) + bias
            logs = torch.log_softmax(logits, 1)
            loss = -(logs * hot).sum() / n + 0.5 * penalty * (weight**2).sum()
            error = (logs.exp() - hot) / n
            weight.grad = (columns @ error) * scale + penalty * weight
            bias.grad = error.sum(0)
            return loss

        optimiser.step(closure)
        model = Model((weight * scale).detach().clone(), bias.detach().clone())
        p = model.probabilities(unseen)
        loss = float(-np.log(np.maximum(p[np.arange(len(p)), valid_labels], 1e-12)).mean())
        right = float((p.argmax(1) == valid_labels).mean())
        table.append({"strength": _strength(step), "valid_nats": loss, "valid_accuracy": right, "passes": passes})
        return Regression(step, loss, model, table)

    best = first = at(START_STEP)
    best = _climb(at, best, 1)
    return best if best is not first else _climb(at, first, -1)


def at_edge(found: Regression) -> bool:
    """Whether the penalty is the last tried."""
    return found.step in (FIRST_STEP, LAST_STEP)
