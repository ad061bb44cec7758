"""Decoding of U-Nets on a GPU, many steps in one launch (`kernels/decode/unet.py`); twin of `cpu_decoder.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from mamba_bio_audio.inference.kept import Kept
from mamba_bio_audio.layers.mamba import MambaLayer, MambaState
from mamba_bio_audio.models.isotropic import Block
from mamba_bio_audio.models.unet import TierState, UNetModel, UNetState

if TYPE_CHECKING:  # Triton is not there on every machine
    from mamba_bio_audio.kernels.decode.pack import Layer
    from mamba_bio_audio.kernels.decode.unet_pack import FixedLayer, UNetCase, UNetNetwork, UNetRows

_PROGRAMS_OF_A_ROW = 3
# Below it an element of the stream would be changed in place by several warps.
_LEAST_WIDTH = 64
# What was compiled and measured.
_WIDEST = 256
_MOST_SYMBOLS = 256


def form(model: nn.Module, rows: int, symbols: int, precision: str) -> Literal["persistent"] | None:
    """As `gpu_decoder.form`; a CUDA graph is slower at every batch."""
    return "persistent" if unsupported_reason(model, symbols) is None else None


def unsupported_reason(model: nn.Module, symbols: int) -> str | None:
    """Why `GpuUNet` cannot run the model's steps, or None where it can; arguments as of `gpu_decoder.form`."""
    if type(model) is not UNetModel:
        return "only U-Nets"
    if symbols > _MOST_SYMBOLS:
        return "too many symbols to draw from"
    config = model.model_config
    if len(config.pools) != 2:
        return "only U-Nets with two pools"
    if any(width % _LEAST_WIDTH for width in config.widths):
        return f"only widths that are multiples of {_LEAST_WIDTH}"
    if config.widths[-1] > _WIDEST:
        return f"only widths up to {_WIDEST}"
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return "hooks see every step"
    if {p.dtype for p in model.parameters()} != {torch.float32}:
        return "only parameters in fp32"
    for blocks in _tiers_of(model):
        kinds = set()
        for block in blocks:
            mixer = block.mixer
            if type(mixer) is not MambaLayer:
                return "only Mamba layers"
            ssm = mixer.config
            if ssm.exact_zoh or ssm.precise or ssm.proj_bias:
                return "only Mamba layers without exact_zoh, precise and proj_bias"
            if (ssm.complex, ssm.selective) not in ((False, True), (True, False)):
                return "only real selective and complex fixed layers"
            if mixer.d_inner % _LEAST_WIDTH or mixer.d_inner > 2 * _WIDEST:
                return f"only inner widths that are multiples of {_LEAST_WIDTH}, up to {2 * _WIDEST}"
            if ssm.d_state & (ssm.d_state - 1):
                return "only states whose number is a power of two"
            kinds.add((ssm.complex, ssm.d_state, ssm.d_conv, mixer.d_inner, mixer.dt_rank))
        if len(kinds) > 1:
            return "only tiers whose blocks are alike"
    return None


def packed_unet(model: UNetModel, allowed: Sequence[int], dtype: torch.dtype, **options: Any) -> UNetNetwork:
    """The model's weights as they are now, with matrices in fp32 or bf16; options as of `pack_unet`."""
    from mamba_bio_audio.kernels.decode.unet_pack import TierWeights, pack_unet

    tiers = []
    for number, blocks in enumerate(_tiers_of(model)):
        layers = [_layer(block) for block in blocks]
        if number == len(model.down_pools):
            tiers.append(TierWeights(layers))
            continue
        down, up = (cast(nn.Linear, pools[number].linear) for pools in (model.down_pools, model.up_pools))
        tiers.append(
            TierWeights(
                layers,
                len(cast(nn.ModuleList, model.down[number])),
                model.model_config.pools[number],
                (down.weight, down.bias),
                (up.weight, up.bias),
            )
        )
    return pack_unet(
        tiers,
        model.embedding.weight,
        model.norm_f.weight,
        (model.lm_head.weight, model.lm_head.bias),
        allowed,
        dtype=dtype,
        eps=model.model_config.norm_eps,
        **options,
    )


