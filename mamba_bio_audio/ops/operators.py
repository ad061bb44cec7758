"""Operations as torch.library operators, which torch.compile and torch.export take as they are.

An operation calls its operator while a graph is being traced. When the graph runs, the operator makes the eager call. Its
gradient is an operator too, which runs the operation again and differentiates it, so that a compiled graph keeps nothing
but the inputs.
"""

from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_NAMESPACE = "mamba_bio_audio"
_SCHEMA = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool", float: "float", int: "SymInt"}


def register(
    name: str,
    declares: Callable[..., Any],
    returns: str,
    gradients: Sequence[str],
    run: Callable[..., Any],
    fake: Callable[..., Any],
) -> Any:
    """Registers the operators `name` and `name_backward` of an operation.

    Args:
        name: name in the package's namespace; exported graphs refer to it.
        declares: value type or function whose annotated arguments, in order and without `backend`, are the operator's.
        returns: schema of the result: one tensor, a tuple or a list.
        gradients: schemas of the gradients of the first outputs; `name_backward` takes them before the arguments.
        run: the eager call on these arguments, differentiable, with a result as in `returns`.
        fake: empty tensors of the shapes and dtypes that `run` returns, from the same arguments.

    Returns:
        The operator. Its backward returns the gradients of the floating-point arguments that are there, in order.
    """
    hints = {name: hint for name, hint in get_type_hints(declares).items() if name not in ("backend", "return")}
    declared = [f"{_SCHEMA[hint]} {argument}" for argument, hint in hints.items()]
    taken = len(gradients)

    def forward(*inputs: Any) -> Any:
        with torch.no_grad():
            return tree_map(Tensor.contiguous, run(*inputs))

    def backward(*inputs: Any) -> list[Tensor]:
        return _gradients(run, inputs[taken:], inputs[:taken])

    def backward_fake(*inputs: Any) -> list[Tensor]:
        return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in filter(_wanted, inputs[taken:])]

    def make(name: str, run: Callable[..., Any], declared: Sequence[str], returns: str) -> Any:
        schema = f"({', '.join(declared)}) -> {returns}"
        return torch.library.custom_op(f"{_NAMESPACE}::{name}", run, mutates_args=(), schema=schema)

    operator = make(name, forward, declared, returns)
    operator.register_fake(fake)
    gradient = make(f"{name}_backward", backward, [*gradients, *declared], "Tensor[]")
    gradient.register_fake(backward_fake)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(t for t in inputs if isinstance(t, Tensor)))
        ctx.rest = [None if isinstance(value, Tensor) else (value,) for value in inputs]

    def differentiate(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if value is None else value[0] for value in ctx.rest]
        if grads and isinstance(grads[0], list | tuple):  # outputs that are a list
            grads = tuple(grads[0])
        # A missing output has no gradient.
        found = iter(gradient(*grads[:taken], *[None] * (taken - len(grads)), *inputs))
        return tuple(next(found) if _wanted(t) else None for t in inputs)

    operator.register_autograd(differentiate, setup_context=setup_context)
    return operator


def state_dtype(*inputs: Any) -> torch.dtype:
    """The dtype of states and sums: fp64 where any input is, otherwise fp32."""
    double = any(isinstance(t, Tensor) and t.dtype == torch.float64 for t in inputs)
    return torch.float64 if double else torch.float32


def _wanted(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _gradients(run: Callable[..., Any], inputs: Sequence[Any], grads: Sequence[Any]) -> list[Tensor]:
    """Gradients of every floating-point input that is there, in order; zeros where nothing depends on it."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() if _wanted(t) else t for t in inputs]
        outs = tree_leaves(run(*leaves))
    wanted = [t for t in leaves if _wanted(t)]
    # Outputs without a gradient come last, and so do gradients of missing outputs, which are None.
    pairs = [(out, g) for out, g in zip(outs, grads, strict=False) if g is not None]
    found = torch.autograd.grad([out for out, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
    return [
        torch.zeros_like(t) if g is None else g.clone(memory_format=torch.contiguous_format)
        for t, g in zip(wanted, found, strict=True)
    ]
