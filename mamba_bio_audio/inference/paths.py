"""The ways to run a model's steps, and which of them serves a model and a batch.

    steps        every operation on its own; serves every model
    graph        CUDA graphs of a stretch of steps (`decoding.py`)
    numpy        on a CPU, without PyTorch's cost of an operation (`cpu_decoder.py`)
    persistent   one launch for many steps and all layers, a row a program (`gpu_decoder.py`, `gpu_unet.py`)
    split        the same, several programs sharing a row
    together     the same, 16 rows a program on the tensor cores

Symbols agree as far as the arithmetic does: sums run in another order, and a draw within rounding of a boundary can change.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference import cpu_decoder, gpu_decoder, gpu_unet
from mamba_bio_audio.inference.decoding import GraphSteps, steps
from mamba_bio_audio.inference.guided import Guided
from mamba_bio_audio.inference.held import Held
from mamba_bio_audio.models.unet import UNetModel
from mamba_bio_audio.ops.calls import no_triton

if TYPE_CHECKING:
    from mamba_bio_audio.inference.generate import _Choice

Path = Literal["steps", "graph", "numpy", "persistent", "split", "together"]
Precision = Literal["fp32", "bf16"]
# Last symbols (R, 1), the state before them and draws (n, R) to symbols and scores (n, R) and the state, as `decoding.steps`;
# the state may come as `kept.Kept`, which the next call takes.
Advance = Callable[[Tensor, Any, Tensor], tuple[Tensor, Tensor, Any]]


def fastest(model: nn.Module, choice: _Choice, rows: int, precision: Precision, guidance: float = 0.0) -> Path:
    """The fastest path for batches of `rows` rows; with guidance two models step, which only the general ones do, as
    min-p and hold.

    Raises:
        InputError: there is no such precision.
    """
    _check_precision(precision)
    general: Path = "graph" if getattr(model, "streaming", "none") == "constant" else "steps"
    if choice.held:
        return general if device_of(model).type == "cuda" else "steps"
    if device_of(model).type == "cuda" and choice.min_p is not None:
        return general
    if guidance:
        return general if device_of(model).type == "cuda" else "steps"
    if device_of(model).type != "cuda":
        return "numpy" if precision == "fp32" and cpu_decoder.unsupported_reason(model, rows) is None else "steps"
    form = None
    if no_triton(device_of(model)) is None:
        gpu = gpu_unet if isinstance(model, UNetModel) else gpu_decoder
        form = gpu.form(model, rows, len(choice.allowed), precision)
    return form or general


def check(model: nn.Module, choice: _Choice, path: str, precision: str, guidance: float = 0.0) -> None:
    """Refuse a path that cannot run this model here.

    Raises:
        InputError: why.
    """
    _check_precision(precision)
    if path not in get_args(Path):
        raise InputError(f"path is {path!r}; choose one of {', '.join(get_args(Path))}")
    if precision == "bf16" and any(weight.dtype == torch.float64 for weight in model.parameters()):
        raise InputError("precision is 'bf16', but the model has fp64 weights, which autocast leaves alone; use fp32")
    reason = None
    if (guidance or choice.held) and path not in ("steps", "graph"):
        reason = "not with guidance" if guidance else "not with hold"
    elif path == "graph" and device_of(model).type != "cuda":
        reason = "only on a GPU"
    elif path == "graph" and getattr(model, "streaming", "none") != "constant":
        reason = "only models with a constant state"
    elif path == "numpy":
        reason = cpu_decoder.unsupported_reason(model, 1) if precision == "fp32" else "only in fp32"
    elif path == "together" and precision != "bf16":
        reason = "only in bf16"
    elif path == "persistent" and isinstance(model, UNetModel):
        reason = gpu_unet.unsupported_reason(model, len(choice.allowed))
    elif path == "split" and device_of(model).type != "cuda":
        reason = "only on a GPU"
    elif path in ("persistent", "split", "together"):
        reason = gpu_decoder.unsupported_reason(model, len(choice.allowed))
    if choice.min_p is not None and path in ("persistent", "split", "together"):
        reason = "not with min_p"
    if reason is None and path in ("persistent", "split", "together"):
        reason = no_triton(device_of(model))
    if reason is not None:
        raise InputError(f"path is {path!r}, which cannot run this ({reason}); leave it out")


def _check_precision(precision: str) -> None:
    if precision not in get_args(Precision):
        raise InputError(f"precision is {precision!r}; choose one of {', '.join(get_args(Precision))}")


class Stepper:
    """A model and how its steps run. What is recorded or laid out for a batch serves the next of as many rows."""

    def __init__(
        self,
        model: nn.Module,
        choice: _Choice,
        precision: Precision,
        path: Path,
        reading: Callable[[int, int], None] | None = None,
        guidance: float = 0.0,
        held: tuple[float, float] | None = None,
    ) -> None:
        self.model, self.choice, self.precision, self.path, self.reading = model, choice, precision, path, reading
        self.guidance, self.held = guidance, held
        self._advance: tuple[int, Advance] | None = None
        self._of: tuple[str | None, Stepper] | None = None

    def of(self, name: str | None) -> Stepper:
        """What runs the steps of sequences of one class of the model, or of none; the last one is kept."""
        if name is None and self.held is None:
            return self
        if self._of is None or self._of[0] != name:
            own: Any = self.model
            if name is not None:
                own = Guided(own, name, self.guidance) if self.guidance else own.of_class(name)
            if self.held is not None:
                own = Held(own, *self.held, self.choice.allowed)
            self._of = name, Stepper(own, self.choice, self.precision, self.path, self.reading)
        return self._of[1]

    def advance(self, rows: int) -> Advance:
        """What runs the steps of `rows` rows."""
        if self._advance is None or self._advance[0] != rows:
            self._advance = rows, self._make(rows)
        return self._advance[1]

    def _make(self, rows: int) -> Advance:
        model, choice = self.model, self.choice
        drawing: Any = {"temperature": choice.temperature, "top_k": choice.top_k, "top_p": choice.top_p}
        if self.path == "graph":
            return GraphSteps(model, choice.next)
        if self.path == "numpy":
            return cpu_decoder.CpuDecoder(model, rows, choice.allowed, choice.temperature, choice.rule)
        if self.path == "persistent" and isinstance(model, UNetModel):
            return gpu_unet.GpuUNet(model, choice.allowed.tolist(), precision=self.precision, rows=rows, **drawing)
        if self.path in ("persistent", "split", "together"):
            return gpu_decoder.GpuDecoder(
                model, choice.allowed.tolist(), precision=self.precision, path=self.path, rows=rows, **drawing
            )
        return partial(steps, model, choice.next)

    def narrow(self) -> torch.autocast:
        """Autocast of this precision; the caller's own has no effect on steps."""
        return torch.autocast(device_of(self.model).type, torch.bfloat16, enabled=self.precision == "bf16")


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
