"""What a model reads: symbols, a start token that is only ever read, and the class of a sequence.

    x = E[i] + C[k]      id = i + k S,   S = number of symbols, and one more for the start token

E has a row for every symbol, and S for the start token; C has a row for every class, and C[0] = 0: ids below S are of
sequences without a class. Outputs know neither start token nor classes. For one class, E + C[k] is a plain table.

A U-Net also adds vectors of the class to what each pool makes of its frames. Among samples a constant is in the way, and
training shrinks C until the class has hardly a say (digits: a twentieth of E, and one clip in six is the digit asked for).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.lookup import Embedding, lookup
from mamba_bio_audio.models.unet_config import UNetConfig


class InputEmbedding(Embedding):
    """Embedding (padded vocabulary, D) of symbols, with parameters of its own for start token and classes.

    Args:
        padded: rows of `weight`, which a head may share.
        width: D.
        symbols: ids that are also predicted.
        inputs: S, ids of a sequence without a class.
        classes: number of classes.
    """

    def __init__(self, padded: int, width: int, *, symbols: int, inputs: int, classes: int) -> None:
        super().__init__(padded, width)
        self.symbols, self.inputs = symbols, inputs
        self.start = nn.Parameter(torch.empty(inputs - symbols, width)) if inputs > symbols else None
        self.classes = nn.Parameter(torch.empty(classes, width)) if classes else None
        for own in (self.start, self.classes):
            if own is not None:
                nn.init.normal_(own, std=0.02)

    def table(self, number: int = 0) -> Tensor:
        """Rows (S, D) of the ids of one class, 0 for none."""
        rows = self.weight[: self.symbols]
        if self.start is not None:
            rows = torch.cat([rows, self.start])
        return rows if number == 0 or self.classes is None else rows + self.classes[number - 1]

    def forward(self, ids: Tensor) -> Tensor:
        """(..., D) of ids (...) from 0 to S (classes + 1) - 1."""
        if self.classes is None:
            return lookup(ids, self.table())
        number = class_of(ids, self.inputs)
        return lookup(ids - number * self.inputs, self.table()) + of_classes(self.classes, number)

    def of_class(self, number: int) -> nn.Embedding:
        """The embedding of one class as a plain table (S, D), a copy without gradients."""
        return nn.Embedding.from_pretrained(self.table(number).detach().clone(), freeze=True)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, symbols={self.symbols}, inputs={self.inputs}"


def class_of(ids: Tensor, inputs: int) -> Tensor:
    """Numbers of the classes of ids, 0 for none; `inputs` is S."""
    return ids.div(inputs, rounding_mode="floor")


def of_classes(vectors: Tensor, number: Tensor) -> Tensor:
    """Vectors (..., D) of classes (...) by number, from (K, D); zeros for 0."""
    # A row of zeros instead of a branch: where no sequence has a class, the gradient is zero, not missing.
    return lookup(number, F.pad(vectors, (0, 0, 1, 0)))


def input_embedding(config: ModelConfig | UNetConfig, padded: int) -> Embedding:
    """The embedding of a configuration, initialised; a plain one where there is neither start token nor class."""
    assert config.vocab_size is not None
    if config.num_inputs > config.vocab_size or config.class_names:
        classes = len(config.class_names)
        embedding: Embedding = InputEmbedding(
            padded, config.d_model, symbols=config.vocab_size, inputs=config.num_inputs, classes=classes
        )
    else:
        embedding = Embedding(padded, config.d_model)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding
