"""One training, from a validated configuration to a run folder."""

from __future__ import annotations

import math
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from mamba_bio_audio.files import mark, replacing, write_json, write_text
from mamba_bio_audio.models.tasks import TASKS, outputs_of
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.pipelines.scores import perplexity
from mamba_bio_audio.run.begin import Prepared, Session, prepare
from mamba_bio_audio.run.config import RunConfig, to_yaml
from mamba_bio_audio.run.data import DataWatch, open_data
from mamba_bio_audio.run.environment import environment, precision_settings
from mamba_bio_audio.run.folder import has_weights, remove_unfinished
from mamba_bio_audio.run.outcomes import OUT_OF_TIME, Trained
from mamba_bio_audio.run.resume import describe_changes
from mamba_bio_audio.text import show, table
from mamba_bio_audio.training.fit import FitResult, Place, fit
from mamba_bio_audio.training.metrics import value_at
from mamba_bio_audio.training.parallel import is_main_process


def train(config: RunConfig, run: Path, session: Session, data: DataModule | None = None) -> Trained:
    """Train into the run folder `run`.

    Args:
        config: from `config.load_config`.
        run: folder; must be new or empty unless the session resumes or replaces a run.
        session: how.
        data: of `config`, where several trainings share them; None opens them.

    Raises:
        InputError: the folder is in use, the data or the model are wrong, or a resumed run had another configuration.
        NonFiniteLoss: the training diverged.
    """
    run = run.resolve()
    with ExitStack() as held:
        prepared = prepare(config, run, session, held, settle=True, data=data)
        return _train(prepared, run, session, held)


def _train(prepared: Prepared, run: Path, session: Session, held: ExitStack) -> Trained:
    """`train` after its checks, under the run's lock; `held` ends with the training."""
    config, data, described, past = prepared.config, prepared.data, prepared.described, prepared.past
    device, main = session.device, is_main_process()
    settings = precision_settings(device, prepared.precision)
    machine = environment(device)
    if main and not session.quiet:
        kernels = ("device", f"{machine['device']}, {prepared.precision}, kernels: {settings['kernels']}")
        show(table([kernels, *domain_of(config.data.kind).describe(described)]), file=sys.stderr)
    if main and past.changed:
        show(describe_changes(past.changed, past.step), file=sys.stderr)
    current = machine | {"command": list(session.arguments), "from_step": past.step, "precision_settings": settings}
    if past.changed:
        current["changed"] = past.changed
    manifest: dict[str, Any] = current | {
        "seed": config.seed,
        "precision": prepared.precision,
        "sessions": [*past.manifest.get("sessions", []), current],
        "data": described,
        "length_stages": [stage.describe() for stage in prepared.stages],
    }
    if main:
        maker = session.maker(config)
        if prepared.occupied and not session.resume:
            held.enter_context(replacing(run, maker, has_weights))
        run.mkdir(parents=True, exist_ok=True)
        mark(run, maker)
        remove_unfinished(run)
        write_text(run / "config.yaml", to_yaml(config))
        write_json(run / "manifest.json", manifest)

    def describe_again() -> dict[str, Any]:
        again = open_data(config, device)
        again.setup("fit")
        return again.summary()

    place = Place(run, device, past.step > 0, session.quiet, session.deadline)
    check_data = DataWatch(data, described, describe_again, run).check
    result = fit(prepared.model, data, config.train, place, prepared.stages, check_data)
    trained = _trained(config, run, data.codec.unit, result)
    if main:
        write_json(run / "manifest.json", manifest | {"result": trained.model_dump()})
    return trained


def _trained(config: RunConfig, run: Path, unit: str, result: FitResult) -> Trained:
    best = result.best_nats if math.isfinite(result.best_nats) else None
    nats = best if config.head is None or outputs_of(config.head).loss_name(config.head) == "nats" else None
    weights = None
    if best is not None and is_main_process():
        weights = weights_hash(load_file(run / "model.safetensors"))
    return Trained(
        run=str(run),
        step=result.step,
        steps=config.train.steps,
        best_step=result.best_step,
        valid_nats=best,
        weights_sha256=weights,
        valid_bits=None if nats is None else nats / math.log(2),
        valid_perplexity=None if nats is None else perplexity(nats),
        answers_right=value_at(run / "metrics.csv", result.best_step, "valid_accuracy"),
        unit=unit,
        per=unit if config.head is None else TASKS[config.head.task].per,
        best_samples_step=result.best_samples_step or None,
        ended_by_patience=result.exhausted,
        warning=result.warning,
        tokens_per_second=result.tokens_per_second,
        stopped_by=OUT_OF_TIME if result.out_of_time else result.signal and signal.Signals(result.signal).name,
        first_sample=config.first_sample,
    )
