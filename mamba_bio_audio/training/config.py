"""Configuration of training (torch-free)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Beta = Annotated[float, Field(ge=0, lt=1)]


class LengthStage(BaseModel):
    """One stage of the length warm-up, before training at full length."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    length: int = Field(ge=1, description="positions per sequence; a divisor of train.length")
    epochs: float | None = Field(None, gt=0, description="passes through the training windows of this length")
    steps: int | None = Field(None, ge=1, le=10**12, description="optimiser steps")

    @model_validator(mode="after")
    def _one_duration(self) -> LengthStage:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"the stage of length {self.length:,} needs either epochs or steps")
        return self


class TrainConfig(BaseModel):
    """Optimisation settings of one run; the defaults are those of the paper's DNA runs (sections 4.3 and E.3.2)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    init: str | None = Field(
        None,
        description="language model whose weights pretraining begins with, instead of random ones, and whose architecture "
        "becomes the section model: a run, an export, a packaged name, Hugging Face or mamba_ssm weights",
    )
    steps: int = Field(ge=1, le=10**12, description="optimiser steps")
    length: int = Field(ge=1, le=10**12, description="positions per sequence")
    tokens_per_step: int = Field(ge=1, le=10**15, description="positions per optimiser step, over all devices")
    length_warmup: tuple[LengthStage, ...] = Field(
        (),
        description="shorter lengths to train at first, each for some epochs or steps, on the same learning-rate "
        "schedule; train.steps includes them",
    )
    length_warmup_keeps: Literal["positions", "sequences"] = Field(
        "positions",
        description="what stays constant per step during the length warm-up: positions, or sequences, as in the paper's "
        "fine-tuning of classifiers, whose loss has one term per sequence",
    )
    micro_batch: int | None = Field(
        None, ge=1, description="full-length sequences per device and forward pass; null chooses by device"
    )
    lr: float = Field(gt=0, description="peak learning rate of AdamW")
    lr_head: float | None = Field(
        None, gt=0, description="peak learning rate of a classifier's head; null uses lr, as for the backbone"
    )
    lr_ssm: float | None = Field(
        None,
        gt=0,
        description="peak learning rate of the state space parameters (A, fixed B and C, D, step size), which have no weight "
        "decay; null uses lr",
    )
    lr_layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor of the learning rate from each layer to the one before it, and to the embedding; below 1 the first "
        "layers of a pretrained model change least",
    )
    lr_min: float = Field(1e-5, ge=0, description="learning rate at the end of the cosine schedule")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps over which the learning rate rises linearly")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="betas of AdamW")
    weight_decay: float = Field(
        0.1, ge=0, description="weight decay of matrices; norms, biases, embeddings, A and D have none"
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of every layer's output that training sets to zero, drawn anew for each position and channel, "
        "where data repeat; the draws depend on micro_batch and devices, and steps are not recorded",
    )
    clip: float | None = Field(1.0, gt=0, description="clip the gradient to this norm; null does not clip")
    listen: int = Field(
        0,
        ge=0,
        description="audio only: number of clips (train.length samples, at most 1 s) to generate at every validation and "
        "write to TensorBoard; their distance from validation clips selects the weights best-samples",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a moving average of the weights, updated every step; the average is what is validated and "
        "kept as the best; null keeps none",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto means bf16 on CUDA, fp32 on the CPU")
    recompute: Literal["none", "layer"] = Field(
        "none", description="layer: keep only layer inputs for the backward pass, and run each layer twice"
    )
    stream_chunk: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description="positions per chunk of exact streamed backpropagation, which needs the memory of one chunk at any "
        "length; auto measures, and takes the largest power of two that fits the device; null does not stream",
    )
    stream_offload: bool = Field(False, description="keep the states between chunks in host memory")
    truncate_chunk: int | None = Field(
        None,
        ge=1,
        description="NOT EXACT: truncated backpropagation through time in chunks of this many positions; the state is "
        "carried from chunk to chunk, but its gradient is dropped",
    )
    cuda_graph: bool | Literal["auto"] = Field(
        "auto",
        description="on a GPU, record the forward and backward pass of a step, or of a chunk of stream_chunk, once and "
        "replay it, because launching the steps of small models takes longer than running them; auto does so for steps on "
        "one device that have no dropout and took at most 40 % of its memory, because the graph holds that memory during "
        "validation too; chunks that do not divide the length, or are truncated or offloaded, are not recorded",
    )
    devices: int = Field(1, ge=1, description="devices per node, one process each, that train together")
    nodes: int = Field(1, ge=1, description="machines that train together, started by torchrun or SLURM")
    sequence_parallel: int = Field(
        1,
        ge=1,
        description="devices that share each sequence, with exact results; other devices train on other sequences",
    )
    validate_every: int = Field(100, ge=1, description="steps between validations")
    validation_tokens: int | None = Field(
        None, ge=1, description="positions per validation, spread evenly over the split; null uses the whole split"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="stop after this many validations in a row without a better loss; null never stops early",
    )
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")
    log_every: int = Field(10, ge=1, description="steps between rows of metrics.csv")

    @model_validator(mode="after")
    def _divisible(self) -> TrainConfig:
        if self.devices * self.nodes % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel ({self.sequence_parallel}) must divide the {self.devices * self.nodes} devices "
                f"(devices x nodes)"
            )
        shortest = min([self.length, *(stage.length for stage in self.length_warmup)])
        if shortest < self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel: {self.sequence_parallel} devices cannot share {shortest} positions; lower it, or "
                f"choose longer sequences in length and length_warmup"
            )
        if self.sequence_parallel > 1 and self.truncate_chunk is not None:
            raise ValueError(
                "sequence_parallel is exact and truncate_chunk is not, so they exclude each other; set truncate_chunk=null"
            )
        if self.tokens_per_step % (self.length * self.data_parallel):
            unit = self.length * self.data_parallel
            below = max(unit, self.tokens_per_step // unit * unit)
            raise ValueError(
                f"tokens_per_step ({self.tokens_per_step:,}) must be a multiple of length times the number of devices "
                f"that train on different sequences ({self.length:,} x {self.data_parallel}), "
                f"for example {below:,}"
            )
        lengths = [stage.length for stage in self.length_warmup]
        if lengths != sorted(set(lengths)) or any(self.length % at or at == self.length for at in lengths):
            raise ValueError(
                f"the lengths of length_warmup ({', '.join(map(str, lengths))}) must increase, and each must be a proper "
                f"divisor of length ({self.length}), for example powers of two below a power of two"
            )
        if sum(stage.steps or 0 for stage in self.length_warmup) >= self.steps:
            raise ValueError(
                f"length_warmup takes {sum(stage.steps or 0 for stage in self.length_warmup):,} of {self.steps:,} "
                f"steps, so none are left at full length; raise steps or shorten the stages"
            )
        if self.truncate_chunk is not None and self.stream_chunk is not None:
            raise ValueError("stream_chunk is exact and truncate_chunk is not; set one of them to null")
        if self.cuda_graph is True and not self.can_record:
            raise ValueError(
                "cuda_graph=true requires steps on one device, whole or in chunks of equal length that are neither "
                "truncated nor offloaded; set it to auto or false, or set truncate_chunk to null, stream_offload to false, "
                "devices and nodes to 1, and stream_chunk to null or a divisor of length"
            )
        if self.stream_offload and self.stream_chunk is None and self.truncate_chunk is None:
            raise ValueError(
                "stream_offload requires chunks, because otherwise there are no states to keep; set stream_chunk, or "
                "stream_offload=false"
            )
        sequences = self.sequences_per_step // self.data_parallel
        if self.micro_batch is not None and sequences % self.micro_batch:
            # Searched only around the given value: there may be as many sequences as positions.
            around = range(max(1, self.micro_batch - 100_000), min(sequences, self.micro_batch + 100_000) + 1)
            divisors = [1, *(d for d in around if sequences % d == 0 and d > 1)]
            near = sorted(divisors, key=lambda d: abs(d - self.micro_batch))[:4]  # type: ignore[operator]
            raise ValueError(
                f"micro_batch ({self.micro_batch}) must divide the {sequences} sequences per device and step; "
                f"near values: {', '.join(map(str, sorted(near)))}"
            )
        return self

    @property
    def can_record(self) -> bool:
        """Whether `cuda_graph` can record the steps."""
        chunk = self.stream_chunk
        equal = not isinstance(chunk, int) or chunk >= self.length or self.length % chunk == 0
        whole = self.truncate_chunk is None and not self.stream_offload
        return equal and whole and self.devices * self.nodes == 1

    @property
    def data_parallel(self) -> int:
        """Groups of devices that train on different sequences."""
        return self.devices * self.nodes // self.sequence_parallel

    def accumulate(self, device: str) -> int:
        """Micro-batches per optimiser step."""
        return self.sequences_per_step // (self.micro_batch_for(device) * self.data_parallel)

    @property
    def chunk(self) -> int | None:
        """Positions per chunk, exact or truncated; None for the whole sequence."""
        if self.stream_chunk == "auto":
            raise ValueError("stream_chunk=auto must be resolved before training")
        return self.stream_chunk or self.truncate_chunk

    @property
    def sequences_per_step(self) -> int:
        """Sequences per optimiser step, over all devices."""
        return self.tokens_per_step // self.length

    def micro_batch_for(self, device: str) -> int:
        """Sequences per device and forward pass: `micro_batch`, or the largest divisor that suits the device.

        Args:
            device: "cpu" or "cuda", which process at most 2^14 and 2^18 positions at once.
        """
        if self.micro_batch is not None:
            return self.micro_batch
        sequences = self.sequences_per_step // self.data_parallel
        most = max(1, (2**14 if device == "cpu" else 2**18) * self.sequence_parallel // self.length)
        return max(d for d in range(1, min(most, sequences) + 1) if sequences % d == 0)


def resolve_precision(precision: str, device: str) -> str:
    """Resolve `auto`, which means bf16 on CUDA and fp32 on the CPU."""
    if precision == "auto":
        return "bf16" if device == "cuda" else "fp32"
    return precision
