"""Gradients that cannot be differentiated again, with an error that says what to use instead."""

from typing import Any

import torch
from torch import Tensor


class _Refuse(torch.autograd.Function):
    """Identity on tensors whose backward raises `RuntimeError(message)`."""

    @staticmethod
    def forward(ctx: Any, message: str, anchor: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
        ctx.message = message
        return grads

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> Any:
        raise RuntimeError(ctx.message)


def refuse_second_order(op: str, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Returns `grads`, made to raise a clear error when they are differentiated.

    Call it at the end of a hand-written backward. Without `create_graph=True` it costs one check.
    """
    if not torch.is_grad_enabled():
        return grads
    message = (
        f"{op}: this backend has no second derivative; where gradients of gradients are needed, build the layer of the "
        f'operations in mamba_bio_audio.ops with backend="reference"'
    )
    anchor = torch.empty(0, requires_grad=True)
    kept = [g for g in grads if g is not None]
    refused = iter(_Refuse.apply(message, anchor, *kept))
    return tuple(None if g is None else next(refused) for g in grads)
