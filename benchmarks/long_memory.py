"""Does a model use what lies 2^20 positions back? Trains needle and copy tasks at short lengths, tests at long ones.

    python benchmarks/long_memory.py needle --out benchmarks/results/needle
    python benchmarks/long_memory.py copy --out benchmarks/results/copy
    python benchmarks/long_memory.py probe RUN FASTA --out benchmarks/results/copy_probe

`needle` and `copy` train at lengths from 64 up to a longest one that doubles whenever the task is solved, up to
--train-length; then they score lengths up to --test-length, the state carried in chunks. After that they train on at up
to --further-length, and score again. Everything ends within --seconds, and what was tested until then is written.
The needle is trained at every position after the marker (NeedleTask.dense) with smoothed labels, and tested at the last
position only: in random filler, and for comparison in filler that holds no 6 bases of any marker in a row. There only
forgetting counts, in the other also false hits. OUT_kept.csv tells the two apart in the states and in the outputs (see
`kept`). `probe` takes a trained DNA model, lays real sequence X, filler, X again, and reports the loss of the second X
against that of the first at every length of the filler.
Each writes OUT.csv, after every row, and OUT.png.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mamba_bio_audio.evaluation.context import target_nats
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.synthetic.long_memory import CopyTask, NeedleTask
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.timing import provenance, write_rows
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.optim import build_optimizer

# Batches of test data are numbered from here, so that none was trained on.
TEST = 1 << 40
# Positions of a step at the longest lengths.
MOST = 1 << 20
# Stages from this length on hold near hits.
DECOYS_FROM = 512


class Stage(NamedTuple):
    """What is trained at a time: windows from `shortest` to `longest` positions."""

    task: Any
    shortest: int
    longest: int


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Training batches of one stage, drawn by data workers: thousands of short rows cost more than the GPU's step."""

    def __init__(self, stage: Stage, first: int, arguments: argparse.Namespace) -> None:
        self.stage, self.first = stage, first
        self.positions, self.decoys, self.seed = arguments.tokens, arguments.decoys, arguments.seed

    def __len__(self) -> int:
        # More than any stage takes.
        return 1 << 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        number = self.first + index
        random = np.random.default_rng([self.seed, number])
        # More often long than short, so that no length and no distance is special.
        task, shortest, longest = self.stage
        length = int(shortest * (longest / shortest) ** (random.random() ** 0.5))
        if isinstance(task, NeedleTask):
            # Half of the batches has the filler of the test. Near hits do not help to find the marker at all.
            share = self.decoys * random.random() if longest >= DECOYS_FROM and random.random() < 0.5 else 0.0
            # Long distances in half of the batches, much before the marker in the other half.
            within = random.random() if random.random() < 0.5 else 1.0
            task = replace(task, within=within, decoys=share, dense=True)
        # Four windows, as long as they fit in a GPU's memory.
        rows = max(1, min(4, MOST // length), min(1024, self.positions // length))
        tokens, targets = task.batch(number, rows, length)
        # A quarter of the shared memory, which can be small in a container.
        return tokens.short(), targets.short()


def make(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Model and task."""
    config = ModelConfig(
        d_model=arguments.d_model,
        num_layers=arguments.num_layers,
        vocab_size=12,
        # Decays within rounding of 1 must keep their value for memories beyond 1e5 steps, and some channels begin with
        # memories as long as the test: the initial delta is log-uniform from 1e-7 instead of from 1e-3.
        ssm=SsmConfig(d_state=arguments.d_state, precise=True, dt_min=arguments.dt_min, dt_floor=arguments.dt_min),
    )
    torch.manual_seed(arguments.seed)
    model = build_model(config, seed=arguments.seed)
    if arguments.task == "copy":
        return model, CopyTask(seed=arguments.seed)
    task = NeedleTask(seed=arguments.seed)
    head = HeadConfig(pool="last", classes=tuple(f"marker{i}" for i in range(task.classes)))
    return Classifier(model, head), task


def stages(task: Any, after: int, up_to: int) -> list[Stage]:
    """Doubling lengths above `after`; from nothing, the marker or X with next to nothing else comes first."""
    found = []
    if after == 0 and isinstance(task, CopyTask):
        # Two bases at first: sixteen at once stay at chance for long.
        sizes = range(2, task.copied_bases + 1, 2)
        found = [Stage(replace(task, copied_bases=size), 2 * size + 1, 3 * size + 4) for size in sizes]
    # A window that is scored densely holds the short distances too.
    dense = isinstance(task, NeedleTask)
    length = after * 2 or (128 if dense else 64)
    while length <= up_to:
        found.append(Stage(task, max(64, length // 4) if dense else 64, length))
        length *= 2
    return found


def before_marker(task: Any, targets: Tensor) -> Tensor:
    """Positions (B, L) of a needle's window before its marker begins, where nothing can be known; none of other tasks."""
    if not isinstance(task, NeedleTask):
        return torch.zeros_like(targets, dtype=torch.bool)
    first = (targets != -100).int().argmax(1, keepdim=True) - task.marker_bases + 1
    return torch.arange(targets.shape[1]) < first


def leaning(logits: Tensor, where: Tensor) -> Tensor:
    """Mean divergence of the class probabilities (P, K) from equal ones at the positions that `where` (P) marks, in nats."""
    away = -logits.log_softmax(-1).mean(-1) - math.log(logits.shape[-1])
    return (away * where).sum() / where.sum().clamp(min=1)


def train(
    model: Any,
    optimizer: Any,
    todo: list[Stage],
    number: int,
    until: float,
    arguments: argparse.Namespace,
    device: str,
) -> dict[str, Any]:
    """Stage after stage, each until it is solved, batches numbered from `number`; the last takes the time left."""
    begun = time.perf_counter()
    seconds = max(1.0, until - begun)
    first = number
    for stage in todo:
        started, steps, average = time.perf_counter(), 0, None
        loader = DataLoader(Batches(stage, number, arguments), batch_size=None, num_workers=arguments.num_workers)
        for tokens, targets in loader:
            elapsed = (time.perf_counter() - begun) / seconds
            for group in optimizer.param_groups:
                # Linear to zero in the second half.
                group["lr"] = arguments.lr * min(1.0, (number - first + 1) / 200, max(0.0, 2 * (1 - elapsed)))
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda" and arguments.bf16):
                logits = model(tokens.to(device).long()).logits
            quiet = before_marker(stage.task, targets).to(device)
            logits, expected = logits.float().flatten(0, 1), targets.to(device).long().flatten()
            loss = F.cross_entropy(logits, expected, label_smoothing=arguments.smoothing)
            (loss + leaning(logits, quiet.flatten())).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            number, steps = number + 1, steps + 1
            value = F.cross_entropy(logits.detach(), expected)
            average = value if average is None else average.lerp(value, 0.03)
            if elapsed >= 1:
                break
            if steps % 25 == 0 and stage is not todo[-1]:
                spent = (time.perf_counter() - started) / seconds
                # A stage that is not solved in a quarter of the time gives way.
                if float(average) < arguments.solved or spent > 0.25:
                    break
        loss = float(average) if average is not None else math.nan
        print(
            f"trained from {stage.shortest:,} to {stage.longest:,}: {steps:,} steps in "
            f"{time.perf_counter() - started:.0f} s, loss {loss:.4f}",
            flush=True,
        )
        if elapsed >= 1:
            break
    return {"trained_length": stage.longest, "training_loss": loss, "steps": number - first}


@torch.inference_mode()
def kept(
    model: Any, task: NeedleTask, before: int, device: str, arguments: argparse.Namespace, until: float
) -> list[dict[str, Any]]:
    """What is left of the class after so much random filler, and what the filler itself has left behind.

    All markers stand between the same 4 fillers, `before` bases and up to the longest distance after them, so that what
    differs between rows of one filler is the class and what differs between rows of one marker is the filler. One row
    per distance:
        signal, noise: root mean square, in the centred logits, of the classes' means around their mean, and of single
            windows around their class's mean. drift: length of the mean of all, the same for every class.
        layer0_kept, ...: projection of the class differences of a layer's state on those 64 bases after the marker, 1
            there. layer0_noise: deviation by filler over class difference at 64 bases, both weighted by the latter's
            square: in the states that held the class.
    """
    model.eval()
    fillers, classes = 4, task.classes
    random = np.random.default_rng([arguments.seed, TEST])
    chunk = max(1, arguments.positions // (classes * fillers))

    def run(count: int, state: Any) -> Any:
        for start in range(0, count, chunk):
            part = random.integers(7, 11, (fillers, min(chunk, count - start)))
            out = model(torch.from_numpy(part).repeat(classes, 1).to(device), state, logits="last")
            state = out.state
        return out

    state = run(before, None).state if before else None
    out = model(torch.from_numpy(task.markers()).repeat_interleave(fillers, 0).to(device), state, logits="last")
    rows: list[dict[str, Any]] = []
    firsts: list[Tensor] = []
    passed, distance = 0, 64
    while distance <= arguments.test_length and (passed == 0 or time.perf_counter() < until):
        out = run(distance - passed, out.state)
        passed = distance
        logits = out.logits[:, 0].double().unflatten(0, (classes, fillers))
        logits = logits - logits.mean(-1, keepdim=True)
        means = logits.mean(1)
        row = {"before": before, "distance": distance, "fillers": fillers}
        for name, values in (
            ("signal", means - means.mean(0)),
            ("noise", logits - means[:, None]),
            ("drift", means.mean(0)),
        ):
            row[name] = float(values.square().sum(-1).mean().sqrt())
        for i, layer in enumerate(out.state[0]):
            state = layer.ssm.double().unflatten(0, (classes, fillers)).flatten(2)
            apart = state - state.mean(0)
            if len(firsts) == i:
                firsts.append(apart)
            weight = firsts[i].square().mean((0, 1))
            deviation = (state - state.mean(1, keepdim=True)).square().mean((0, 1))
            row[f"layer{i}_kept"] = float((apart * firsts[i]).sum() / firsts[i].square().sum())
            row[f"layer{i}_noise"] = float(((weight * deviation).sum() / weight.square().sum()).sqrt())
        rows.append(row)
        print("kept:", ", ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
        distance *= 4
    return rows


@torch.inference_mode()
def score(
    model: Any, task: Any, rows: int, length: int, device: str, arguments: argparse.Namespace, ends: float
) -> dict[str, float]:
    """Accuracy and nats on fresh rows, chunk by chunk with the state carried; fewer rows where the time is over."""
    model.eval()
    hits, nats, count, seen = 0, 0.0, 0, 0
    at_once = max(1, min(rows, arguments.positions // length))
    while seen < rows and (seen == 0 or time.perf_counter() < ends):
        tokens, targets = task.batch(TEST + seen, min(at_once, rows - seen), length)
        state, step = None, max(1, arguments.positions // len(tokens))
        for start in range(0, length, step):
            part = slice(start, start + step)
            scored = targets[:, part] != -100
            last = bool(scored.any())
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda" and arguments.bf16):
                out = model(tokens[:, part].to(device), state, logits="all" if last else "none")
            state = out.state
            if last:
                expected = targets[:, part][scored].to(device)
                logits = out.logits[scored.to(device)].float()
                hits += int((logits.argmax(1) == expected).sum())
                nats += float(torch.nn.functional.cross_entropy(logits, expected, reduction="sum"))
                count += len(expected)
        seen += len(tokens)
    return {"windows": seen, "scored": count, "accuracy": hits / count, "nats": nats / count}


def run_task(arguments: argparse.Namespace, device: str) -> None:
    """Train and test; then train at longer lengths and test again."""
    begun = time.perf_counter()
    model, task = make(arguments)
    model.to(device)
    config = TrainConfig(steps=1, length=1, tokens_per_step=1, lr=arguments.lr, weight_decay=arguments.weight_decay)
    optimizer = build_optimizer(model, config)
    about = {
        "model": f"{arguments.num_layers}x{arguments.d_model}",
        "d_state": arguments.d_state,
        "tokens_per_step": arguments.tokens,
        "decoys": arguments.decoys if arguments.task == "needle" else 0.0,
        "smoothing": arguments.smoothing,
        "seed": arguments.seed,
    }
    about |= provenance(device)
    # Stages, and the shares of the time at which training and testing end.
    phases = [(stages(task, 0, arguments.train_length), 0.75, 1.0)]
    if further := stages(task, arguments.train_length, arguments.further_length):
        phases = [(phases[0][0], 0.48, 0.625), (further, 0.855, 1.0)]
    rows: list[dict[str, Any]] = []
    remains: list[dict[str, Any]] = []
    for phase, (todo, trained_until, tested_until) in enumerate(phases):
        ends = begun + arguments.seconds * trained_until
        trained = train(model, optimizer, todo, phase << 32, ends, arguments, device)
        if arguments.weights:
            torch.save(model.state_dict(), arguments.weights)
        tested_by = begun + arguments.seconds * tested_until
        if isinstance(task, NeedleTask):
            # Up to a tenth of the window comes before the marker in the test.
            for before in (0, arguments.test_length // 10):
                remains += [trained | row | about for row in kept(model, task, before, device, arguments, tested_by)]
            write_rows(arguments.out.with_name(f"{arguments.out.name}_kept.csv"), remains)
        test(model, task, rows, trained | about, tested_by, arguments, device)
    picture(rows, arguments.out.with_suffix(".png"))


def test(
    model: Any,
    task: Any,
    rows: list[dict[str, Any]],
    about: dict[str, Any],
    until: float,
    arguments: argparse.Namespace,
    device: str,
) -> None:
    """One row more per tested length and filler, each written at once."""
    tasks = {"random": (task, arguments.rows)}
    if isinstance(task, NeedleTask):
        tasks["no 6 of a marker"] = (replace(task, without=6), max(1, arguments.rows // 4))
    for filler, (variant, windows) in tasks.items():
        length = 256
        while length <= arguments.test_length:
            started = time.perf_counter()
            if rows and started > until:
                print(f"no time left to test at {length:,} with filler {filler}", flush=True)
                break
            result = score(model, variant, windows, length, device, arguments, until)
            rows.append({"task": arguments.task, "length": length, "filler": filler} | result | about)
            write_rows(arguments.out.with_suffix(".csv"), rows)
            print(f"tested at {length:,}, {filler}: {result} in {time.perf_counter() - started:.0f} s", flush=True)
            length *= 4


def run_probe(arguments: argparse.Namespace, device: str) -> None:
    """Nats per base of the first and of the second X, by length of the filler."""
    ends = time.perf_counter() + arguments.seconds
    model = saved.load(arguments.run)
    model.to(device).eval()
    genome = Genome(arguments.fasta)
    record = max(genome.records, key=lambda name: genome.records[name])
    size, length, first_base = arguments.copied, genome.records[record], arguments.first_base
    random = np.random.default_rng(arguments.seed)
    rows = []
    for filler in (0, 1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18):
        if filler + size + 1000 > length - first_base:
            print(f"{record} is too short for a filler of {filler:,}")
            break
        sums, done = np.zeros(2), 0
        while done < arguments.rows and (done == 0 or time.perf_counter() < ends):
            done += 1
            at, other = (int(random.integers(first_base, length - max(filler, size) - 300)) for _ in range(2))
            x, between = genome.fetch(record, at, at + size), genome.fetch(record, other, other + filler + 256)
            # 256 bases of other sequence before either X: neither stands at the beginning of a sequence.
            first = np.concatenate([between[:256], x]).astype(np.int64)
            twice = np.concatenate([first, between[256:], between[:256], x]).astype(np.int64)
            for i, symbols in enumerate((first, twice)):
                window = torch.from_numpy(symbols)[None]
                nats = target_nats(
                    model, window, size, positions=arguments.positions, device=device, narrow=device == "cuda"
                )
                sums[i] += nats[0][(x >= 7) & (x <= 10)].mean()
        first_nats, second_nats = sums / done
        rows.append(
            {
                "task": "probe",
                "filler": filler,
                "copied": size,
                "pairs": done,
                "first_nats": float(first_nats),
                "second_nats": float(second_nats),
            }
        )
        write_rows(arguments.out.with_suffix(".csv"), rows)
        print(rows[-1], flush=True)
    picture(rows, arguments.out.with_suffix(".png"))


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against length, or nats of both copies against the filler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    if rows[0]["task"] == "probe":
        for name in ("first_nats", "second_nats"):
            axes.plot(
                [max(1, row["filler"]) for row in rows], [row[name] for row in rows], "o-", label=name[:-5] + " X"
            )
        axes.set(xscale="log", xlabel="bases between", ylabel="nats per base")
        axes.legend()
    else:
        for filler, trained in dict.fromkeys((row["filler"], row["trained_length"]) for row in rows):
            chosen = [row for row in rows if (row["filler"], row["trained_length"]) == (filler, trained)]
            axes.plot(
                [row["length"] for row in chosen],
                [row["accuracy"] for row in chosen],
                "o-" if filler == "random" else "x--",
                label=f"{filler}, {trained:,}",
            )
        axes.legend(title="filler, trained up to")
        axes.set(xscale="log", xlabel="length", ylabel="accuracy")
        axes.set_ylim(0, 1.02)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("needle", "copy", "probe"))
    parser.add_argument("run", nargs="?", help="probe: trained run")
    parser.add_argument("fasta", nargs="?", help="probe: sequence that the run was not trained on")
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    parser.add_argument("--train-length", type=int, default=1 << 14)
    parser.add_argument("--test-length", type=int, default=1 << 20)
    parser.add_argument(
        "--seconds", type=float, default=400, help="of everything; what was reached is tested and written"
    )
    parser.add_argument(
        "--further-length",
        type=int,
        default=1 << 19,
        help="train on up to this length after the first test, and test again",
    )
    parser.add_argument(
        "--solved", type=float, default=0.25, help="mean loss that ends a stage; smoothing alone leaves 0.08 to 0.1"
    )
    parser.add_argument(
        "--decoys", type=float, default=0.3, help="needle: largest share of near hits in training filler"
    )
    parser.add_argument(
        "--smoothing",
        type=float,
        default=0.1,
        help="of training labels: the output shall stay at one finite value, so that every drift costs",
    )
    parser.add_argument("--num-workers", type=int, default=4 if torch.cuda.is_available() else 0)
    parser.add_argument("--tokens", type=int, default=1 << 16, help="positions per step")
    parser.add_argument("--positions", type=int, default=1 << 18, help="positions put through at a time when testing")
    parser.add_argument("--rows", type=int, default=64, help="test windows per length")
    parser.add_argument("--copied", type=int, default=512, help="probe: bases of X")
    parser.add_argument("--first-base", type=int, default=0, help="probe: take sequence from here to the record's end")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--dt-min", type=float, default=1e-7, help="smallest initial delta")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--d-state", type=int, default=16, help="states per channel")
    parser.add_argument(
        "--bf16", action="store_true", help="autocast; fp32 by default, as memory over 1e6 steps is the question"
    )
    parser.add_argument("--weights", type=Path, help="keep the trained weights here")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.task == "probe" and not (arguments.run and arguments.fasta):
        parser.error("probe needs RUN and FASTA")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    (run_probe if arguments.task == "probe" else run_task)(arguments, device)


if __name__ == "__main__":
    main()
