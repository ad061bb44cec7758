"""The jobs behind the commands, as functions: pretrain, dry run, evaluate, sample."""

from __future__ import annotations

import datetime
import math
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from mamba_bio_audio import __version__, checkpoint
from mamba_bio_audio.checkpoint import Which
from mamba_bio_audio.config import RunConfig, override, to_yaml, validate
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.likelihood import Likelihood, evaluate_likelihood
from mamba_bio_audio.evaluation.markov import MarkovTable, markov_table
from mamba_bio_audio.files import write_json, write_text
from mamba_bio_audio.inference.generate import generate_blocks
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.pipelines.dna.datamodule import DnaDataModule
from mamba_bio_audio.pipelines.dna.intervals import SPLITS, Span
from mamba_bio_audio.pipelines.dna.prepare import summary_rows
from mamba_bio_audio.training.fit import fit, last_step, resolve_precision
from mamba_bio_audio.training.probe import probe

# Keys that a resumed run may change: they alter what is observed, not what is computed.
OBSERVING = {
    "description",
    "name",
    "data.num_workers",
    "train.checkpoint_every",
    "train.log_every",
    "train.validate_every",
    "train.validation_tokens",
}


def resolve(config: RunConfig, data: DnaDataModule) -> RunConfig:
    """Fill in what the data's codec decides."""
    vocab = data.codec.vocab_size
    if config.model.vocab_size not in (None, vocab):
        raise InputError(f"model.vocab_size is {config.model.vocab_size}, but DNA has {vocab} symbols; leave it null")
    return config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocab})})


def pretrain(
    config: RunConfig,
    run: Path,
    *,
    device: str,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    arguments: Sequence[str] = (),
) -> dict[str, Any]:
    """Train into the run folder `run` and return a summary (JSON-able).

    Args:
        config: from `config.load_config`.
        run: folder; must be new or empty unless `resume` or `force`.
        device: "cpu" or "cuda".
        resume: continue from the last checkpoint; without one, start from the beginning.
        force: delete what an earlier run left in the folder.
        quiet: no progress.
        arguments: of the command, for the manifest.

    Raises:
        InputError: the folder is in use, or the resumed run had another configuration.
        NonFiniteLoss: the training diverged.
    """
    train = config.train
    step = 0
    occupied = run.exists() and any(run.iterdir())
    if resume and occupied:
        _check_same(config, checkpoint.read_config(run), run)
        if (run / "checkpoints" / "last.ckpt").exists():
            step = last_step(run)
        else:
            print(f"{run}: no checkpoint yet, starting from the beginning", file=sys.stderr)
    elif resume:
        raise InputError(f"{run}: nothing to resume; leave out --resume to start the run")
    elif occupied and not force:
        raise InputError(f"{run} is not empty; continue it with --resume, replace it with --force, or choose --out")
    elif occupied:
        if not (run / "config.yaml").exists():
            raise InputError(f"{run} is not a run folder (no config.yaml), so --force will not delete it")
        shutil.rmtree(run)
    if step >= train.steps:
        raise InputError(f"{run}: already complete at step {step:,} of {train.steps:,}")

    data = _data(config, device, start_sample=step * train.sequences_per_step)
    data.setup("fit")
    config = resolve(config, data)
    if not quiet:
        print(table(summary_rows(data.summary())), file=sys.stderr)
    run.mkdir(parents=True, exist_ok=True)
    write_text(run / "config.yaml", to_yaml(config))
    manifest: dict[str, Any] = environment(device) | {
        "command": list(arguments),
        "seed": config.seed,
        "precision": resolve_precision(train.precision, device),
        "resumed_at": [*checkpoint.read_manifest(run).get("resumed_at", []), *([step] if step else [])],
        "data": data.summary(),
    }
    write_json(run / "manifest.json", manifest)

    model = build_model(config.model, seed=config.seed)
    result = fit(model, data, train, out=run, device=device, resume=step > 0, quiet=quiet, unit="bases")
    best = result.best_nats if math.isfinite(result.best_nats) else None
    summary = {
        "run": str(run),
        "step": result.step,
        "steps": train.steps,
        "best_step": result.best_step,
        "valid_nats": best,
        "valid_bits": None if best is None else best / math.log(2),
        "valid_perplexity": None if best is None else math.exp(best),
        "tokens_per_second": result.tokens_per_second,
        "stopped_by": None if result.signal is None else signal.Signals(result.signal).name,
    }
    write_json(run / "manifest.json", manifest | {"result": summary})
    return summary


