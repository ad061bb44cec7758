"""A temperature that follows what is drawn, so that long samples neither fade away nor turn into noise.

    T_t = T min(1.3, max(0.75, (b0 / b_t)^g))     b_t: mean of -log p(x_s | x_<s) at temperature 1 over about the last 16,384
                                                  symbols, weights falling exponentially; b0: validation's; g the hold

Where the sound has become less probable than recordings are, the temperature falls, and it rises where it has become more
probable. That is what Mirostat does for text (Basu et al. 2021), there by what is cut off.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from mamba_bio_audio.models.contract import ModelOutput

_OVER = 1 << 14
_LOWEST, _HIGHEST = 0.75, 1.3
# Nats per symbol below which a sample counts as silent, so that nothing divides by zero.
_LEAST = 0.03


class Held(nn.Module):
    """A model that also says by what its temperature is multiplied: logits (R, 1, V + 1), of the last position, that last.

    Its state is that of the model, b_t (R, 1) and log p of the next symbol (R, A); it follows the common contract as far as
    sampling needs.

    Args:
        base: a language model, or one with guidance.
        gain: g, one for all rows or (R, 1).
        nats: b0, per symbol.
        allowed: ids that may be drawn (A,).
    """

    def __init__(self, base: Any, gain: float | Tensor, nats: float, allowed: Tensor) -> None:
        super().__init__()
        self.base, self.gain, self.nats = base, gain, nats
        self.streaming, self.model_config, self.codec = base.streaming, base.model_config, base.codec
        place = torch.full((self.model_config.num_inputs,), -1, device=allowed.device)
        place[allowed] = torch.arange(len(allowed), device=allowed.device)
        self.allowed, self.place = allowed, place
        self.train(base.training)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Any, Tensor, Tensor]:
        """The state of the model, and what changes no temperature."""
        mean = torch.full((batch, 1), self.nats, dtype=torch.float64, device=device)
        expected = torch.full((batch, len(self.allowed)), -self.nats, dtype=torch.float32, device=device)
        return self.base.init_state(batch, device, dtype), mean, expected

    def forward(
        self, tokens: Tensor, state: Any = None, *, logits: Literal["all", "last", "none"] = "last"
    ) -> ModelOutput:
        """As every model; logits are those of the last position."""
        before, mean, expected = (None, *self.init_state(len(tokens), tokens.device)[1:]) if state is None else state
        output = self.base(tokens, before, logits="all")
        log_p = output.logits.index_select(2, self.allowed).float().log_softmax(2)
        index = self.place[tokens]
        told = torch.cat([expected[:, None], log_p[:, :-1]], 1)
        nats = -told.gather(2, index.clamp(min=0)[:, :, None])[:, :, 0].double()
        # What is never drawn, such as a start token, says nothing.
        nats = torch.where(index < 0, self.nats, nats)
        share = torch.full((tokens.shape[1],), 1 / _OVER, dtype=torch.float64, device=tokens.device)
        kept = (1 - share).cumprod(0)
        mean = mean * kept[-1] + (nats * share * kept.flip(0) / (1 - share)).sum(1, keepdim=True)
        factor = (self.nats / mean.clamp(min=_LEAST)).pow(self.gain).clamp(_LOWEST, _HIGHEST)
        last = output.logits[:, -1:]
        found = torch.cat([last.double(), factor[:, None]], 2)
        return ModelOutput(found, None, None, (output.state, mean, log_p[:, -1]))
