"""Lightning module for any model with a summed loss: next-symbol prediction and classification."""

from __future__ import annotations

import math
from functools import cached_property

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from mamba_bio_audio.models.contract import ModelOutput
from mamba_bio_audio.models.streamed import Chunking, has_dropout, streamed_loss
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.graphed import GraphedChunks, GraphedLoss
from mamba_bio_audio.training.optim import build_optimizer, divisor
from mamba_bio_audio.training.parallel import Relay, make_relay
from mamba_bio_audio.training.schedule import rate_after


class LanguageModelModule(L.LightningModule):
    """Trains `model(tokens, targets=...)` on its summed loss, divided by the batch's positions, or rows of a classifier.

    Everything scored weighs the same, whichever micro-batch or device it is in; if nothing is masked, this is the mean
    loss per position or row.

    Args:
        model: what is trained.
        config: optimisation settings.
        answers: targets of a sequence, by which the loss is divided where they are far fewer than its positions; None: all
            positions. Gradients would else be so small that Adam's eps, and no clipping, decided about them.

    Attributes:
        train_nats, train_count: summed loss (fp64, nats) and number of scored positions since `reset_train_sums`.
        positions: of all batches so far, which may be shorter than planned.
        grad_norm: norm of the last gradient, before clipping.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, answers: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.answers = answers
        self.train_config = config
        self.grad_norm = torch.tensor(math.nan)
        self.relay: Relay | None = None
        self.positions = 0
        self.reset_train_sums()

    def reset_train_sums(self) -> None:
        """Start summing the training loss afresh."""
        self.train_nats = torch.zeros((), dtype=torch.float64)
        self.train_count = torch.zeros((), dtype=torch.int64)

    def train_sums(self) -> Tensor:
        """This rank's loss and count since `reset_train_sums`, and its positions, (3,) fp64."""
        nats = self.train_nats.to(self.device)
        return torch.stack([nats, self.train_count.to(nats), torch.full_like(nats, self.positions)])

    def on_fit_start(self) -> None:
        """Adopt the chunk that the first process chose (`auto`), and connect the ranks that share a sequence."""
        if self.trainer.world_size > 1:
            keys = ("stream_chunk", "stream_offload")
            chosen = [getattr(self.train_config, key) for key in keys]
            chosen = self.trainer.strategy.broadcast(chosen)
            self.train_config = self.train_config.model_copy(update=dict(zip(keys, chosen, strict=True)))
        self.relay = make_relay(self.model, self.train_config.sequence_parallel)

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Summed nats and number of scored positions of a batch."""
        config, chunk = self.train_config, self.train_config.chunk
        rows, length = batch["tokens"].shape
        parts = config.sequence_parallel
        if parts > 1:
            chunk = chunk or -(-length // parts)
        if chunk is not None and (rows * length > chunk or parts > 1):
            together = max(1, self._sequences * chunk * parts // min(length, chunk * parts))
            if (
                rows <= together
                and length % chunk == 0
                and self._graphed_chunks is not None
                and torch.is_grad_enabled()
            ):
                return self._graphed_chunks(batch["tokens"], batch["targets"])
            loss_sum, count, _ = streamed_loss(
                self.model,
                batch["tokens"],
                batch["targets"],
                chunk=chunk,
                how=Chunking(together, config.stream_offload, truncate=config.truncate_chunk is not None),
                relay=self.relay,
            )
            return loss_sum, count
        if self._graphed is not None and torch.is_grad_enabled():
            return self._graphed(batch["tokens"], batch["targets"])
        out: ModelOutput = self.model(batch["tokens"], targets=batch["targets"], logits="none")
        assert out.loss_sum is not None
        assert out.count is not None
        return out.loss_sum, out.count

    @cached_property
    def _graphed(self) -> GraphedLoss | None:
        """The recorder of whole training steps; None if they are not recorded."""
        return GraphedLoss(self.model, most_memory=self._recorded_memory) if self._records else None

    @cached_property
    def _graphed_chunks(self) -> GraphedChunks | None:
        """The recorder of streamed training steps; None if they are not recorded."""
        chunk = self.train_config.chunk
        if chunk is None or not self._records:
            return None
        return GraphedChunks(self.model, chunk, most_memory=self._recorded_memory)

    @property
    def _records(self) -> bool:
        config = self.train_config
        if self.device.type != "cuda" or not config.cuda_graph:
            return False
        return config.cuda_graph is True or (config.can_record and not has_dropout(self.model))

    @property
    def _recorded_memory(self) -> float:
        return 0.4 if self.train_config.cuda_graph == "auto" else 1.0

    def forget_recorded(self) -> None:
        """Free the memory that recorded steps hold."""
        for name in ("_graphed", "_graphed_chunks"):
            self.__dict__.pop(name, None)

    @cached_property
    def _sequences(self) -> int:
        """Full-length sequences processed at once; of shorter ones, as many as take the same memory."""
        return self.train_config.micro_batch_for(self.device.type)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Summed loss of one micro-batch (nats) divided by the targets that it can have: positions, or rows of a classifier."""
        loss_sum, count = self.loss(batch)
        self.positions += batch["tokens"].numel()
        self.train_nats = self.train_nats.to(loss_sum.device) + loss_sum.detach().double()
        self.train_count = self.train_count.to(count.device) + count
        # The gradients' mean over ranks divides a sequence's by the number of ranks that share it.
        loss_sum = loss_sum * self.train_config.sequence_parallel
        return loss_sum / divisor(self.model, batch["targets"], self.answers)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by total norm, and record the norm."""
        limit = math.inf if self.train_config.clip is None else self.train_config.clip
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters(), limit)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with linear warm-up and cosine decay, per optimiser step."""
        config = self.train_config
        optimizer = build_optimizer(self.model, config)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_after(config, step) / config.lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
