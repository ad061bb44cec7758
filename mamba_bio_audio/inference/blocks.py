"""New symbols as the caller gets them, and as a GPU may still be making them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_bio_audio.inference.kept import model_state
from mamba_bio_audio.kernels.decode.lost import confirm


class Block(NamedTuple):
    """New symbols of some rows.

    Attributes:
        row: index of the first row.
        position: index of the first symbol; 0 is the first after the prompt.
        tokens: (R, n) on the CPU, uint8 if the allowed ids fit, else int32.
        log_likelihood: (R, n) fp64 on the CPU: log p of each symbol under the model's distribution restricted to the
            allowed symbols, before temperature, top-k and top-p; of a first symbol without prompt, log p in `initial`.
            It tells how probable the model considers its own sample; a low temperature raises it without making the
            sample more natural.
        state: the model's state after all of these symbols but the last, which it has not read; for `generate_blocks`.
        kept: the same as what runs the steps keeps it; `state` is made of it when it is asked for.
    """

    row: int
    position: int
    tokens: Tensor
    log_likelihood: Tensor
    kept: Any = None

    @property
    def state(self) -> Any:
        """The model's own, as in the class."""
        with torch.inference_mode():
            return model_state(self.kept)


def queues(device: torch.device) -> bool:
    """Whether steps run on while the host does something else."""
    return device.type == "cuda"


class Queued(NamedTuple):
    """A block that a GPU may still be making; letters as in `Block`, tensors on the host."""

    row: int
    position: int
    tokens: Tensor
    log_likelihood: Tensor
    state: Any
    done: torch.cuda.Event | None

    @classmethod
    def of(cls, row: int, position: int, tokens: Tensor, log_likelihood: Tensor, state: Any) -> Queued:
        """From tensors (R, n) on the device; without waiting for it."""
        if not tokens.is_cuda:
            return cls(row, position, tokens, log_likelihood, state, None)
        # The host sleeps until then, and leaves its core to others.
        done, device = torch.cuda.Event(blocking=True), tokens.device
        tokens, log_likelihood = (
            torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part.contiguous(), non_blocking=True)
            for part in (tokens, log_likelihood)
        )
        done.record(torch.cuda.current_stream(device))
        return cls(row, position, tokens, log_likelihood, state, done)

    def block(self) -> Block:
        """Waits for it.

        Raises:
            FloatingPointError: logits are not finite.
            RuntimeError: programs on the GPU have lost each other.
        """
        if self.done is not None:
            self.done.synchronize()
        if not torch.isfinite(self.log_likelihood).all():
            confirm(self.log_likelihood)
            raise FloatingPointError(
                f"the model's logits become NaN or infinite within positions {self.position} to "
                f"{self.position + self.tokens.shape[1] - 1}; use other weights, or higher precision"
            )
        return Block(self.row, self.position, self.tokens.clone(), self.log_likelihood.clone(), self.state)
