"""Training, of language models and of classifiers, and the dry run that says what it would take."""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.likelihood import perplexity
from mamba_bio_audio.files import (
    Maker,
    check_folder,
    check_out,
    is_occupied,
    locked,
    mark,
    replacing,
    restore,
    write_json,
    write_text,
)
from mamba_bio_audio.jobs.sample_audio import SAMPLE_FILES
from mamba_bio_audio.machine import check_memory
from mamba_bio_audio.models.build import LanguageModel, build
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.audio.classes import AudioClassesDataModule
from mamba_bio_audio.pipelines.dna.classes import DnaClassesDataModule
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.plain_yaml import dump
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import RunConfig, named_files, to_yaml
from mamba_bio_audio.run.data import DataModule, DataWatch, check_same_data, open_data, progress_lines
from mamba_bio_audio.run.environment import environment, precision_settings
from mamba_bio_audio.run.preflight import FIT, check_fits, check_utf8, memory_for_run
from mamba_bio_audio.text import show, table
from mamba_bio_audio.training.checkpoints import last_checkpoint, last_position
from mamba_bio_audio.training.fit import fit, resolve_precision
from mamba_bio_audio.training.lengths import Stage, length_stages, positions_until, stretches
from mamba_bio_audio.training.parallel import is_main_process
from mamba_bio_audio.training.probe import choose_chunk, probe
from mamba_bio_audio.training.schedule import rate_after

# Keys that a resumed run may change: they alter what is observed or how fast it is, not what is computed.
OBSERVING = {
    "description",
    "name",
    "data.num_workers",
    "train.checkpoint_every",
    "train.cuda_graph",
    "train.log_every",
    "train.validate_every",
}

# Keys that it may change too, which is said and kept in the manifest: what is computed differs by rounding alone.
ROUNDING = {
    "train.devices",
    "train.micro_batch",
    "train.nodes",
    "train.recompute",
    "train.sequence_parallel",
    "train.stream_chunk",
    "train.stream_offload",
}

# What a run and the commands that read it write into its folder.
RUN_FILES = (
    "config.yaml",
    "manifest.json",
    "metrics.csv",
    "model.safetensors",
    "best_samples.safetensors",
    "checkpoints/last.safetensors",
    "checkpoints/best.safetensors",
    "tensorboard/events.out.tfevents.*",
    "tensorboard/hparams.yaml",
    *(
        f"{name.format(split)}"
        for split in ("train", "valid", "test")
        for name in (
            "evaluate-{}.json",
            "evaluate-context-{}.json",
            "evaluate-context-{}.csv",
            "evaluate-context-{}-position.csv",
            "evaluate-context-{}.png",
            "predictions-{}.tsv",
            "confusion-{}.png",
        )
    ),
    "sc09/metrics.json",
    "sc09/first-samples.png",
    *(f"sc09/samples-*/{name}" for name in SAMPLE_FILES),
    "report.html",
    "curve.png",
    "spectrogram.png",
    "samples.fa",
    "samples.fa.report.json",
    "sample.wav",
    "sample.wav.json",
)


def run_maker(command: str) -> Maker:
    """The command that makes a run folder: pretrain, classify, or demo."""
    return Maker(command, RUN_FILES)


def _maker(config: RunConfig, command: str | None) -> Maker:
    return run_maker(command or ("pretrain" if config.head is None else "classify"))


def stands(run: Path) -> bool:
    """Whether a run holds weights, and so is worth more than the run that it replaces."""
    return (run / "model.safetensors").exists() or any((run / "checkpoints").glob("last.*"))


def resolve(config: RunConfig, data: DataModule) -> RunConfig:
    """Fill in what the data's codec decides."""
    vocab = data.codec.vocab_size
    if config.model.vocab_size not in (None, vocab):
        raise InputError(
            f"model.vocab_size is {config.model.vocab_size}, but the data has {vocab} symbols; leave it null"
        )
    update: dict[str, Any] = {"model": config.model.model_copy(update={"vocab_size": vocab})}
    if config.head is not None:
        assert isinstance(data, DnaClassesDataModule | AudioClassesDataModule)
        if config.head.classes not in (None, data.classes):
            raise InputError(
                f"head.classes is {', '.join(config.head.classes or ())}, but the data has {', '.join(data.classes)}; "
                f"leave it null, or set data.classes"
            )
        update["head"] = config.head.model_copy(update={"classes": data.classes})
    return config.model_copy(update=update)


