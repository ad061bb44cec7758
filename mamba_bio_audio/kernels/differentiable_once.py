"""Gradients that cannot be differentiated again, with an error that says what to use instead; what is kept for them."""

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


def will_differentiate(*tensors: Tensor | None) -> bool:
    """Whether autograd records a call on these; within it, `needs_input_grad` is true under `torch.no_grad` as well."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


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
