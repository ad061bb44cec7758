"""Models compared: trained on the same batches, each at the best of a few rates, several of them beside each other.

A run is an arm (a model), a rate, a seed and a number of steps; runs of one seed read the same batches. The rates of an arm
are tried first; the one with the least validation loss is trained with every seed. A run that is finished has its folder,
and an unfinished group of runs one file with their states, from which it goes on exactly.
"""

from __future__ import annotations

import csv
import gc
import io
import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import read_json, write_json, write_text
from mamba_bio_audio.files.tensors import load_tree, save_tree
from mamba_bio_audio.models.answers import answers
from mamba_bio_audio.models.size import count_parameters
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.stream import Stretch, loader, stop_workers
from mamba_bio_audio.run.begin import begin, resolve
from mamba_bio_audio.run.config import RunConfig, to_yaml
from mamba_bio_audio.run.data import check_same_data, open_data
from mamba_bio_audio.run.environment import environment
from mamba_bio_audio.signals import StopSignal
from mamba_bio_audio.training.config import resolve_precision
from mamba_bio_audio.training.side_by_side import Block, Lane
from mamba_bio_audio.training.steps import save_weights

UNFINISHED, SCORES, CURVE, DATA = "unfinished.safetensors", "scores.json", "curve.csv", "data.json"
# Steps that are recorded at a time where batches are made on the device.
TOGETHER = 8
# Positions per step of all runs that a GPU trains beside each other, about; beyond them it is busy with one.
POSITIONS = 1 << 17
# Steps after which a GPU is waited for, and the time looked at.
PAUSE = 64
# Seconds between savings of unfinished runs.
SAVING = 30
# Seconds of a measurement of speed, and the most steps.
MEASURING, MEASURED = 1.0, 20_000


class Run(NamedTuple):
    """One training."""

    arm: str
    rate: float
    seed: int
    steps: int

    @property
    def folder(self) -> str:
        """Its folder's name."""
        short = f"{self.rate:g}"
        # A name that `config.yaml` may hold: no plus.
        rate = (short if float(short) == self.rate else repr(self.rate)).replace("+", "")
        return f"{self.arm}-lr{rate}-seed{self.seed}-{self.steps}"


