"""Classifier-free guidance (Ho & Salimans 2022): a model of one class that says more of the class than it was trained to.

    logits = c + w (c - u)      c those of the class, u those without a class, w the guidance

A tenth of the windows in training show no class, so one model has both. What is drawn is no longer what the model believes
sequences of the class to be, but what tells them from others.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mamba_bio_audio.models.contract import ModelOutput


class Guided(nn.Module):
    """Two models, of a class and of none, that read the same symbols; follows the common contract as far as sampling needs.

    Args:
        base: model with classes.
        name: of the class.
        guidance: w; 0 is the model of the class.
    """

    def __init__(self, base: Any, name: str, guidance: float) -> None:
        super().__init__()
        self.own, self.none, self.guidance = base.of_class(name), base, guidance
        self.streaming, self.model_config, self.codec = base.streaming, self.own.model_config, base.codec
        # Whoever sets a mode for the steps sets back the one that is found here, of both models.
        self.train(base.training)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Any, Any]:
        """The states of both."""
        return self.own.init_state(batch, device, dtype), self.none.init_state(batch, device, dtype)

    def forward(
        self, tokens: Tensor, state: Any = None, *, logits: Literal["all", "last", "none"] = "all"
    ) -> ModelOutput:
        """As every model; ids are those of symbols without a class."""
        states = (None, None) if state is None else state
        own, none = (
            model(tokens, before, logits=logits) for model, before in zip((self.own, self.none), states, strict=True)
        )
        found = None if own.logits is None else own.logits + self.guidance * (own.logits - none.logits)
        return ModelOutput(found, None, None, (own.state, none.state))
