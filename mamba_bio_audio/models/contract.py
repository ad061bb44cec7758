"""What a model of sequences is: causal layers under one head, with the state of all of them.

    model(tokens, state=None, *, reset=None, targets=None, logits="all"|"last"|"none") -> ModelOutput
    model.hidden(tokens, state=None, *, reset=None, layer=None) -> (hidden, state)
    model.init_state(batch, device, dtype) -> state

A model obeys the laws of its layers (`layers/contract.py`). Decoding is a faster path for the same mathematics, never a
second model. Training in chunks (`train.stream_chunk`), memory that does not grow with the length, and sequences of a
million symbols are for models whose layers all have a constant state; asking otherwise is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from mamba_bio_audio.errors import InputError


class ModelOutput(NamedTuple):
    """Result of one forward call.

    The loss is a sum, so that chunks, micro-batches and ranks add up exactly; divide by `count` for the mean.
    """

    logits: Tensor | None  # (B, L, V), (B, 1, V) with logits="last", None with logits="none"
    loss_sum: Tensor | None  # scalar, nats, fp32; None without targets
    # Scalar int64, number of scored targets; None without targets. It shadows tuple.count, which nobody calls here.
    count: Tensor | None  # type: ignore[assignment]
    state: Any  # state at the end of the span, for the next call


# torch.export.save refers to structures by name.
_register_namedtuple(ModelOutput, serialized_type_name="mamba_bio_audio.ModelOutput")


class SequenceModel(nn.Module):
    """Base of every model.

    Attributes:
        config, codec, manifest: those of the run that the weights come from; set by `run.saved.load`.
        labels: names of a head's outputs in their order, such as classes; empty where it predicts the next symbol.
    """

    config: Any = None
    codec: Any = None
    manifest: Mapping[str, Any] = {}
    labels: tuple[str, ...] = ()

    @property
    def likelihood(self) -> bool:
        """Whether its loss is a negative log-likelihood, in nats."""
        return True

    @property
    def streaming(self) -> str:
        """How the state grows with L: the weakest guarantee of any layer, "none" before "growing" before "constant"."""
        kinds = {layer.streaming for layer in self.modules() if layer is not self and hasattr(layer, "streaming")}
        return next(kind for kind in ("none", "growing", "constant") if kind in kinds)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Any:
        """The state before the first symbol; `dtype` is the activation dtype."""
        raise NotImplementedError

    def forward(
        self,
        tokens: Tensor,
        state: Any = None,
        *,
        reset: Tensor | None = None,
        targets: Tensor | None = None,
        logits: Literal["all", "last", "none"] = "all",
    ) -> ModelOutput:
        """Run the model on a span of symbols.

        The loss is computed here, so that it passes through `DistributedDataParallel`, and without all logits in memory.

        Args:
            tokens: (B, L) integer symbols.
            state: state at the end of the preceding span; None at the start of a sequence.
            reset: bool (B, L), a new sequence starts at these positions.
            targets: (B, L) what is predicted at each position, -100 where nothing is scored.
            logits: positions whose logits to return.
        """
        raise NotImplementedError

    def hidden(
        self, tokens: Tensor, state: Any = None, *, reset: Tensor | None = None, layer: int | None = None
    ) -> tuple[Tensor, Any]:
        """Hidden states (B, L, D), and the state at the end of the span.

        Args:
            tokens: (B, L) integer symbols.
            state: state at the end of the preceding span; None at the start of a sequence.
            reset: bool (B, L), a new sequence starts at these positions.
            layer: None returns the normalised final hidden states, the input of heads. A number returns the residual
                stream behind that layer, not normalised, in fp32 or fp64; negative numbers count from the last layer.
                Later layers may not run, so the state is then only for further calls with the same number.

        Raises:
            InputError: there is no such layer.
        """
        raise NotImplementedError

    def targets_in(self, targets: Tensor) -> int:
        """Number of targets that a batch of shape (B, L) can have, scored or not, by which its loss is divided."""
        return targets.numel()

    def some_targets(self, tokens: Tensor) -> Tensor:
        """Targets that could stand beside tokens (B, L), to measure what training takes."""
        return tokens

    @property
    def hidden_layers(self) -> int:
        """Number of layers that `hidden` can return: those with an output at every position."""
        raise NotImplementedError

    def find_layer(self, layer: int) -> int:
        """The index from 0 of a layer; negative numbers count from the last.

        Raises:
            InputError: there is no such layer.
        """
        count = self.hidden_layers
        if not -count <= layer < count:
            raise InputError(
                f"layer {layer}: this model has {count} layers to choose from; give 0 to {count - 1}, or -{count} to -1"
            )
        return layer % count

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that it generates by (`model.classes`); empty where there are none."""
        config: Any = self.model_config
        return tuple(config.class_names)

    def of_class(self, name: str) -> Self:
        """This model for sequences of one class: a copy with the same weights, which reads plain ids.

        Everything that takes a model takes it: `mba.log_likelihood(model.of_class("seven"), audio)`.

        Raises:
            InputError: there is no such class; the message lists those there are.
        """
        if name not in self.classes:
            known = f"choose from {', '.join(self.classes)}" if self.classes else "it was trained without model.classes"
            raise InputError(f"no class {name!r} in this model; {known}")
        embedding: Any = self.embedding
        config: Any = self.model_config
        view = copy.copy(self)
        view._modules = {**self._modules, "embedding": embedding.of_class(self.classes.index(name) + 1)}
        view.model_config = config.model_copy(update={"classes": None})
        return view

    def start_from(self, source: nn.Module) -> None:
        """Take over the weights of a pretrained model, without its head.

        Args:
            source: language model or classifier.

        Raises:
            InputError: its backbone has another configuration.
        """
        own: Any = getattr(self, "backbone", self)
        found: Any = getattr(source, "backbone", source)
        wanted, given = (model.model_config.model_dump(mode="json") for model in (own, found))
        different = [
            f"model.{key} is {wanted[key]}, not {given.get(key)}" for key in wanted if wanted[key] != given.get(key)
        ]
        if different:
            remedy = "data.start" if wanted["inputs"] != given.get("inputs") else "model.*"
            raise InputError(f"a model of another shape: {'; '.join(different)}; set {remedy} to match")
        own.load_state_dict(found.state_dict())

    def encode(self, sequence: Any) -> Tensor:
        """Ids of one sequence, int64 (1, L), as this model, `mba.generate` and `mba.log_likelihood` take them.

        Args:
            sequence: text of DNA, or float samples of audio in [-1, 1].

        Raises:
            InputError: the model has no codec (foreign weights), or the sequence is nothing that it reads.
        """
        codec = self._need_codec()
        codec.check_sequence(sequence)
        return torch.from_numpy(codec.encode(sequence)).long().reshape(1, -1)

    def decode(self, tokens: Any) -> Any:
        """What ids stand for: text of DNA, or float32 samples of audio; the inverse of `encode`.

        Args:
            tokens: integer ids (L,) or (1, L) of one sequence, or (B, L) of several.

        Returns:
            One sequence, or a list of B of them.

        Raises:
            InputError: the model has no codec (foreign weights), or these are no ids that it knows.
        """
        codec = self._need_codec()
        try:
            rows = torch.as_tensor(tokens).cpu()
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"decode() takes integer ids (L,) or (B, L), not {tokens!r:.60}") from None
        if rows.ndim not in (1, 2):
            raise InputError(f"decode() takes ids of shape (L,) or (B, L), not {tuple(rows.shape)}")
        try:
            decoded = [codec.decode(row.numpy()) for row in (rows[None] if rows.ndim == 1 else rows)]
        except ValueError as error:
            raise InputError(str(error)) from None
        return decoded[0] if len(decoded) == 1 else decoded

    def _need_codec(self) -> Any:
        if self.codec is None:
            raise InputError("these weights came without a codec; pass token ids, and read ids")
        return self.codec

    def num_parameters(self) -> int:
        """Number of parameters, frozen ones included; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())
