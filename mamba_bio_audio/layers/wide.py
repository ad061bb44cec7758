"""Parameters that rounding harms, which a model keeps wide when it is moved to bf16."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def kept_wide(parameters: Callable[[], Sequence[nn.Parameter]]) -> Iterator[None]:
    """Within it, `model.to(torch.bfloat16)` moves these parameters but does not narrow them below fp32.

    Args:
        parameters: finds them, before and after.
    """
    before = [parameter.data for parameter in parameters()]
    yield
    for parameter, data in zip(parameters(), before, strict=True):
        if parameter.dtype.itemsize < data.dtype.itemsize and parameter.dtype != torch.float32:
            parameter.data = data.to(parameter.device, torch.float32)
