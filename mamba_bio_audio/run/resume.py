"""Resuming a training: where it continues, and which settings may change."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.run.config import RunConfig
from mamba_bio_audio.run.described import read_config, read_manifest
from mamba_bio_audio.text import show
from mamba_bio_audio.training.checkpoints import last_checkpoint, last_position
from mamba_bio_audio.training.parallel import is_main_process
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

# Keys that it may also change, which is reported and recorded in the manifest: results differ by rounding alone.
ROUNDING = {
    "train.devices",
    "train.micro_batch",
    "train.nodes",
    "train.recompute",
    "train.sequence_parallel",
    "train.stream_chunk",
    "train.stream_offload",
}


class Continuation(NamedTuple):
    """Where a training continues; the defaults are those of a new one."""

    step: int = 0  # already done
    manifest: dict[str, Any] = {}  # noqa: RUF012  of the run so far
    changed: dict[str, dict[str, Any]] = {}  # noqa: RUF012  key -> `was` and `now`


def with_chunk(config: RunConfig, chunk: Any) -> RunConfig:
    """A configuration with `train.stream_chunk`; without chunks there are no states between them to offload."""
    update = {"stream_chunk": chunk, "stream_offload": config.train.stream_offload and chunk is not None}
    return config.model_copy(update={"train": config.train.model_copy(update=update)})


def continuation(config: RunConfig, run: Path) -> tuple[RunConfig, Continuation]:
    """Where a run continues with `config`, and the configuration with an automatic `train.stream_chunk` as it was.

    Raises:
        InputError: the run is complete, or the configuration differs in something that may not change.
    """
    manifest, old = read_manifest(run), read_config(run)
    config, changed = _beside(config, old, run)
    train = config.train
    if not last_checkpoint(run):
        if is_main_process():
            show(f"{run}: no checkpoint yet, starting from the beginning", file=sys.stderr)
        return config, Continuation(0, manifest, changed)
    step, validation_due, stale = last_position(run)
    if step > train.steps:
        raise InputError(
            f"{run}: train.steps is {train.steps:,}, but {step:,} steps are done; set it to {step} or more"
        )
    if step == train.steps and not validation_due and "train.steps" not in changed:
        raise InputError(
            f"{run}: already complete at step {step:,} of {train.steps:,}; raise train.steps to train more"
        )
    if train.patience is not None and stale >= train.patience:
        raise InputError(
            f"{run}: already complete, ended by train.patience at step {step:,}; start a new run with another --out"
        )
    if "train.steps" in changed:
        was, now = (f"{rate_after(settings, step):.4g}" for settings in (old.train, train))
        changed["rate"] = {"was": was, "now": now}
    return config, Continuation(step, manifest, changed)


def is_complete(config: RunConfig, run: Path) -> bool:
    """Whether a training with `config` ended in a run folder by itself, so that nothing is left to do.

    Raises:
        InputError: the run there is of a configuration that may not be continued with this one.
    """
    result: dict[str, Any] = read_manifest(run).get("result") or {}
    _, changed = _beside(config, read_config(run), run)
    return bool(result) and result.get("stopped_by") is None and "train.steps" not in changed


def _beside(config: RunConfig, old: RunConfig, run: Path) -> tuple[RunConfig, dict[str, dict[str, Any]]]:
    """The configuration with an automatic `train.stream_chunk` as it was, and its changes."""
    if config.train.stream_chunk == "auto":
        config = with_chunk(config, old.train.stream_chunk)
    return config, changes(config, old, run)


def changes(new: RunConfig, old: RunConfig, run: Path) -> dict[str, dict[str, Any]]:
    """What a resumed run changes beyond what is only observed, as key -> `was` and `now`.

    Raises:
        InputError: a change that would alter results by more than rounding.
    """
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    # The first session filled these in from the data.
    for key in ("model.vocab_size", "model.inputs"):
        after[key] = before[key]
    if after["model.classes"] == "folders":
        after["model.classes"] = before["model.classes"]
    for key in ("classes", "outputs", "mean", "scale"):
        if f"head.{key}" in before and after.get(f"head.{key}") is None:
            after[f"head.{key}"] = before[f"head.{key}"]
    if after.get("head.class_weights") == "balanced":
        after["head.class_weights"] = before["head.class_weights"]
    # A mapping in place of null has keys of its own.
    keys = [key for key in before | after if before.get(key) != after.get(key) and key not in OBSERVING]
    refused = [key for key in keys if key not in ROUNDING and key != "train.steps"]
    if refused:
        lines = [f"  {key}: was {before.get(key)}, now {after.get(key)}" for key in refused]
        raise InputError(
            f"{run}: --resume with another configuration; use the original one, or start a new run with --out\n"
            + "\n".join(lines)
        )
    return {key: {"was": before[key], "now": after[key]} for key in keys}


def describe_changes(changed: dict[str, dict[str, Any]], step: int) -> str:
    """The changes of a run that continues after `step`, one line each."""
    return "\n".join(
        f"from step {step + 1:,} on: {key} {values['now']}, was {values['was']}"
        + ("" if key in ("train.steps", "rate") else " (the same training up to rounding)")
        for key, values in changed.items()
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    if isinstance(value, dict):
        return {k: v for key, sub in value.items() for k, v in _flat(sub, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): value}