def rows_of(case: UNetCase, state: UNetState, last: Tensor) -> UNetRows:
    """The kernel's state from the model's, which is not changed, and the last symbols (R, 1)."""
    from mamba_bio_audio.kernels.decode.unet_pack import TierRows, UNetRows

    tiers = []
    for own in state.tiers:
        tails, h = _stacked((*own.down, *own.up))
        tiers.append(TierRows(tails, h, own.remainder, own.queue))
    tiers.append(TierRows(*_stacked(state.centre)))
    return UNetRows.of(case, tiers, last[:, 0], state.phase)


def state_of(rows: UNetRows) -> UNetState:
    """The model's state from the kernel's."""
    tiers: list[TierState] = []
    for case, part in zip(rows.case.tiers, rows.tiers, strict=True):
        states = [MambaState(*both) for both in zip(part.tails.unbind(1), part.h.unbind(1), strict=True)]
        if part.frames is None or part.queue is None:
            return UNetState(tuple(tiers), tuple(states), rows.phase)
        tiers.append(TierState(tuple(states[: case.down]), tuple(states[case.down :]), part.frames, part.queue))
    raise AssertionError("the centre has no pool")


class GpuUNet:
    """Runs the steps of a U-Net on a GPU; `unsupported_reason` says of which.

    Args:
        model: in fp32, on a GPU. Its weights are read now.
        allowed: ids that may be drawn, in order.
        temperature, top_k, top_p: as in `generate`.
        precision: of the matrices, "fp32" or "bf16"; sums, state and everything else are fp32.
        rows: of a call.
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
        rows: int = 1,
    ) -> None:
        assert isinstance(model, UNetModel)
        self.model = model
        self.drawing: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        device = next(model.parameters()).device
        # Triton's interpreter runs one program after the other.
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        # Three programs a row where all find a place at once, else one; two of these on a multiprocessor where they are many
        # (in fp32 the compiler takes minutes for so few registers).
        self.split = rows * _PROGRAMS_OF_A_ROW <= processors
        self.network = packed_unet(
            model,
            allowed,
            torch.bfloat16 if precision == "bf16" else torch.float32,
            warps=8 if rows > processors and precision == "bf16" else 16,
        )

    def __call__(self, last: Tensor, state: Any, draws: Tensor) -> tuple[Tensor, Tensor, Any]:
        """As `decoding.steps`: symbols (n, R), log-probabilities (n, R), and the state before the last symbol, as `Kept`.

        Everything is queued and nothing waited for; `lost.confirm` says whether the programs have met.
        """
        from mamba_bio_audio.kernels.decode.unet import decode_unet

        if isinstance(state, Kept):
            moving = state.own.copy()
        else:
            state = self.model.init_state(len(last), last.device) if state is None else state
            moving = rows_of(self.network.case, state, last)
        symbols, scores, _, moving = decode_unet(self.network, moving, draws, split=self.split, **self.drawing)
        return symbols.long(), scores, Kept(moving, state_of)


def _tiers_of(model: UNetModel) -> list[list[Block]]:
    """Blocks of each tier, down and then up, from the finest."""
    tiers = [[*down, *up] for down, up in zip(model.down, model.up, strict=True)]  # type: ignore[misc]
    return [*tiers, list(model.centre)]  # type: ignore[list-item]


def _layer(block: Block) -> Layer | FixedLayer:
    from mamba_bio_audio.kernels.decode.pack import Layer
    from mamba_bio_audio.kernels.decode.unet_pack import FixedLayer

    w = cast(MambaLayer, block.mixer).weights()
    norm = cast(Tensor, block.norm.weight)
    if w.x_proj is None:
        assert w.B is not None
        assert w.C is not None
        return FixedLayer(norm, w.in_proj, w.conv, w.conv_bias, w.dt_bias, w.A(), w.B, w.C, w.D, w.out_proj)
    assert w.dt_proj is not None
    return Layer(norm, w.in_proj, w.conv, w.conv_bias, w.x_proj, w.dt_proj, w.dt_bias, w.A_log, w.D, w.out_proj)


def _stacked(states: Sequence[MambaState]) -> tuple[Tensor, Tensor]:
    """Tails and states of layers (R, layers, ...)."""
    tails, h = (torch.stack(parts, 1) for parts in zip(*states, strict=True))
    return tails, h
