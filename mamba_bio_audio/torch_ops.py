"""The operations of `ops` as torch.library operators, which torch.compile and torch.export take as they are.

`ops` calls these while a graph is being traced. Each operator runs the same code as the eager call on the same device;
its gradient is an operator too, which runs the operation again and differentiates it, so that a compiled graph keeps
nothing but the inputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mamba_bio_audio import ops

_NAMESPACE = "mamba_bio_audio"


def _gradients(
    run: Callable[..., Any], inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> list[Tensor]:
    """Gradients of every floating-point input that is there, in order; zeros where nothing depends on it."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() if _differentiable(t) else t for t in inputs]  # type: ignore[union-attr]
        outs = run(*leaves)
    wanted = [t for t in leaves if _differentiable(t)]
    pairs = [(out, g) for out, g in zip(outs, grads, strict=True) if g is not None]
    found = torch.autograd.grad(
        [out for out, _ in pairs],
        wanted,  # type: ignore[arg-type]
        [g for _, g in pairs],
        allow_unused=True,
    )
    return [
        torch.zeros_like(t) if g is None else g.clone(memory_format=torch.contiguous_format)
        for t, g in zip(wanted, found, strict=True)
    ]  # type: ignore[arg-type]


def _differentiable(t: Tensor | None) -> bool:
    return t is not None and t.is_floating_point()