class Plan(NamedTuple):
    """What is compared.

    Attributes:
        arms: configuration of each arm by its name; they differ in the model and the optimiser only.
        rates: that are tried, for each arm.
        seeds: of the trainings.
        sweep_steps: steps of the trainings that a rate is chosen by.
        every_rate: whether every seed is trained at every rate, so that the choice is over all of them.
        lanes: trainings beside each other; None follows from the device and the size of a step.
        device: "cpu" or "cuda".
        only: the arms that are trained here, beside other processes, so that no speed is measured; empty: all.
        foreign: whether there is no such device here, so that nothing is trained.
    """

    arms: dict[str, RunConfig]
    rates: dict[str, tuple[float, ...]]
    seeds: tuple[int, ...]
    sweep_steps: int
    every_rate: bool
    lanes: int | None
    device: str
    only: tuple[str, ...] = ()
    foreign: bool = False

    @property
    def here(self) -> list[str]:
        """Arms that are trained here."""
        return [arm for arm in self.arms if not self.only or arm in self.only]

    @property
    def first(self) -> RunConfig:
        """Of all arms the data, lengths and steps are the same."""
        return next(iter(self.arms.values()))

    def config(self, run: Run) -> RunConfig:
        """The configuration of a run."""
        config = self.arms[run.arm]
        train = config.train.model_copy(update={"lr": run.rate, "steps": run.steps})
        return config.model_copy(update={"seed": run.seed, "name": run.folder, "train": train})

    def sweep(self, arm: str) -> list[Run]:
        """The trainings by which an arm's rate is chosen."""
        seeds = self.seeds if self.every_rate else self.seeds[:1]
        return [Run(arm, rate, seed, self.sweep_steps) for rate in self.rates[arm] for seed in seeds]

    def final(self, arm: str, rate: float) -> list[Run]:
        """The trainings that are compared."""
        return [Run(arm, rate, seed, self.first.train.steps) for seed in self.seeds]

    @property
    def beside(self) -> int:
        """Trainings beside each other."""
        if self.lanes is not None:
            return self.lanes
        return max(1, POSITIONS // self.first.train.tokens_per_step) if self.device == "cuda" else 1


def check_plan(plan: Plan) -> None:
    """Refuse what cannot be trained side by side, or would not be a comparison.

    Raises:
        InputError: naming the key.
    """
    first = plan.first
    for name, config in plan.arms.items():
        if config.head is not None:
            raise InputError("mba compare trains language models; choose a recipe without a head")
        same = {"data": (config.data, first.data), "seed": (config.seed, first.seed)}
        for key in (
            "length",
            "tokens_per_step",
            "steps",
            "precision",
            "cuda_graph",
            "validate_every",
            "validation_tokens",
        ):
            same[f"train.{key}"] = getattr(config.train, key), getattr(first.train, key)
        different = next((key for key, (one, other) in same.items() if one != other), None)
        if different is not None:
            raise InputError(f"arm {name}: {different} must be the same in all arms; give it with --set")
        train = config.train
        off: dict[str, Any] = {"ema": None, "init": None, "stream_chunk": None, "truncate_chunk": None}
        off |= {"length_warmup": (), "listen": 0, "patience": None, "devices": 1, "nodes": 1, "sequence_parallel": 1}
        # Models that draw side by side would draw other numbers than alone.
        off["dropout"] = 0
        for key, value in off.items():
            if getattr(train, key) != value:
                raise InputError(f"train.{key}: mba compare trains whole sequences of one length; leave it out")
        if train.accumulate(plan.device) != 1:
            raise InputError(
                f"train.tokens_per_step: {train.tokens_per_step:,} positions are more than go through at once; lower it, or "
                f"set train.micro_batch={train.sequences_per_step}"
            )


class Feed:
    """The batches of one seed, block by block; every lane reads the same block.

    Args:
        data: set up.
        seed: of the training.
        config: length and size of a step.
        device: where blocks lie.
        together: steps per block.
        step: of the first block.
    """

    def __init__(self, data: DataModule, seed: int, config: RunConfig, device: str, together: int, step: int) -> None:
        self.batch, self.length, self.seed = config.train.sequences_per_step, config.train.length, seed
        self._corpus, self._loader = data.corpus, None
        if self._corpus.on_device:
            self._numbers = torch.arange(together * self.batch, device=device)
        else:
            data.seed = seed
            stretch = Stretch(self.length, self.batch, start_sample=step * self.batch)
            self._loader = loader(data.stream(stretch), None, config.data.num_workers)
            self._iterator = iter(self._loader)
        self.block = Block(
            *(torch.empty(together, self.batch, self.length, dtype=torch.int64, device=device) for _ in range(2))
        )

    def fill(self, step: int) -> None:
        """The block that begins with a step; blocks come in their order."""
        if self._corpus.on_device:
            made = self._corpus.batch(self.seed, 0, self._numbers + step * self.batch, self.length)
            for place, values in zip(self.block, made, strict=True):
                place.copy_(values.view(place.shape))
            return
        for tokens, targets in zip(*self.block, strict=True):
            batch = next(self._iterator)
            tokens.copy_(batch["tokens"], non_blocking=True)
            targets.copy_(batch["targets"], non_blocking=True)

    def close(self) -> None:
        """End the workers."""
        if self._loader is not None:
            stop_workers(self._loader)


class Comparison:
    """Trains a plan into a folder, as far as the time allows.

    Args:
        plan: what is compared, checked.
        out: folder.
        stop: noted signals.
        until: `time.perf_counter` at which to stop; infinite for none.
        tell: called with lines for people.
    """

    def __init__(self, plan: Plan, out: Path, stop: StopSignal, until: float, tell: Callable[[str], None]) -> None:
        self.plan, self.out, self.stop, self.until, self.tell = plan, out, stop, until, tell
        first = plan.first
        self.device = plan.device
        self.narrow = resolve_precision(first.train.precision, plan.device) == "bf16"
        self.data = open_data(first, plan.device)
        self.data.setup("fit")
        self.described = self.data.summary()
        if (out / DATA).exists():
            check_same_data(read_json(out / DATA), self.described, out)
        else:
            write_json(out / DATA, self.described)
        # A step may be recorded with its followers where their batches are made on the device.
        every = math.gcd(first.train.validate_every, first.train.steps, plan.sweep_steps)
        together = TOGETHER if self.data.corpus.on_device and plan.device == "cuda" else 1
        self.together = max(k for k in range(1, together + 1) if every % k == 0)
        self._batches: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    @property
    def _over(self) -> bool:
        return self.plan.foreign or self.stop.number is not None or time.perf_counter() > self.until

    def run(self) -> bool:
        """Train what is left; whether everything is finished now."""
        if not self._measured():
            return False
        while todo := self.pending():
            place = self.out / UNFINISHED
            saved = load_tree(place, remedy="delete it to train these runs anew") if place.exists() else None
            if saved is not None:
                group = [Run(*values) for values in saved["runs"]]
            else:
                group = [run for run in todo if run.steps == todo[0].steps][: self.plan.beside]
            if self._over or not self._train(group, saved):
                return False
        return True

    def take(self, other: Path) -> None:
        """Copy what another folder of the same comparison has and this one has not: finished runs, speeds.

        Raises:
            InputError: its data were others.
        """
        if (other / DATA).exists():
            check_same_data(read_json(other / DATA), self.described, other)
        for scores in sorted(other.glob(f"runs/*/{SCORES}")):
            place = self.out / "runs" / scores.parent.name
            if not (place / SCORES).exists():
                place.mkdir(parents=True, exist_ok=True)
                # As where it was made, the scores come last.
                files = [path for path in scores.parent.iterdir() if path.is_file() and path != scores]
                for path in (*files, scores):
                    shutil.copyfile(path, place / path.name)
        for speed in sorted(other.glob("speed/*.json")):
            place = self.out / "speed" / speed.name
            if not place.exists():
                place.parent.mkdir(exist_ok=True)
                write_json(place, read_json(speed))

    def pending(self) -> list[Run]:
        """Runs that are to come: all trials of rates, then those at the chosen ones."""
        here = self.plan.here
        todo = [run for arm in here for run in self.plan.sweep(arm) if self.scores(run) is None]
        if todo:
            return todo
        return [run for arm in here for run in self.plan.final(arm, self.chosen(arm)) if self.scores(run) is None]

    def scores(self, run: Run) -> dict[str, Any] | None:
        """What a finished run reached."""
        place = self.out / "runs" / run.folder / SCORES
        return dict(read_json(place)) if place.exists() else None

    def chosen(self, arm: str) -> float:
        """The rate with the least mean validation loss; a run that diverged counts as infinite."""
        return min(self.plan.rates[arm], key=lambda rate: self.loss_at(arm, rate))

    def loss_at(self, arm: str, rate: float) -> float:
        """Mean validation loss of an arm's trials at a rate."""
        found = [self.scores(run) for run in self.plan.sweep(arm) if run.rate == rate]
        losses = [math.inf if row is None or row["valid_nats"] is None else row["valid_nats"] for row in found]
        return sum(losses) / len(losses)

    # Training.

    def _lane(self, run: Run) -> Lane:
        config = resolve(self.plan.config(run), self.data)
        model = begin(config)
        model.recompute = config.train.recompute
        return Lane(model, config.train, self.device, narrow=self.narrow, answers=self.data.corpus.answers)

    def _train(self, group: Sequence[Run], saved: dict[str, Any] | None) -> bool:
        """Train runs beside each other to their end; False where the time was over, and their states are saved."""
        lanes = {run: self._lane(run) for run in group}
        curves: list[list[dict[str, Any]]] = [[] for _ in group]
        if saved is not None:
            for lane, state in zip(lanes.values(), saved["lanes"], strict=True):
                lane.load_state(state)
            curves = [[dict(row) for row in rows] for rows in saved["curves"]]
        train = self.plan.config(group[0]).train
        step, steps = next(iter(lanes.values())).done, group[0].steps
        seeds = dict.fromkeys(run.seed for run in group)
        feeds = {seed: Feed(self.data, seed, self.plan.first, self.device, self.together, step) for seed in seeds}
        self.tell(f"{len(group)} of {len(self.pending())} runs to come, from step {step:,} of {steps:,}")
        kept = began = time.perf_counter()
        first = step
        try:
            while step < steps:
                for feed in feeds.values():
                    feed.fill(step)
                for run, lane in lanes.items():
                    lane.run(feeds[run.seed].block)
                for lane in lanes.values():
                    lane.wait()
                if step == first and train.cuda_graph:
                    # Half a second, and without it a dead cycle may hold memory; so once for all.
                    gc.collect()
                    # Seconds each, longer beside other processes; a lane that is not recorded goes on without.
                    for run, lane in lanes.items():
                        if not self._over:
                            lane.record(feeds[run.seed].block)
                    began = time.perf_counter()
                step += self.together
                due = step % train.validate_every == 0 or step == steps
                if due:
                    for lane, curve in zip(lanes.values(), curves, strict=True):
                        curve.append({"step": step, "train_nats": lane.read(), **self._score(lane, "valid")})
                    shown = "  ".join(
                        f"{run.arm} {curve[-1]['valid_nats']:.4f}" for run, curve in zip(group, curves, strict=True)
                    )
                    speed = 1e3 * (time.perf_counter() - began) / max(1, step - first - self.together)
                    self.tell(f"step {step:,} of {steps:,}, {speed:.3g} ms for a step of all: valid {shown}")
                paused = due or self.device == "cpu" or step % PAUSE < self.together or step == first + self.together
                if self.device == "cuda" and paused:
                    torch.cuda.synchronize()
                over = step < steps and paused and self._over
                if over or (due and step < steps and time.perf_counter() - kept > SAVING):
                    states = [lane.state() for lane in lanes.values()]
                    runs = [tuple(run) for run in group]
                    save_tree(self.out / UNFINISHED, {"runs": runs, "lanes": states, "curves": curves})
                    kept = time.perf_counter()
                if over:
                    return False
        finally:
            for feed in feeds.values():
                feed.close()
        for (run, lane), curve in zip(lanes.items(), curves, strict=True):
            self._finish(run, lane, curve)
        (self.out / UNFINISHED).unlink(missing_ok=True)
        return True

    def _score(self, lane: Lane, split: str) -> dict[str, float | None]:
        """Loss, and where targets are answers their accuracy, of a lane's weights."""
        if split not in self._batches:
            most = self.plan.first.train.validation_tokens
            found = self.data.evaluation_dataloader(split, max_tokens=most)
            self._batches[split] = [
                (batch["tokens"].to(self.device), batch["targets"].to(self.device)) for batch in found
            ]
        lane.model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        with torch.no_grad(), torch.autocast(self.device, torch.bfloat16, enabled=self.narrow):
            for batch in self._batches[split]:
                sums += torch.stack([value.double() for value in answers(lane.model, *batch)])
        lane.model.train()
        nats, count, right = sums.tolist()
        if not math.isfinite(nats):
            # Where nothing is a number, argmax says the first symbol.
            right = math.nan
        scores = {f"{split}_nats": nats / max(1, count)}
        answered = self.plan.first.data.answered
        return scores | ({f"{split}_right": right / max(1, count)} if answered else {})

    def _finish(self, run: Run, lane: Lane, curve: list[dict[str, Any]]) -> None:
        """Write a run's folder, which `mba evaluate` and `mba sample` take as any other."""
        folder = self.out / "runs" / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        config = resolve(self.plan.config(run), self.data)
        write_text(folder / "config.yaml", to_yaml(config))
        write_json(folder / "manifest.json", environment(self.device) | {"seed": run.seed, "data": self.described})
        save_weights(lane.model, folder / "model.safetensors")
        text = io.StringIO()
        writer = csv.DictWriter(text, curve[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(curve)
        write_text(folder / CURVE, text.getvalue())
        last = {key: value for key, value in curve[-1].items() if key != "step"} | self._score(lane, "test")
        # Last: it is what says that the run is finished. What is not finite is written as null.
        write_json(folder / SCORES, run._asdict() | last)

    # Speed.

    def _measured(self) -> bool:
        """Measure every arm that is not, where this process has the device to itself; False where the time is over."""
        for arm in () if self.plan.only else self.plan.arms:
            if self.speed(arm) is None:
                if self._over:
                    return False
                self._measure(arm)
        return True

    def _measure(self, arm: str) -> None:
        """Parameters, seconds per step and memory of an arm that trains alone."""
        place = self.out / "speed" / f"{arm}.json"
        config = self.plan.arms[arm]
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if self.device == "cuda" else 0
        lane = self._lane(Run(arm, config.train.lr, config.seed, MEASURED))
        feed = Feed(self.data, config.seed, config, self.device, self.together, 0)
        feed.fill(0)
        lane.run(feed.block)
        if config.train.cuda_graph:
            lane.record(feed.block)
        lane.wait()
        lane.read()
        began, blocks = time.perf_counter(), 0
        while blocks < 2 or (time.perf_counter() - began < MEASURING and lane.done + self.together <= MEASURED):
            lane.run(feed.block)
            lane.wait()
            blocks += 1
            if self.device == "cpu" or blocks % 16 == 0:
                lane.read()
        lane.read()
        seconds = (time.perf_counter() - began) / blocks / self.together
        feed.close()
        memory = torch.cuda.max_memory_allocated() - before if self.device == "cuda" else None
        place.parent.mkdir(exist_ok=True)
        found = {
            "seconds_per_step": seconds,
            "tokens_per_second": config.train.tokens_per_step / seconds,
            "memory_bytes": memory,
            "machine": environment(self.device),
        }
        write_json(place, found)
        self.tell(f"{arm}: {self.parameters(arm):,} parameters, {1e3 * seconds:.3g} ms a step alone")

    def speed(self, arm: str) -> dict[str, Any] | None:
        """What was measured of an arm."""
        place = self.out / "speed" / f"{arm}.json"
        return dict(read_json(place)) if place.exists() else None

    def parameters(self, arm: str) -> int:
        """Of an arm."""
        return count_parameters(resolve(self.plan.arms[arm], self.data).model)

    def curve(self, run: Run) -> list[dict[str, float]]:
        """A finished run's validations."""
        with (self.out / "runs" / run.folder / CURVE).open(newline="") as file:
            return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def check_name(name: str) -> str:
    """A name that may stand in a folder's.

    Raises:
        InputError: it may not.
    """
    if not re.fullmatch(r"\w[\w.-]{0,59}", name):
        raise InputError(f"arm {name!r}: a name is a letter, digit or _, then these, - and dots, at most 60 characters")
    return name
