"""Language model: identical layers on a residual stream (paper section 3.4; mamba_ssm `mixer_seq_simple.py`).

    r = embedding(tokens);  for each layer: r = r + mixer(norm(r));  logits = head(norm(r))

Legend: B batch, L length, D channels, V padded vocabulary.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from mamba_bio_audio.layers.norm import RMSNorm
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.contract import ModelOutput, SequenceModel
from mamba_bio_audio.models.inputs import input_embedding
from mamba_bio_audio.models.kept import Keeper, Kept
from mamba_bio_audio.ops import linear_cross_entropy
from mamba_bio_audio.ops.keeping import mixers_keep
from mamba_bio_audio.ops.rms_norm import norm_of_stream


class Block(nn.Module):
    """Pre-norm residual block; the residual stream is passed beside the last mixer's output, to fuse the addition."""

    norm: RMSNorm

    def __init__(self, norm: RMSNorm, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = mixer
        self.dropout = nn.Dropout(0.0)

    def forward(
        self, x: Tensor, residual: Tensor | None, state: Any, reset: Tensor | None, *, keep_norm: bool = True
    ) -> tuple[Tensor, Tensor, Any]:
        """Run the block.

        Args:
            x: (B, L, D), the previous mixer's output.
            residual: the stream before it is added.
            state, reset: as of a layer.
            keep_norm: else backward makes the output of the norm again, from the stream, which is kept anyway.
        """
        y, residual = self.norm(x, residual)
        with nullcontext() if keep_norm else made_again(y, residual, self.norm):
            y, state = self.mixer(y, state, reset=reset)
        return (self.dropout(y) if self.dropout.p else y), residual, state


def set_dropout(model: nn.Module, share: float) -> None:
    """In training, set this share of every layer's output to zero, drawn anew for each position and channel."""
    for module in model.modules():
        if isinstance(module, Block):
            module.dropout.p = share


def made_again(y: Tensor, stream: Tensor, norm: RMSNorm) -> saved_tensors_hooks:
    """Within it, whatever keeps `y` for its backward keeps the stream instead, of which `norm` made it."""
    address, size, dtype = y.data_ptr(), y.numel(), y.dtype
    source, weight = stream.detach(), norm.weight.detach()

    def pack(t: Tensor) -> Tensor | torch.Size:
        return t.shape if (t.data_ptr(), t.numel(), t.dtype) == (address, size, dtype) and t.is_contiguous() else t

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        return kept if isinstance(kept, Tensor) else norm_of_stream(source, weight, norm.eps, dtype).view(kept)

    return saved_tensors_hooks(pack, unpack)


class IsotropicModel(SequenceModel):
    """Causal language model over `vocab_size` symbols; obeys the laws of `layers/contract.py`.

    Attributes:
        recompute: "layer" keeps only each layer's input for backward and runs the layer again there.
        keeper: chooses what layers keep for their backward.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("ModelConfig.vocab_size must be set to build a model")
        self.model_config = config
        mixers = [mixer for _, mixer in config.layer_mixers]
        total = sum(mixer.residuals for mixer in mixers)
        padded = -(-config.vocab_size // config.vocab_multiple) * config.vocab_multiple
        self.recompute: Literal["none", "layer"] = "none"
        self.keeper = Keeper()
        self.embedding = input_embedding(config, padded)
        self.layers = nn.ModuleList(
            Block(RMSNorm(config.d_model, config.norm_eps), layer)
            for mixer in mixers
            for layer in mixer.layers(config.d_model, total)
        )
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)
        self.lm_head = nn.Linear(config.d_model, padded, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Any, ...]:
        """Zero state of every layer; `dtype` is the activation dtype."""
        return tuple(block.mixer.init_state(batch, device, dtype) for block in self.layers)  # type: ignore

    def forward(
        self,
        tokens: Tensor,
        state: tuple[Any, ...] | None = None,
        *,
        reset: Tensor | None = None,
        targets: Tensor | None = None,
        logits: Literal["all", "last", "none"] = "all",
    ) -> ModelOutput:
        """Run the model on a span of symbols.

        Args:
            tokens: (B, L) integer symbols.
            state: state at the end of the preceding span; None at the start of a sequence.
            reset: bool (B, L), a new sequence starts at these positions.
            targets: (B, L) the symbol that follows each position, -100 where nothing is scored.
            logits: positions whose logits to return.
        """
        hidden, state = self.hidden(tokens, state, reset=reset)
        loss_sum = count = None
        if targets is not None:
            loss_sum, count = linear_cross_entropy(hidden, self.lm_head.weight, targets)
        out = None
        if logits != "none":
            out = self.lm_head(hidden if logits == "all" else hidden[:, -1:])
        return ModelOutput(out, loss_sum, count, state)

    def hidden(
        self,
        tokens: Tensor,
        state: tuple[Any, ...] | None = None,
        *,
        reset: Tensor | None = None,
        layer: int | None = None,
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Hidden states (B, L, D), and the state; `models/contract.py` describes the arguments.

        A transformer's layer is attention and MLP together.
        """
        states = (None,) * len(self.layers) if state is None else state
        x, residual = self.embedding(tokens), None
        new_states = []
        recompute = self.recompute == "layer" and torch.is_grad_enabled()
        # Layers behind the one that is wanted do not run.
        wanted = len(self.layers)
        if layer is not None:
            # A layer with an MLP is two blocks.
            wanted = sum(mixer.residuals for _, mixer in self.model_config.layer_mixers[: self.find_layer(layer) + 1])
        kept = None if recompute else self.choice(tokens.numel(), tokens.device)
        with nullcontext() if kept is None else mixers_keep(kept.steps, kept.inputs):
            for block, layer_state in zip(self.layers[:wanted], states[:wanted], strict=True):
                if recompute:
                    again: Any = {"use_reentrant": False, "preserve_rng_state": bool(cast(Block, block).dropout.p)}
                    x, residual, layer_state = checkpoint(block, x, residual, layer_state, reset, **again)
                else:
                    keep = kept is None or kept.norms
                    x, residual, layer_state = block(x, residual, layer_state, reset, keep_norm=keep)
                new_states.append(layer_state)
        if layer is not None:
            assert residual is not None
            return x + residual, (*new_states, *states[wanted:])
        y, _ = self.norm_f(x, residual)
        return y, tuple(new_states)

    def choice(self, positions: int, device: torch.device) -> Kept | None:
        """What layers keep for the backward of a step of so many positions (`models/kept.py`)."""
        return self.keeper.choice([(block, 1.0) for block in self.layers], positions, device)

    @property
    def hidden_layers(self) -> int:
        """Every layer."""
        return self.model_config.num_layers
