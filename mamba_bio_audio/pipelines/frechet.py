"""The Frechet distance of two sets of features: |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2))."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def frechet_distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Frechet distance of two sets of features (n, d), each with its sample mean and covariance.

    Tr((S1 S2)^(1/2)) is the sum of singular values of X1 X2^T / sqrt((n1 - 1)(n2 - 1)) with X centred, and X may be
    replaced by the triangle of its QR decomposition: exact also with fewer rows than features, where the usual
    matrix square root is not.
    """
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"a covariance needs two rows or more, got {len(a)} and {len(b)}")
    (mean_a, root_a), (mean_b, root_b) = moments(a), moments(b)
    return distance_of_moments(mean_a, root_a, mean_b, root_b)


def moments(features: NDArray[np.floating]) -> tuple[Array, Array]:
    """Mean (d,), and R (r, d) with R^T R the sample covariance, of features (n, d)."""
    x = np.asarray(features, np.float64)
    mean = x.mean(0)
    root: Array = np.asarray(np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode="r"))
    return mean, root


def distance_of_moments(mean_a: Array, root_a: Array, mean_b: Array, root_b: Array) -> float:
    """Frechet distance of two sets, each given by its `moments`."""
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return float(((mean_a - mean_b) ** 2).sum() + (root_a**2).sum() + (root_b**2).sum() - 2 * cross)