def begin(config: RunConfig) -> LanguageModel | Classifier:
    """The model as training begins: random weights, and those of `head.pretrained` where it is set.

    Raises:
        InputError: the pretrained model is of another shape.
    """
    model = build(config.model, config.head, seed=config.seed)
    if config.head is None or config.head.pretrained is None:
        return model
    assert isinstance(model, Classifier)
    source = saved.load(config.head.pretrained)
    given = source.backbone if isinstance(source, Classifier) else source
    wanted, found = config.model.model_dump(mode="json"), given.model_config.model_dump(mode="json")
    different = [
        f"model.{key} is {wanted[key]}, not {found.get(key)}" for key in wanted if wanted[key] != found.get(key)
    ]
    if different:
        raise InputError(
            f"head.pretrained: {config.head.pretrained} is another model: {'; '.join(different)}; set model.* likewise"
        )
    model.backbone.load_state_dict(given.state_dict())
    if isinstance(source, Classifier) and source.labels == model.labels and source.pool.kind == model.pool.kind:
        model.head.load_state_dict(source.head.state_dict())
    return model


def resolve_chunk(config: RunConfig, device: str, before: RunConfig | None = None) -> RunConfig:
    """Choose `train.stream_chunk` where it is "auto": as the resumed run did, or by measuring.

    Of several processes the first one measures; the others take its choice when they have met (training/module.py).
    """
    if config.train.stream_chunk != "auto":
        return config
    if before:
        chunk = before.train.stream_chunk
    else:
        chunk = choose_chunk(config.model, config.train, device, config.head) if is_main_process() else None
    # Without chunks there are no states between them.
    update = {"stream_chunk": chunk, "stream_offload": config.train.stream_offload and chunk is not None}
    return config.model_copy(update={"train": config.train.model_copy(update=update)})


def check_devices(config: RunConfig, device: str) -> None:
    """As many GPUs as the configuration asks for must be here, and as many processes as torchrun started."""
    wanted = config.train.devices
    started = os.environ.get("WORLD_SIZE", "")
    if started.isdigit() and int(started) != wanted * config.train.nodes:
        raise InputError(
            f"{started} processes were started, but train.devices x train.nodes is {wanted} x {config.train.nodes}; "
            f"set them to what was started"
        )
    if device == "cuda" and wanted > torch.cuda.device_count():
        raise InputError(f"train.devices is {wanted}, but torch sees {torch.cuda.device_count()} CUDA devices")


class _Checked(NamedTuple):
    """A training about to begin: nothing is wrong with it, and nothing is written."""

    config: RunConfig  # resolved
    data: DataModule
    stages: list[Stage]
    model: LanguageModel | Classifier
    described: dict[str, Any]  # the data
    precision: str
    step: int  # to begin after
    before: dict[str, Any]  # manifest of the run that is resumed
    changed: dict[str, Any]  # what a resumed run does otherwise
    occupied: bool  # the folder holds a run