def _spread(inputs: Sequence[Any], found: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients at the places of their inputs, None elsewhere."""
    left = iter(found)
    return tuple(next(left) if isinstance(t, Tensor) and t.is_floating_point() else None for t in inputs)


def _like_inputs(*inputs: Tensor | None) -> list[Tensor]:
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs if _differentiable(t)]  # type: ignore[arg-type]


def _state_dtype(*tensors: Tensor | None) -> torch.dtype:
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


# Selective scan


def _run_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, dt_bias: Tensor | None,
    h0: Tensor | None, reset: Tensor | None, dt_softplus: bool, exact_zoh: bool, precise: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return ops.selective_scan(
        u, dt, A, B, C, D, z, dt_bias, dt_softplus=dt_softplus, h0=h0, return_state=True, reset=reset,
        exact_zoh=exact_zoh, precise=precise,
    )  # fmt: skip


@torch.library.custom_op(f"{_NAMESPACE}::selective_scan", mutates_args=())
def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, dt_bias: Tensor | None,
    h0: Tensor | None, reset: Tensor | None, dt_softplus: bool, exact_zoh: bool, precise: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(out (B, L, D), last state (B, D, N[, 2])); arguments as `ops.selective_scan`."""
    with torch.no_grad():
        out, state = _run_scan(u, dt, A, B, C, D, z, dt_bias, h0, reset, dt_softplus, exact_zoh, precise)
    return out.contiguous(), state.contiguous()


@selective_scan.register_fake
def _(u, dt, A, B, C, D, z, dt_bias, h0, reset, dt_softplus, exact_zoh, precise):  # type: ignore[no-untyped-def]
    dtype = _state_dtype(u, dt, A, B, C, D, z, dt_bias, h0)
    return u.new_empty(u.shape), A.new_empty((u.shape[0], *A.shape), dtype=dtype)


@torch.library.custom_op(f"{_NAMESPACE}::selective_scan_backward", mutates_args=())
def selective_scan_backward(
    g_out: Tensor | None, g_state: Tensor | None,
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, dt_bias: Tensor | None,
    h0: Tensor | None, reset: Tensor | None, dt_softplus: bool, exact_zoh: bool, precise: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the floating-point arguments that are there, in order."""

    def run(*tensors: Any) -> tuple[Tensor, Tensor]:
        u, dt, A, B, C, D, z, dt_bias, h0 = tensors
        return _run_scan(u, dt, A, B, C, D, z, dt_bias, h0, reset, dt_softplus, exact_zoh, precise)

    return _gradients(run, (u, dt, A, B, C, D, z, dt_bias, h0), (g_out, g_state))


@selective_scan_backward.register_fake
def _(g_out, g_state, u, dt, A, B, C, D, z, dt_bias, h0, reset, dt_softplus, exact_zoh, precise):  # type: ignore[no-untyped-def]
    return _like_inputs(u, dt, A, B, C, D, z, dt_bias, h0)


# Causal convolution


def _run_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, reset: Tensor | None, silu: bool
) -> tuple[Tensor]:
    return (ops.causal_conv1d(x, weight, bias, activation="silu" if silu else None, tail=tail, reset=reset),)


@torch.library.custom_op(f"{_NAMESPACE}::causal_conv1d", mutates_args=())
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, reset: Tensor | None, silu: bool
) -> Tensor:
    """out (B, L, D); arguments as `ops.causal_conv1d`."""
    with torch.no_grad():
        return _run_conv(x, weight, bias, tail, reset, silu)[0].contiguous()


@causal_conv1d.register_fake
def _(x, weight, bias, tail, reset, silu):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.custom_op(f"{_NAMESPACE}::causal_conv1d_backward", mutates_args=())
def causal_conv1d_backward(
    g: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor | None, reset: Tensor | None, silu: bool
) -> list[Tensor]:
    """Gradients of the floating-point arguments that are there, in order."""
    return _gradients(lambda x, w, b, tail: _run_conv(x, w, b, tail, reset, silu), (x, weight, bias, tail), (g,))


@causal_conv1d_backward.register_fake
def _(g, x, weight, bias, tail, reset, silu):  # type: ignore[no-untyped-def]
    return _like_inputs(x, weight, bias, tail)


# Norm


def _run_norm(x: Tensor, weight: Tensor, residual: Tensor | None, eps: float) -> tuple[Tensor, ...]:
    if residual is None:
        return (ops.rms_norm(x, weight, eps),)
    return ops.rms_norm(x, weight, eps, residual=residual)


@torch.library.custom_op(f"{_NAMESPACE}::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, residual: Tensor | None, eps: float) -> list[Tensor]:
    """[y], or [y, stream] with a residual; arguments as `ops.rms_norm`."""
    with torch.no_grad():
        return [out.contiguous() for out in _run_norm(x, weight, residual, eps)]


@rms_norm.register_fake
def _(x, weight, residual, eps):  # type: ignore[no-untyped-def]
    y = x.new_empty(x.shape)
    return [y] if residual is None else [y, x.new_empty(x.shape, dtype=_state_dtype(x, residual))]


@torch.library.custom_op(f"{_NAMESPACE}::rms_norm_backward", mutates_args=())
def rms_norm_backward(
    g_y: Tensor | None, g_stream: Tensor | None, x: Tensor, weight: Tensor, residual: Tensor | None, eps: float
) -> list[Tensor]:
    """Gradients of x, weight and, where it is there, residual."""
    grads = (g_y,) if residual is None else (g_y, g_stream)
    return _gradients(lambda x, w, r: _run_norm(x, w, r, eps), (x, weight, residual), grads)


@rms_norm_backward.register_fake
def _(g_y, g_stream, x, weight, residual, eps):  # type: ignore[no-untyped-def]
    return _like_inputs(x, weight, residual)


# Head and loss


def _run_loss(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    return ops.linear_cross_entropy(x, weight, targets, ignore_index=ignore_index)


@torch.library.custom_op(f"{_NAMESPACE}::linear_cross_entropy", mutates_args=())
def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(summed loss, scored positions); arguments as `ops.linear_cross_entropy`."""
    with torch.no_grad():
        return _run_loss(x, weight, targets, ignore_index)


@linear_cross_entropy.register_fake
def _(x, weight, targets, ignore_index):  # type: ignore[no-untyped-def]
    return x.new_empty((), dtype=_state_dtype(x, weight)), targets.new_empty((), dtype=torch.int64)


@torch.library.custom_op(f"{_NAMESPACE}::linear_cross_entropy_backward", mutates_args=())
def linear_cross_entropy_backward(
    g: Tensor, x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int
) -> list[Tensor]:
    """Gradients of x and weight."""
    return _gradients(lambda a, b: _run_loss(a, b, targets, ignore_index), (x, weight), (g, None))


@linear_cross_entropy_backward.register_fake
def _(g, x, weight, targets, ignore_index):  # type: ignore[no-untyped-def]
    return _like_inputs(x, weight)


def _register(op: Any, backward: Any) -> None:
    """Autograd of an operator whose backward operator takes (gradients of the outputs, arguments)."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(t for t in inputs if isinstance(t, Tensor)))
        ctx.rest = [None if isinstance(value, Tensor) else (value,) for value in inputs]

    def differentiate(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if value is None else value[0] for value in ctx.rest]
        if grads and isinstance(grads[0], list | tuple):  # outputs that are a list
            grads = tuple(grads[0])
        return _spread(inputs, backward(*_as_wanted(op, grads), *inputs))

    op.register_autograd(differentiate, setup_context=setup_context)


def _as_wanted(op: Any, grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    if op is linear_cross_entropy:
        return grads[:1]
    if op is rms_norm and len(grads) == 1:
        return (grads[0], None)
    return grads


for _op, _backward in (
    (selective_scan, selective_scan_backward),
    (causal_conv1d, causal_conv1d_backward),
    (rms_norm, rms_norm_backward),
    (linear_cross_entropy, linear_cross_entropy_backward),
):
    _register(_op, _backward)
