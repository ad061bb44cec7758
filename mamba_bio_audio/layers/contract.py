"""What a sequence layer is, and the registry of mixers that models are built from (torch-free).

    layer.forward(x, state=None, *, reset=None) -> (y, state)     x, y: (B, L, D), any L >= 1; None means a zero state
    layer.init_state(batch, device, dtype) -> state               dtype is the activation dtype
    layer.streaming: "constant" | "growing" | "none"              size of the state against L

Laws, checked over every entry of the registry (`tests/test_laws.py`): *split* (pieces with the state carried equal the
whole, values and gradients through the state), *step* (L = 1 repeated equals one call), *causal*, *independent rows*,
*packed* (a reset starts a separate sequence). Tolerances: 1e-10 in fp64, 1e-5 of the largest value in fp32.

A mixer is one file in this folder: its configuration, registered under a name, and its layer.

    @mixer("toy")
    class ToyConfig(MixerConfig):
        decay: float = Field(0.9, gt=0, lt=1, description="...")

        def layers(self, width, residuals): return [ToyLayer(width, self.decay)]
        def num_parameters(self, width): return 0

Configurations that recipes are checked against before torch is needed stand in `config.py`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Streaming = Literal["constant", "growing", "none"]


class Layer(Protocol):
    """A causal layer over sequences with an explicit, differentiable state; an `nn.Module`.

    Attributes:
        streaming: size of the state against L: "constant" (Mamba, S4D, convolutions, pooling), "growing" (a KV cache),
            or "none": the layer cannot carry a state and raises `ValueError` on `state=`.
        resets: whether sequences may begin inside a span; a layer with `resets = False` raises `ValueError` on `reset=`.
    """

    streaming: Streaming
    resets: bool

    def init_state(self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = ...) -> Any:
        """The state before the first position: tensors, batch first, in any nesting. `dtype` is the activation dtype."""

    def forward(self, x: Tensor, state: Any = None, *, reset: Tensor | None = None) -> tuple[Tensor, Any]:
        """Apply the layer to a span.

        Args:
            x: (B, L, D), any L >= 1.
            state: at the end of the span before; None means zeros.
            reset: bool (B, L), the state is zeroed before these positions (packed sequences).

        Returns:
            y (B, L, D), and the state at the end of the span, with gradients both ways. Inputs are never changed.
        """


class Flops(NamedTuple):
    """Floating-point operations of one token in the forward pass; a multiplication and an addition are two.

    Attributes:
        maps: products with matrices of weights.
        rest: what makes the mixer what it is: scan, attention, convolutions. Activations, gates and norms are left out.
    """

    maps: float
    rest: float


class MixerConfig(BaseModel):
    """Settings of one mixer."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @property
    def streaming(self) -> Streaming:
        """How the state of its layers grows with the length; a model of several has the weakest guarantee."""
        return "constant"

    @property
    def longest(self) -> int | None:
        """Positions of a sequence at most; None for any number."""
        return None

    @property
    def residuals(self) -> int:
        """Layers per block, each with a norm and a residual of its own: 2 for attention followed by an MLP."""
        return 1

    def check_width(self, width: int) -> None:
        """Refuse a width D that does not suit the settings.

        Raises:
            ValueError: the message names the setting.
        """

    def layers(self, width: int, residuals: int) -> list[nn.Module]:
        """Freshly initialised layers of one block.

        Args:
            width: channels D of input and output.
            residuals: residual branches of the network; output projections are initialised scaled by 1/sqrt(residuals).
        """
        raise NotImplementedError

    def num_parameters(self, width: int) -> int:
        """Parameters of one block without its norms, counted without building it."""
        raise NotImplementedError

    def flops(self, width: int, length: int) -> Flops:
        """Operations of one block.

        Args:
            width: channels D.
            length: positions L of a sequence, over which what depends on it is averaged.
        """
        raise NotImplementedError


class Mixer(NamedTuple):
    """An entry of the registry."""

    config: type[MixerConfig]
    preset: dict[str, Any]  # what the name implies for settings that are left out (None)


_REGISTRY: dict[str, Mixer] = {}
_Config = TypeVar("_Config", bound=type[MixerConfig])


def mixer(name: str, **preset: Any) -> Callable[[_Config], _Config]:
    """Register a configuration class under a mixer's name; several names may share a class with different presets.

    Raises:
        ValueError: the name is taken.
    """

    def register(config: _Config) -> _Config:
        if name in _REGISTRY:
            raise ValueError(f"two mixers are named {name!r}")
        _REGISTRY[name] = Mixer(config, preset)
        return config

    return register


def find_mixer(name: str) -> Mixer:
    """The mixer of a name; files of this folder are imported only where the name is not of `config.py`.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    import_module("mamba_bio_audio.layers.config")
    found = _REGISTRY.get(name) or mixers().get(name)
    if found is None:
        raise ValueError(f"there is no {name!r}; allowed: {' | '.join(sorted(_REGISTRY))}")
    return found


def mixers() -> dict[str, Mixer]:
    """Every mixer by name."""
    layers = import_module("mamba_bio_audio.layers")
    for file in pkgutil.iter_modules(layers.__path__):
        import_module(f"{layers.__name__}.{file.name}")
    return dict(_REGISTRY)