def _checked(
    config: RunConfig,
    run: Path,
    maker: Maker,
    device: str,
    resume: bool,
    force: bool,
    held: ExitStack,
    *,
    inputs: Sequence[str] = (),
    settle: bool = False,
    quiet: bool = False,
) -> _Checked:
    """Every check of a training, under the run's lock, which goes to `held`; the dry run makes the same ones.

    Args:
        settle: put right what an interrupted replacement of the run left.
        quiet: no progress.

    Raises:
        InputError: the first thing that is wrong.
    """
    check_devices(config, device)
    check_fits(config, device)
    check_utf8(run)
    check_folder(run)
    if resume and force:
        raise InputError("--resume continues a run and --force replaces it; give one of them")
    # Of several processes the first one writes.
    main = is_main_process()
    if main:
        held.enter_context(locked(run))
        if settle:
            restore(run, maker, stands)
    train = config.train
    step = 0
    # Of several processes the first one makes the folder, perhaps before the others look at it.
    occupied = is_occupied(run) and (main or resume)
    if resume and not occupied:
        raise InputError(f"{run}: nothing to resume; leave out --resume to start the run")
    if occupied and not resume and not force:
        raise InputError(f"{run} is not empty; continue it with --resume, replace it with --force, or choose --out")
    if main and not resume:
        check_out(run, maker, [*inputs, *named_files(config)], force=force)
    before = saved.read_manifest(run) if resume else {}
    changed: dict[str, Any] = {}
    if resume:
        old = saved.read_config(run)
        config = resolve_chunk(config, device, old)
        changed = _changes(config, old, run)
        if last_checkpoint(run):
            step, validation_due, stale = last_position(run)
            if step > train.steps:
                raise InputError(
                    f"{run}: train.steps is {train.steps:,}, but {step:,} steps are done; set it to {step} or more"
                )
            if step == train.steps and not validation_due and "train.steps" not in changed:
                raise InputError(f"{run}: already complete at step {step:,} of {train.steps:,}")
            if train.patience is not None and stale >= train.patience:
                raise InputError(f"{run}: already complete, ended by train.patience at step {step:,}")
            if "train.steps" in changed:
                was, now = (f"{rate_after(kept, step):.4g}" for kept in (old.train, train))
                changed["rate"] = {"was": was, "now": now}
        elif main:
            show(f"{run}: no checkpoint yet, starting from the beginning", file=sys.stderr)

    # Whatever can be wrong with the data or the model comes before the folder is touched.
    data = open_data(config, device, progress=progress_lines(quiet or not main))
    data.setup("fit")
    stages = length_stages(train, lambda length: len(data.training_windows(length)))
    data.stretches = stretches(stages, train, step, device)
    data.train_dataloader()
    data.evaluation_dataset("valid")
    config = resolve_chunk(resolve(config, data), device)
    train = config.train
    described = data.summary()
    if resume and before:
        check_same_data(before.get("data", {}), described, run)
    # A resumed run has its weights in its checkpoint, and the pretrained run need not be there any more.
    model = build(config.model, config.head, seed=config.seed) if step else begin(config)
    precision = resolve_precision(train.precision, device)
    if before.get("precision") not in (None, precision):
        raise InputError(
            f"{run}: was trained in {before['precision']}, but train.precision={train.precision} means {precision} on "
            f"{device}; continue it on the --device that it was started on"
        )
    return _Checked(config, data, stages, model, described, precision, step, before, changed, occupied)


def pretrain(
    config: RunConfig,
    run: Path,
    *,
    device: str,
    resume: bool = False,
    force: bool = False,
    quiet: bool = False,
    arguments: Sequence[str] = (),
    command: str | None = None,
    inputs: Sequence[str] = (),
) -> dict[str, Any]:
    """Train into the run folder `run` and return a summary (JSON-able).

    Args:
        config: from `config.load_config`.
        run: folder; must be new or empty unless `resume` or `force`.
        device: "cpu" or "cuda".
        resume: continue from the last checkpoint; without one, start from the beginning.
        force: replace a run of the same command; it is deleted once the new one has weights.
        quiet: no progress.
        arguments: of the command, for the manifest.
        command: which makes the folder and may replace it; None is pretrain, or classify where there is a head.
        inputs: files that the configuration was read from, which are never replaced either.

    Raises:
        InputError: the folder is in use, or the resumed run had another configuration.
        NonFiniteLoss: the training diverged.
    """
    run = run.resolve()
    maker = _maker(config, command)
    with ExitStack() as held:
        checked = _checked(config, run, maker, device, resume, force, held, inputs=inputs, settle=True, quiet=quiet)
        return _train(checked, run, maker, device, resume, quiet, arguments, held)


