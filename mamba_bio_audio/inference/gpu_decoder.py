"""Decoding on a GPU in persistent kernels: many steps and all layers in one launch (`kernels/decode/`).

The CUDA graph of `decoding.py` launches some hundred kernels a step, each of which waits for the one before; here a program
takes its rows through steps and layers, alone or with others (`kernels/decode/forms.py`). Draws are those of the graph, and
symbols equal as far as the model's own arithmetic does: sums run in another order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.kept import Kept
from mamba_bio_audio.kernels.decode.forms import PATHS, WIDEST, form_of, form_on
from mamba_bio_audio.layers.mamba import MambaLayer, MambaState
from mamba_bio_audio.layers.norm import RMSNorm
from mamba_bio_audio.models.isotropic import Block, IsotropicModel

if TYPE_CHECKING:  # Triton is not there on every machine
    from mamba_bio_audio.kernels.decode.persistent import State

_MOST_SYMBOLS = 256
_MOST_TOGETHER = 64  # symbols that many rows draw from


def form(model: nn.Module, rows: int, symbols: int, precision: str) -> PATHS | None:
    """Which form of kernel is the fastest for a batch; None where a CUDA graph is.

    Args:
        model: on a GPU.
        rows: of a batch.
        symbols: how many may be drawn.
        precision: of the matrices, "fp32" or "bf16".
    """
    if unsupported_reason(model, symbols) is not None:
        return None
    found = form_of(*_sizes(model), rows, _processors(model), precision == "bf16")
    if found is None or (found.path == "together" and symbols > _MOST_TOGETHER):
        return None
    return found.path


def _sizes(model: nn.Module) -> tuple[int, int]:
    """Channels D and E of the layers."""
    block = next(iter(cast(Iterable[Block], model.layers)))
    out_proj = cast(MambaLayer, block.mixer).out_proj.weight
    return out_proj.shape[0], out_proj.shape[1]


def _processors(model: nn.Module) -> int:
    device = next(model.parameters()).device
    # Triton's interpreter runs one program after the other.
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def unsupported_reason(model: nn.Module, symbols: int) -> str | None:
    """Why persistent kernels cannot run the model's steps, or None where they can; arguments as of `form`."""
    if type(model) is not IsotropicModel:
        return "only isotropic models"
    if {parameter.dtype for parameter in model.parameters()} != {torch.float32}:
        return "only models in fp32"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "hooks see every step"
    if symbols > _MOST_SYMBOLS:
        return "too many symbols to draw from"
    if model.lm_head.bias is not None:
        return "no bias of the head"
    for block in model.layers:
        mixer = block.mixer
        if type(mixer) is not MambaLayer:
            return "only Mamba layers"
        config, weights = mixer.config, mixer.weights()
        if config.complex or config.exact_zoh or config.precise or mixer.config.selective is not True:
            return "only real, selective Mamba layers, without exact_zoh and precise"
        if weights.in_bias is not None or weights.out_bias is not None:
            return "no biases of the projections"
        channels, states = weights.A_log.shape
        width = weights.out_proj.shape[0]
        if width % 64 or channels % 64 or width > WIDEST or channels > 2 * WIDEST:
            return f"only widths that are multiples of 64, up to {WIDEST}"
        if states & (states - 1):
            return "only d_state that is a power of two"
    return None


class GpuDecoder:
    """Runs the steps of a model in persistent kernels; `unsupported_reason` says which models.

    Args:
        model: isotropic model of Mamba layers in fp32 on a GPU. Its weights are read now.
        allowed: ids that may be drawn, in order.
        temperature, top_k, top_p: as in `generate`.
        precision: of the matrices, "fp32" or "bf16"; sums, state and everything else are fp32.
        path: form of the kernel; "together" only in bf16, "split" only on a GPU.
        rows: of a call.

    Raises:
        InputError: the form cannot run so many rows of this width.
    """

    def __init__(
        self,
        model: nn.Module,
        allowed: Sequence[int],
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        precision: str = "fp32",
        path: str = "persistent",
        rows: int = 1,
    ) -> None:
        # Triton is not there on every machine.
        from mamba_bio_audio.kernels.decode.pack import Layer, pack

        assert isinstance(model, IsotropicModel)
        self.model = model
        self.drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self.path = path
        form = form_on(path, *_sizes(model), rows, _processors(model), precision == "bf16")
        if form is None:
            raise InputError(f"path {path!r} cannot run {rows:,} rows of this model; leave it out")
        layers = []
        for block in cast(Iterable[Block], model.layers):
            w = cast(MambaLayer, block.mixer).weights()
            assert w.x_proj is not None
            assert w.dt_proj is not None
            layers.append(
                Layer(
                    norm=cast(RMSNorm, block.norm).weight,
                    in_proj=w.in_proj,
                    conv=w.conv,
                    conv_bias=w.conv_bias,
                    x_proj=w.x_proj,
                    dt_proj=w.dt_proj,
                    dt_bias=w.dt_bias,
                    A_log=w.A_log,
                    D=w.D,
                    out_proj=w.out_proj,
                )
            )
        self.network = pack(
            layers,
            model.embedding.weight,
            model.norm_f.weight,
            model.lm_head.weight,
            allowed,
            dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            eps=model.model_config.norm_eps,
            warps=form.warps,
            tiled=path != "together",
            rows=form.rows,
            programs=form.programs,
            registers=form.registers,
        )

    def __call__(self, last: Tensor, state: Any, draws: Tensor) -> tuple[Tensor, Tensor, Any]:
        """As `decoding.steps`: symbols (n, R), log-probabilities (n, R), and the state before the last symbol, as `Kept`.

        Everything is queued and nothing waited for; `lost.confirm` says whether the programs have met.
        """
        from mamba_bio_audio.kernels.decode.persistent import decode
        from mamba_bio_audio.kernels.decode.split import decode_split
        from mamba_bio_audio.kernels.decode.together import decode_together

        run = {"persistent": decode, "split": decode_split, "together": decode_together}[self.path]
        moving = state.own.copy() if isinstance(state, Kept) else self._packed(last, state)
        symbols, scores, _, moving = run(self.network, moving, draws, **self.drawing)  # type: ignore[arg-type]
        return symbols.long(), scores, Kept(moving, partial(_states_of, len(last)))

    def _packed(self, last: Tensor, state: Any) -> State:
        """The kernel's state from the model's, which is not changed, and the last symbols (R, 1)."""
        from mamba_bio_audio.kernels.decode.persistent import State

        state = self.model.init_state(len(last), last.device) if state is None else state
        tails, h = (torch.stack([getattr(layer, name) for layer in state], 1) for name in ("tail", "ssm"))
        if beyond := -len(last) % self.network.case.ROWS:
            # Rows of zeros fill the last program.
            tails, h, last = (torch.cat([part, part.new_zeros(beyond, *part.shape[1:])]) for part in (tails, h, last))
        return State.of(tails, h, last[:, 0])


def _states_of(rows: int, moved: State) -> tuple[MambaState, ...]:
    """The model's state of the first so many rows."""
    tails, h = moved.tails[:rows], moved.h[:rows]
    return tuple(MambaState(tail, ssm) for tail, ssm in zip(tails.unbind(1), h.unbind(1), strict=True))
