"""What the whole Mamba-2 mixer is made of, for every path. Letters as in `dual.py`."""

from typing import NamedTuple

from torch import Tensor


class Mamba2Weights(NamedTuple):
    """Parameters of one mixer."""

    in_proj: Tensor  # (E + F + H, M)
    in_bias: Tensor | None  # (E + F + H)
    conv: Tensor  # (F, W)
    conv_bias: Tensor | None  # (F)
    dt_bias: Tensor  # (H)
    A_log: Tensor  # (H)
    D: Tensor  # (H)
    norm: Tensor  # (E)
    out_proj: Tensor  # (M, E)
    out_bias: Tensor | None  # (M)


class Mamba2Settings(NamedTuple):
    """What the shapes of the weights do not say."""

    groups: int
    eps: float  # of the norm
    limit: tuple[float, float] | None  # of the step size