def _train(
    checked: _Checked,
    run: Path,
    maker: Maker,
    device: str,
    resume: bool,
    quiet: bool,
    arguments: Sequence[str],
    held: ExitStack,
) -> dict[str, Any]:
    """`pretrain` after its checks, under the run's lock; `held` ends with the training."""
    config, data, stages, model, described, precision, step, before, changed, occupied = checked
    train, main = config.train, is_main_process()
    settings = precision_settings(device, precision)
    machine = environment(device)
    if main and not quiet:
        kernels = ("device", f"{machine['device']}, {precision}, kernels: {settings['kernels']}")
        show(table([kernels, *domain_of(config.data.kind).describe(described)]), file=sys.stderr)
    if main:
        if occupied and not resume:
            held.enter_context(replacing(run, maker, stands))
        run.mkdir(parents=True, exist_ok=True)
        mark(run, maker)
        # What a killed training was writing, by the names of `atomic_path`; nothing else that may lie there.
        for name in RUN_FILES:
            for left in run.glob(str(Path(name).with_name(f".{Path(name).name}.*.tmp"))):
                if left.is_file() and left.name.split(".")[-2].isdecimal():
                    left.unlink()
        write_text(run / "config.yaml", to_yaml(config))
    session = machine | {"command": list(arguments), "from_step": step, "precision_settings": settings}
    if changed:
        session["changed"] = changed
        if main:
            show(_describe_changes(changed, step), file=sys.stderr)
    manifest: dict[str, Any] = session | {
        "seed": config.seed,
        "precision": precision,
        "sessions": [*before.get("sessions", []), session],
        "data": described,
        "length_stages": [stage.describe() for stage in stages],
    }
    if main:
        write_json(run / "manifest.json", manifest)

    def describe_again() -> dict[str, Any]:
        again = open_data(config, device)
        again.setup("fit")
        return again.summary()

    watch = DataWatch(data, described, describe_again, run)
    result = fit(
        model,
        data,
        train,
        out=run,
        device=device,
        stages=stages,
        resume=step > 0,
        quiet=quiet,
        unit=f"{data.codec.unit}s",
        check_data=watch.check,
    )
    best = result.best_nats if math.isfinite(result.best_nats) else None
    weights = None if best is None or not main else weights_hash(load_file(run / "model.safetensors"))
    summary = {
        "run": str(run),
        "step": result.step,
        "steps": train.steps,
        "best_step": result.best_step,
        "valid_nats": best,
        "weights_sha256": weights,
        "valid_bits": None if best is None else best / math.log(2),
        "valid_perplexity": None if best is None else perplexity(best),
        "unit": data.codec.unit,
        "per": data.codec.unit if config.head is None else "sequence",
        "best_samples_step": result.best_samples_step or None,
        "ended_by_patience": result.exhausted,
        "warning": result.warning,
        "tokens_per_second": result.tokens_per_second,
        "stopped_by": None if result.signal is None else signal.Signals(result.signal).name,
    }
    if main:
        write_json(run / "manifest.json", manifest | {"result": summary})
    return summary


def dry_run(
    config: RunConfig,
    run: Path | None = None,
    *,
    device: str,
    resume: bool = False,
    force: bool = False,
    command: str | None = None,
    inputs: Sequence[str] = (),
) -> dict[str, Any]:
    """What `pretrain` would do: resolved configuration, sizes, measured estimate of memory and time.

    Writes nothing but, where a FASTA has no index yet, one into the user's cache. A lock stands beside the run while its
    folder is looked at.

    Args:
        run: folder that the run would be in; None leaves its checks out.

    Raises:
        InputError: whatever `pretrain` would refuse, or more memory than there is.
    """
    chosen = config.train.stream_chunk == "auto"
    with ExitStack() as held:
        place = Path(held.enter_context(tempfile.TemporaryDirectory())) / "run" if run is None else run.resolve()
        checked = _checked(config, place, _maker(config, command), device, resume, force, held, inputs=inputs)
    config, stages, train = checked.config, checked.stages, checked.config.train
    # Before the probe, which leaves its memory with the allocator of a GPU.
    available = memory_for_run(device)
    estimate = probe(config.model, train, device, config.head)
    check_memory(
        estimate.memory_bytes or 0,  # where the system does not tell
        f"training on {train.micro_batch_for(device):,} x {train.length:,} positions at a time",
        FIT,
        available=available,
        where="the GPU" if device == "cuda" else "this machine",
    )
    micro = train.micro_batch_for(device)
    return {
        "config": config.model_dump(mode="json"),
        "device": device,
        "precision": checked.precision,
        "parameters": checked.model.num_parameters(),
        "tokens_per_step": train.tokens_per_step,
        "micro_batch": micro,
        "accumulate": train.accumulate(device),
        "tokens": positions_until(stages, train.steps),
        "length_stages": [stage.describe() for stage in stages],
        "stream_chunk_chosen": chosen,
        "memory_bytes": estimate.memory_bytes,
        "seconds_per_step": estimate.seconds_per_step,
        "seconds": estimate.seconds_per_step * train.steps,
        "data": checked.described,
    }