def dry_run(config: RunConfig, *, device: str) -> dict[str, Any]:
    """What `pretrain` would do: resolved configuration, sizes, measured estimate of memory and time; writes nothing."""
    train = config.train
    data = _data(config, device)
    data.setup("fit")
    config = resolve(config, data)
    estimate = probe(config.model, train, device)
    with torch.device("meta"):
        parameters = build_model(config.model).num_parameters()
    micro = train.micro_batch_for(device)
    return {
        "config": config.model_dump(mode="json"),
        "device": device,
        "precision": resolve_precision(train.precision, device),
        "parameters": parameters,
        "tokens_per_step": train.tokens_per_step,
        "micro_batch": micro,
        "accumulate": train.sequences_per_step // (micro * train.devices),
        "tokens": train.tokens_per_step * train.steps,
        "memory_bytes": estimate.memory_bytes,
        "seconds_per_step": estimate.seconds_per_step,
        "seconds": estimate.seconds_per_step * train.steps,
        "data": data.summary(),
    }


def describe_dry_run(result: dict[str, Any]) -> str:
    """The dry run for people."""
    from omegaconf import OmegaConf

    from mamba_bio_audio.training.callbacks import duration

    data = result["data"]
    rows = [
        ("device", f"{result['device']}, {result['precision']}"),
        ("parameters", f"{result['parameters']:,}"),
        (
            "tokens per step",
            f"{result['tokens_per_step']:,} = {result['accumulate']} x micro-batch of {result['micro_batch']} "
            f"x length {result['config']['train']['length']:,}"
            + (
                f" x {result['config']['train']['devices']} devices" if result["config"]["train"]["devices"] > 1 else ""
            ),
        ),
        ("tokens in all", f"{result['tokens']:,}"),
        ("memory", f"about {result['memory_bytes'] / 2**30:.2f} GiB"),
        (
            "time",
            f"about {result['seconds_per_step']:.3g} s a step, {duration(result['seconds'])} in all, "
            f"without validation",
        ),
    ]
    text = OmegaConf.to_yaml(OmegaConf.create(result["config"]))
    return f"{text}\n{table(summary_rows(data))}\n{table(rows)}\n"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """(what, value) rows in two columns."""
    width = max(len(what) for what, _ in rows)
    return "\n".join(f"{what:<{width}}  {value}" for what, value in rows)


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and commit, for manifests and benchmarks."""
    return {
        "mamba_bio_audio": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """Commit of the source tree that this package runs from, with a mark when it was changed; None when installed."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return head.stdout.strip() or None


def _data(config: RunConfig, device: str, *, start_sample: int = 0) -> DnaDataModule:
    train = config.train
    return DnaDataModule(
        config.data,
        length=train.length,
        batch_size=train.micro_batch_for(device),
        seed=config.seed,
        start_sample=start_sample,
    )


def _check_same(new: RunConfig, old: RunConfig, run: Path) -> None:
    """A resumed run must compute what the first part did."""

    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key, sub in value.items() for k, v in flat(sub, f"{prefix}{key}.").items()}
        return {prefix.removesuffix("."): value}

    before, after = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    # The first run resolved this from the data.
    after["model.vocab_size"] = before["model.vocab_size"]
    changed = [key for key in before if before[key] != after.get(key) and key not in OBSERVING]
    if changed:
        lines = [f"  {key}: was {before[key]}, now {after.get(key)}" for key in changed]
        raise InputError(
            f"{run}: --resume with another configuration; use the same, or start a new run with --out\n"
            + "\n".join(lines)
        )


