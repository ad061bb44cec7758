"""A training about to begin: every check, before anything is written."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker, check_folder, check_out, is_occupied, locked, restore
from mamba_bio_audio.models.build import LanguageModel, build, to_be_trained
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run.config import RunConfig, named_files
from mamba_bio_audio.run.data import check_same_data, open_data, progress_lines
from mamba_bio_audio.run.folder import has_weights, run_maker
from mamba_bio_audio.run.preflight import check_fits, check_utf8
from mamba_bio_audio.run.pretrained import begin_with
from mamba_bio_audio.run.resume import Continuation, continuation, with_chunk
from mamba_bio_audio.training.config import resolve_precision
from mamba_bio_audio.training.lengths import Stage, length_stages, stretches
from mamba_bio_audio.training.parallel import is_main_process
from mamba_bio_audio.training.probe import choose_chunk


class Session(NamedTuple):
    """One call of a training: where it runs, and what it does with a run that is already in the folder."""

    device: str  # "cpu" or "cuda"
    resume: bool = False  # continue from the last checkpoint; without one, start from the beginning
    force: bool = False  # replace a run of the same command; it is deleted once the new one has weights
    quiet: bool = False  # show no progress
    command: str | None = None  # that makes the folder and may replace it; None is pretrain, classify or finetune
    arguments: tuple[str, ...] = ()  # of the command, for the manifest
    inputs: tuple[str, ...] = ()  # files that the configuration was read from, which are never replaced
    deadline: float | None = None  # of `time.monotonic`: save and end then

    def maker(self, config: RunConfig) -> Maker:
        """The command that makes the run folder."""
        own = "pretrain" if config.head is None else "classify" if config.head.task == "classes" else "finetune"
        return run_maker(self.command or own)


class Prepared(NamedTuple):
    """A training that passed its checks."""

    config: RunConfig  # resolved
    data: DataModule
    described: dict[str, Any]  # its summary
    stages: list[Stage]
    model: LanguageModel | Classifier
    precision: str
    occupied: bool  # the folder holds a run
    past: Continuation


def prepare(
    config: RunConfig,
    run: Path,
    session: Session,
    held: ExitStack,
    *,
    settle: bool = False,
    data: DataModule | None = None,
) -> Prepared:
    """Make every check of a training, whose dry run makes the same ones.

    Args:
        config: from `config.load_config`.
        run: folder.
        session: how it is trained.
        held: receives the run's lock.
        settle: first undo or finish a replacement of the run that was interrupted.
        data: of `config`, where several trainings share them; None opens them.

    Raises:
        InputError: the first thing that is wrong.
    """
    device = session.device
    check_devices(config, device)
    check_fits(config, device)
    occupied = _check_run_folder(config, run, session, held, settle)
    past = Continuation()
    if session.resume:
        config, past = continuation(config, run)
    # Whatever can be wrong with the data or the model comes before the folder is touched.
    if data is None:
        data = open_data(config, device, progress=progress_lines(session.quiet or not is_main_process()))
    data.seed = config.seed
    data.setup("fit")
    stages = length_stages(config.train, lambda length: len(data.training_windows(length)))
    data.stretches = stretches(stages, config.train, past.step, device)
    data.train_dataloader()
    data.evaluation_dataset("valid")
    config = resolve_chunk(resolve(config, data), device)
    described = data.summary()
    if past.manifest:
        check_same_data(past.manifest.get("data", {}), described, run)
    # A resumed run has its weights in its checkpoint, and the pretrained run may be gone.
    if past.step:
        model = to_be_trained(build(config.model, config.head, seed=config.seed), seed=config.seed)
    else:
        model = begin(config)
    precision, before = resolve_precision(config.train.precision, device), past.manifest.get("precision")
    if before not in (None, precision):
        raise InputError(
            f"{run}: was trained in {before}, but train.precision={config.train.precision} means {precision} on "
            f"{device}; continue it on the --device that it was started on"
        )
    return Prepared(config, data, described, stages, model, precision, occupied, past)


def _check_run_folder(config: RunConfig, run: Path, session: Session, held: ExitStack, settle: bool) -> bool:
    """Lock the run folder and check that it may be written; whether it holds a run."""
    check_utf8(run)
    check_folder(run)
    if session.resume and session.force:
        raise InputError("--resume continues a run and --force replaces it; give one of them")
    # Of several processes the first one writes.
    main, maker = is_main_process(), session.maker(config)
    if main:
        held.enter_context(locked(run))
        if settle:
            restore(run, maker, has_weights)
    # The first process may create the folder before the others look at it.
    occupied = is_occupied(run) and (main or session.resume)
    if session.resume and not occupied:
        raise InputError(f"{run}: nothing to resume; leave out --resume to start the run")
    if occupied and not session.resume and not session.force:
        raise InputError(
            f"{run} is not empty; continue it with --resume, replace it with --force, or choose another --out"
        )
    if main and not session.resume:
        check_out(run, maker, [*session.inputs, *named_files(config)], force=session.force)
    return occupied


def check_devices(config: RunConfig, device: str) -> None:
    """Refuse more GPUs than this machine has, and another number of processes than torchrun started.

    Raises:
        InputError: the numbers do not match.
    """
    wanted = config.train.devices
    started = os.environ.get("WORLD_SIZE", "")
    if started.isdigit() and int(started) != wanted * config.train.nodes:
        raise InputError(
            f"{started} processes were started, but train.devices x train.nodes is {wanted} x {config.train.nodes}; "
            f"set them to match"
        )
    if device == "cuda" and wanted > torch.cuda.device_count():
        raise InputError(
            f"train.devices is {wanted}, but torch sees {torch.cuda.device_count()} CUDA devices; lower train.devices"
        )


def resolve(config: RunConfig, data: DataModule) -> RunConfig:
    """Fill in what the data decide: the number of symbols and of ids that are read, and the classes.

    Raises:
        InputError: the configuration says something else.
    """
    vocab = data.codec.vocab_size
    brought = config.train.init if config.head is None else config.head.pretrained
    if config.model.vocab_size not in (None, vocab):
        remedy = "leave it null" if brought is None else f"{brought} reads other symbols, name another model"
        raise InputError(f"model.vocab_size is {config.model.vocab_size}, but the data has {vocab} symbols; {remedy}")
    inputs = max(vocab, (data.codec.start_id or 0) + 1)
    if (config.model.inputs or (vocab if brought else None)) not in (None, inputs):
        remedy = "leave it null" if brought is None else f"set data.start as {brought} was trained"
        raise InputError(
            f"model.inputs is {config.model.inputs}, but the data have {inputs} ids that are read; {remedy}"
        )
    found = {"vocab_size": vocab, "inputs": inputs if inputs > vocab else None}
    if config.model.classes is not None:
        found["classes"] = data.corpus.conditions
    update: dict[str, Any] = {"model": config.model.model_copy(update=found)}
    if config.head is not None:
        update["head"] = _resolve_head(config.head, data.corpus, inputs)
    return config.model_copy(update=update)


def _resolve_head(head: HeadConfig, corpus: Any, inputs: int) -> HeadConfig:
    """Names and kind of the outputs, and what their loss needs to know of the training labels."""
    if head.classes not in (None, corpus.classes):
        raise InputError(
            f"head.classes is {', '.join(head.classes or ())}, but the data has {', '.join(corpus.classes)}; leave it null, or "
            f"set data.classes"
        )
    if head.outputs not in (None, corpus.outputs):
        raise InputError(f"head.outputs is {head.outputs}, but the data have {corpus.outputs}; leave it null")
    found: dict[str, Any] = {"classes": corpus.classes, "outputs": corpus.outputs}
    if head.readings > 1:
        own = np.arange(inputs, dtype=np.uint8)
        other = np.where(own == corpus.codec.pad_id, -1, corpus.codec.reverse_complement(own[::-1]).astype(int))
        if head.complement not in (None, tuple(other.tolist())):
            raise InputError("head.complement is not that of the data; leave it null")
        found["complement"] = other.tolist()
    balanced = head.class_weights == "balanced"
    if balanced or corpus.outputs == "numbers":
        statistics = corpus.label_statistics()
        if head.loss == "poisson" and min(statistics.get("least", [0])) < 0:
            raise InputError(f"head.loss=poisson: a number is {min(statistics['least']):g}, below 0; set head.loss=mse")
        found |= {key: getattr(head, key) or statistics[key] for key in ("mean", "scale") if key in statistics}
        if balanced:
            counts = statistics["counts"]
            found["class_weights"] = [sum(counts) / len(counts) / count for count in counts]
    weights = head.class_weights if isinstance(head.class_weights, tuple) else None
    for key, given in (("mean", head.mean), ("scale", head.scale), ("class_weights", weights)):
        if given is not None and len(given) != len(corpus.classes):
            raise InputError(
                f"head.{key} has {len(given)} values for {len(corpus.classes)} {corpus.outputs}; give one each"
            )
    try:
        return head.resolved(**found)
    except ValidationError as error:
        raise InputError(f"head: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def resolve_chunk(config: RunConfig, device: str) -> RunConfig:
    """Choose `train.stream_chunk` by measuring, where it is "auto".

    Of several processes the first one measures; the others take its choice when they have met (training/module.py).
    """
    if config.train.stream_chunk != "auto":
        return config
    chunk = choose_chunk(config.model, config.train, device, config.head) if is_main_process() else None
    return with_chunk(config, chunk)


def begin(config: RunConfig) -> LanguageModel | Classifier:
    """The model at the start of training: random weights, or those of `head.pretrained` or `train.init`.

    Raises:
        InputError: the pretrained model cannot be loaded, has another shape, or reads other symbols.
    """
    model = build(config.model, config.head, seed=config.seed)
    head = config.head
    key, path = ("train.init", config.train.init) if head is None else ("head.pretrained", head.pretrained)
    if path is not None:
        begin_with(model, key, path, domain_of(config.data.kind).codec(config.data))
    return to_be_trained(model, seed=config.seed)