def describe_dry_run(result: dict[str, Any]) -> str:
    """The dry run for people."""
    from mamba_bio_audio.training.progress import duration

    data, memory = result["data"], result["memory_bytes"]
    rows = [
        ("device", f"{result['device']}, {result['precision']}"),
        ("parameters", f"{result['parameters']:,}"),
        (
            "tokens per step",
            f"{result['tokens_per_step']:,} = {result['accumulate']} x micro-batch of {result['micro_batch']} "
            f"x length {result['config']['train']['length']:,}" + _devices_text(result["config"]["train"]),
        ),
        ("tokens in all", f"{result['tokens']:,}"),
        *(
            (
                f"at length {stage['length']:,}",
                f"steps {stage['start'] + 1:,} to {stage['stop']:,}, {stage['sequences_per_step']:,} sequences each: "
                f"{stage['epochs']:.4g} epochs of {stage['windows']:,} windows",
            )
            for stage in result["length_stages"]
        ),
        *([("stream chunk", _chunk_text(result["config"]["train"]))] if result["stream_chunk_chosen"] else []),
        ("memory", "not told by this system" if memory is None else f"about {memory / 2**30:.2f} GiB"),
        (
            "time",
            f"about {result['seconds_per_step']:.3g} s a step, {duration(result['seconds'])} in all, "
            f"without validation",
        ),
    ]
    text = dump(result["config"])
    return f"{text}\n{table(domain_of(result['config']['data']['kind']).describe(data))}\n{table(rows)}\n"


def _devices_text(train: dict[str, Any]) -> str:
    devices, parts = train["devices"] * train["nodes"], train["sequence_parallel"]
    if devices == 1:
        return ""
    return f" x {devices} devices" if parts == 1 else f" x {devices // parts} groups of {parts} devices"


def _chunk_text(train: dict[str, Any]) -> str:
    chunk = train["stream_chunk"]
    return "none needed: whole sequences fit" if chunk is None else f"{chunk:,}, the largest that fits"


def _changes(new: RunConfig, old: RunConfig, run: Path) -> dict[str, dict[str, Any]]:
    """What a resumed run changes beyond what is observed, as key -> `was` and `now`.

    Raises:
        InputError: something that would change what is computed by more than rounding.
    """

    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key, sub in value.items() for k, v in flat(sub, f"{prefix}{key}.").items()}
        return {prefix.removesuffix("."): value}

    before, after = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    # The first run resolved this from the data.
    after["model.vocab_size"] = before["model.vocab_size"]
    if "head.classes" in before and after.get("head.classes") is None:
        after["head.classes"] = before["head.classes"]
    keys = [key for key in before if before[key] != after.get(key) and key not in OBSERVING]
    refused = [key for key in keys if key not in ROUNDING and key != "train.steps"]
    if refused:
        lines = [f"  {key}: was {before[key]}, now {after.get(key)}" for key in refused]
        raise InputError(
            f"{run}: --resume with another configuration; use the same, or start a new run with --out\n"
            + "\n".join(lines)
        )
    return {key: {"was": before[key], "now": after[key]} for key in keys}


def _describe_changes(changed: dict[str, dict[str, Any]], step: int) -> str:
    return "\n".join(
        f"from step {step + 1:,} on: {key} {values['now']}, was {values['was']}"
        + ("" if key in ("train.steps", "rate") else " (the same training but for rounding)")
        for key, values in changed.items()
    )
