"""Several models trained side by side on the very same batches, each with its own rate.

Small models leave most of a GPU idle: a step is a hundred kernels of a few microseconds. So each lane, a model with its
optimiser, records several whole steps (forward, backward, clipping, AdamW, the rate of the schedule) as one CUDA graph and
replays it on a stream of its own, beside the others. Batches come in blocks of as many steps, which all lanes read. On a CPU
the same steps run one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.graphed import GraphedLoss, recording
from mamba_bio_audio.training.optim import build_optimizer, divisor
from mamba_bio_audio.training.schedule import rate_after


class Block(NamedTuple):
    """Batches of a few steps.

    Attributes:
        tokens: int64 (steps, B, L).
        targets: int64 (steps, B, L), -100 where nothing is scored.
    """

    tokens: Tensor
    targets: Tensor


class Lane:
    """A model in training.

    Args:
        model: language model, moved to `device`.
        config: optimisation settings; of the schedule the rate, of the steps their number.
        device: "cpu" or "cuda".
        narrow: whether activations are bf16.
        answers: as of `LanguageModelModule`.

    Attributes:
        done: steps so far.
    """

    def __init__(
        self, model: Any, config: TrainConfig, device: str, *, narrow: bool, answers: int | None = None
    ) -> None:
        self.model = model.to(device).train()
        self.config = config
        self.answers = answers
        self.done = 0
        self._loss = GraphedLoss(self.model)
        self._loss.autocast = (device, torch.bfloat16, narrow)
        self._parameters = list(self._loss.parameters.values())
        self.optimizer = build_optimizer(self.model, config)
        self._rates = torch.tensor([rate_after(config, step) for step in range(config.steps)], device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._scales = [group["lr"] / config.lr for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=device)
            group["capturable"] = device == "cuda"
        # Summed loss and targets since they were read last.
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._replay: Callable[[], None] | None = None
        self.stream = torch.cuda.Stream() if device == "cuda" else None

    def run(self, block: Block) -> None:
        """The steps of a block, whose addresses stay the same from call to call."""
        if self.stream is None:
            self._steps(block)
        else:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                if self._replay is not None:
                    self._replay()
                else:
                    # As they are the first time: libraries take their memory, and layers choose what they keep. Alone,
                    # since constants that kernels make once, on the stream of the first, are there for all only then.
                    torch.cuda.synchronize()
                    self._steps(block)
                    torch.cuda.synchronize()
        self.done += len(block.tokens)

    def record(self, block: Block) -> None:
        """Record the steps of a block, after they ran once as they are; nothing is trained."""
        if self.stream is None or self._replay is not None:
            return
        torch.cuda.synchronize()
        self._loss._forget()
        torch.cuda.empty_cache()
        self._replay = recording(lambda: self._steps(block))

    def _steps(self, block: Block) -> None:
        for tokens, targets in zip(block.tokens, block.targets, strict=True):
            rate = self._rates.index_select(0, self._step).squeeze(0)
            for group, scale in zip(self.optimizer.param_groups, self._scales, strict=True):
                torch.mul(rate, scale, out=group["lr"])
            loss = self._loss
            loss.tokens, loss.targets = tokens, targets
            loss.run()
            assert loss.gradients is not None
            assert loss.loss_sum is not None
            assert loss.count is not None
            there = [(p, g) for p, g in zip(self._parameters, loss.gradients, strict=True) if g is not None]
            for parameter, _ in there:
                if parameter.grad is None:
                    # In the parameter's own layout, which the optimiser counts on and a gradient need not have.
                    parameter.grad = torch.empty_like(parameter)
            gradients: list[Any] = [parameter.grad for parameter, _ in there]
            torch._foreach_copy_(gradients, [gradient for _, gradient in there])
            torch._foreach_mul_(gradients, 1 / divisor(self.model, targets, self.answers))
            if self.config.clip is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, self.config.clip, foreach=True)
            self.optimizer.step()
            self._step.add_(1)
            self._sums.add_(torch.stack([loss.loss_sum.double(), loss.count.double()]))

    def read(self) -> float:
        """Mean training loss since the last reading; waits for the device."""
        nats, count = self._sums.tolist()
        self._sums.zero_()
        return nats / max(count, 1)

    def state(self) -> dict[str, Any]:
        """Everything that training goes on from, as `files/tensors.py` stores it."""
        self.wait()
        return {
            "weights": {name: tensor.detach().cpu() for name, tensor in self.model.state_dict().items()},
            "optimizer": {
                number: {name: value.detach().cpu() for name, value in state.items()}
                for number, state in self.optimizer.state_dict()["state"].items()
            },
            "done": self.done,
            "sums": self._sums.cpu(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`, before the first step."""
        self.model.load_state_dict(state["weights"])
        groups = self.optimizer.state_dict()["param_groups"]
        # Loading makes tensors of the rates anew, which the recorded steps would not know.
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.done = state["done"]
        self._step.fill_(self.done)
        self._sums.copy_(state["sums"])

    def wait(self) -> None:
        """The caller's stream goes on when the lane's last block is done."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)


def advance(lanes: Sequence[Lane], block: Block) -> None:
    """Every lane through the steps of a block; returns before a GPU is done, and the block may be filled anew at once."""
    for lane in lanes:
        lane.run(block)
    for lane in lanes:
        lane.wait()