def evaluate(
    run: Path,
    *,
    split: str = "test",
    which: Which = "best",
    device: str = "cpu",
    baselines: bool = True,
    length: int | None = None,
    overrides: Sequence[str] = (),
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Likelihood of a split under a run's model, beside Markov baselines on the same positions (JSON-able).

    Each base of the union of the split's intervals is scored once; everything before it in its window is context.

    Args:
        run: run folder or an export of one.
        split: train, valid or test.
        which: weights of a run folder.
        device: "cpu" or "cuda".
        baselines: also fit Markov models of orders 0 to 12 on the training split, order chosen on validation;
            for each genome file too where it holds all three splits.
        length: window; None is the training length.
        overrides: `a.b=c` on the run's configuration, for example data.path.
        progress: called with (batches done, batches in all).
    """
    if split not in SPLITS:
        raise InputError(f"--split {split}: choose one of {', '.join(SPLITS)}")
    model = checkpoint.load(run, which)
    if not isinstance(model.config, RunConfig):
        raise InputError(f"{run}: weights without a run configuration; mba evaluate needs a run or an export of one")
    config = validate(override(model.config.model_dump(mode="json"), overrides), str(run), check_files=True)
    length = length or config.train.length
    batch = max(1, (2**14 if device == "cpu" else 2**18) // length)
    data = DnaDataModule(config.data, length=length, batch_size=batch, seed=config.seed)
    data.setup()
    windows = data.evaluation_windows(split)
    likelihood = evaluate_likelihood(
        model,
        data.evaluation_dataloader(split),
        device,
        resolve_precision(config.train.precision, device),
        progress,
    )
    genomes = data.genome.genomes
    result: dict[str, Any] = {
        "run": str(run),
        "which": which,
        "split": split,
        "length": length,
        "bases": windows.bases,
        "scored": likelihood.count,
        "unknown": windows.unknown,
        "first_of_record": windows.first_of_record,
        "model": _scores(likelihood),
        "genomes": {
            genomes[int(group)]: {"model": _scores(score)} | {"scored": score.count}
            for group, score in likelihood.groups.items()
        }
        if len(genomes) > 1
        else {},
    }
    if baselines:
        spans = {name: data.evaluation_spans(name) for name in SPLITS}
        result["markov"] = _markov(markov_table(data.genome, spans["train"], spans["valid"], spans[split]))
        assert result["markov"]["count"] == likelihood.count
        for name, row in result["genomes"].items():
            own = {key: _of_genome(data, name, value) for key, value in spans.items()}
            if all(own.values()):
                row["markov"] = _markov(markov_table(data.genome, own["train"], own["valid"], own[split]))
                assert row["markov"]["count"] == row["scored"]
    return result


def _of_genome(data: DnaDataModule, name: str, spans: Sequence[Span]) -> list[Span]:
    number = data.genome.genomes.index(name)
    return [span for span in spans if data.genome.genome_of(span.record) == number]


def _scores(likelihood: Likelihood) -> dict[str, float]:
    nats = likelihood.nats_per_base
    return {"nats": nats, "bits": nats / math.log(2), "perplexity": math.exp(nats)}


def _markov(fitted: MarkovTable) -> dict[str, Any]:
    orders = [
        {"nats": float(nats), "bits": float(nats) / math.log(2), "perplexity": math.exp(nats)}
        for nats in fitted.test.nats_per_base
    ]
    return {
        "count": fitted.test.count,
        "chosen_order": fitted.order,
        "smoothing": fitted.smoothing,
        "best": orders[fitted.order],
        "orders": orders,
    }


def describe_evaluation(result: dict[str, Any]) -> str:
    """The evaluation for people."""
    lines = [
        f"{result['split']} split: {result['scored']:,} of {result['bases']:,} bases scored "
        f"({result['unknown']:,} unknown, {result['first_of_record']:,} first of their record), "
        f"windows of {result['length']:,}",
        "",
        f"{'':<28}{'nats':>9}{'bits':>9}{'perplexity':>12}",
        _row(f"model ({result['which']})", result["model"]),
    ]
    markov = result.get("markov")
    if markov:
        for order, row in enumerate(markov["orders"]):
            mark = " (best on valid)" if order == markov["chosen_order"] else ""
            lines.append(_row(f"Markov order {order}{mark}", row))
        ratio = result["model"]["perplexity"] / markov["best"]["perplexity"] - 1
        lines.append("")
        lines.append(
            f"The model's perplexity is {abs(ratio):.2%} {'below' if ratio < 0 else 'above'} the best Markov baseline"
            + ("." if ratio < 0 else ": it has learnt less than a table of k-mers.")
        )
    if result["genomes"]:
        lines += ["", f"{'perplexity by genome':<40}{'model':>9}{'order 1':>10}{'order 3':>10}{'best':>10}"]
        for name, row in result["genomes"].items():
            own = row.get("markov")
            columns = [own["orders"][1], own["orders"][3], own["best"]] if own else []
            cells = "".join(f"{column['perplexity']:>10.4f}" for column in columns)
            lines.append(f"{name:<40}{row['model']['perplexity']:>9.4f}{cells}")
    return "\n".join(lines)


def _row(name: str, scores: dict[str, float]) -> str:
    return f"{name:<28}{scores['nats']:>9.4f}{scores['bits']:>9.4f}{scores['perplexity']:>12.4f}"


def sample(
    run: Path,
    out: TextIO,
    *,
    length: int,
    num_samples: int = 1,
    which: Which = "best",
    device: str = "cpu",
    prompt: str | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Sample DNA from a run as FASTA, new bases only; returns the number of records written.

    Without a prompt the first base is drawn from the composition of the training split in the manifest, and the
    header says so.

    Args:
        out: text stream; each record is flushed when it is whole.
        batch_size: records made at a time; does not change the result.
        progress: called with (bases done, bases in all).
    """
    model = checkpoint.load(run, which).to(device)
    if model.codec is None:
        raise InputError(f"{run}: weights without a codec cannot be sampled as DNA; use mba.generate")
    if prompt is not None:
        unknown = next((i for i, letter in enumerate(prompt) if letter not in "ACGTNacgtn"), None)
        if unknown is not None or not prompt:
            where = "is empty" if not prompt else f"has {prompt[unknown]!r} at position {unknown}"  # type: ignore
            raise InputError(f"--prompt {where}; write it in A, C, G, T and N")
    initial, start = None, f"prompt={prompt}"
    if prompt is None:
        composition = model.manifest.get("data", {}).get("composition")
        initial = None if composition is None else [composition[base] for base in "ACGT"]
        shares = composition or dict.fromkeys("ACGT", 0.25)
        origin = "training composition" if composition else "uniform, no composition in the manifest"
        start = f"first_base=drawn from {origin} " + " ".join(f"{b}:{p:.4f}" for b, p in shares.items())
    settings = f"seed={seed} temperature={temperature:g}" + "".join(
        f" {name}={value}" for name, value in (("top_k", top_k), ("top_p", top_p)) if value is not None
    )
    rows: list[list[np.ndarray]] = []
    nats: list[float] = []
    written = done = 0
    blocks = generate_blocks(
        model,
        length=length,
        num_samples=num_samples,
        prompt=prompt,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        initial=initial,
        batch_size=batch_size,
    )
    for block in blocks:
        if block.position == 0:
            rows = [[] for _ in block.tokens]
            nats = [0.0] * len(rows)
        for i, tokens in enumerate(block.tokens.numpy()):
            rows[i].append(tokens)
            nats[i] += float(block.log_likelihood[i].sum())
        done += block.tokens.numel()
        if progress is not None:
            progress(done, num_samples * length)
        if block.position + block.tokens.shape[1] == length:
            for i, pieces in enumerate(rows):
                sequence = model.codec.decode(np.concatenate(pieces))
                out.write(
                    f">sample_{block.row + i} length={length} {settings} {start} "
                    f"log_likelihood={nats[i]:.6g} model={run}\n"
                )
                out.writelines(sequence[at : at + 80] + "\n" for at in range(0, length, 80))
                written += 1
            out.flush()
    return written
