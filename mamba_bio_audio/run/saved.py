"""Reads run folders, and loads a model from a run, an export, or a file or folder written by other programs.

| folder or file | recognised by |
|---|---|
| our run | `config.yaml` |
| our export, a packaged model, Hugging Face's Mamba and Mamba-2, mamba_ssm | `config.json`; weights whole or in shards |
| bare state dict of either | `.pt`, `.bin`, `.pth` or `.safetensors` file |

`foreign.py` reads what other programs wrote; `export.py` writes what `load` and Hugging Face read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import inside
from mamba_bio_audio.models.build import LanguageModel, build
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.low_rank import merged
from mamba_bio_audio.models.size import count_parameters, size_text
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run.config import RunConfig, model_config, validate
from mamba_bio_audio.run.described import checked_manifest, read_config, read_json, read_manifest
from mamba_bio_audio.run.foreign import infer_config, mistakes, read_folder, read_tensors, rename, some
from mamba_bio_audio.run.packaged import find_model
from mamba_bio_audio.training.checkpoints import check_finite, last_checkpoint, load_checkpoint

Which = Literal["best", "last", "ema", "best-samples"]


class _Source(NamedTuple):
    tensors: dict[str, Tensor]
    model: ModelConfig | UNetConfig
    config: RunConfig | ModelConfig | UNetConfig
    manifest: dict[str, Any]

    @property
    def head(self) -> HeadConfig | None:
        return self.config.head if isinstance(self.config, RunConfig) else None


def load_language_model(path: str | Path, which: Which = "best") -> LanguageModel:
    """Like `load`, but only for language models.

    Raises:
        InputError: as for `load`, or the model is a classifier.
    """
    model = load(path, which)
    if isinstance(model, Classifier):
        raise InputError(f"{path}: a classifier of {', '.join(model.labels)}; this command needs a language model")
    return model


def load_classifier(path: str | Path, which: Which = "best") -> Classifier:
    """Like `load`, but only for classifiers.

    Raises:
        InputError: as for `load`, or the model is a language model.
    """
    model = load(path, which)
    if not isinstance(model, Classifier):
        raise InputError(f"{path}: a language model; this command needs a classifier, from mba classify")
    return model


def load(path: str | Path, which: Which = "best") -> LanguageModel | Classifier:
    """Load a model for use.

    Args:
        path: run folder, export, Hugging Face Mamba folder, mamba_ssm folder, a state dict file, or the name of a packaged
            model (`mba models`); a path that exists wins over a name, and `~` is the home folder.
        which: weights to load: "best" by validation (of the moving average if the run kept one), "last", "ema" (the last
            moving average), or "best-samples" (whose generated audio came closest to recordings, `train.listen`).

    Returns:
        A language model, or a classifier with `.labels`, on the CPU in fp32 and eval mode, with `.config` (`RunConfig`,
        or `ModelConfig` for foreign weights), `.codec` (symbols to ids and back; None for foreign weights), `.encode` and
        `.decode` (its methods for one sequence), and `.manifest` (the run's record of itself).

    Raises:
        InputError: there is nothing to load, or the weights do not fit the configuration.
    """
    path, source = _open(path, which)
    model = _build_fitting(source, path)
    check_finite(source.tensors, path)
    model.load_state_dict(source.tensors, strict=False)
    model.eval()
    model.config = source.config
    run = source.config
    model.codec = domain_of(run.data.kind).codec(run.data) if isinstance(run, RunConfig) else None
    model.manifest = source.manifest
    inputs = model.model_config.num_inputs
    if model.codec is not None and (model.codec.start_id or 0) >= inputs:
        raise InputError(
            f"{path}: its configuration contradicts itself: sequences begin with id {model.codec.start_id} (data.start), but "
            f"the model reads {inputs} ids (model.inputs)"
        )
    return model


def architecture(path: str | Path) -> ModelConfig | UNetConfig:
    """The configuration of the model that `load` would build.

    Raises:
        InputError: as for `load`, as far as its weights are not looked at.
    """
    found = find_model(path)
    if (found / "config.yaml").exists():
        return read_config(found).model
    return _open(found, "best")[1].model


def _open(path: str | Path, which: Which) -> tuple[Path, _Source]:
    """Where a model is, and what is there."""
    if which not in get_args(Which):
        raise InputError(f"which is {which!r}; choose one of {', '.join(get_args(Which))}")
    path = find_model(path)
    if path.is_file():
        if path.parent.name == "checkpoints" and (path.parent.parent / "config.yaml").exists():
            raise InputError(
                f"{path}: a checkpoint of a run; give the run folder {path.parent.parent}, with which=last"
            )
        tensors = rename(read_tensors(path), path)
        inferred = infer_config(tensors, path, None)
        return path, _Source(tensors, inferred, inferred, {})
    if (path / "config.yaml").exists():
        return path, _from_run(path, which)
    if (path / "config.json").exists():
        if which != "best":
            raise InputError(f"{path}: an export holds a single set of weights, so which must be 'best', not {which!r}")
        return path, _from_folder(path)
    raise InputError(
        f"{path}: neither a run (config.yaml) nor an exported model (config.json); "
        f"give the folder that mba pretrain or mba export wrote"
    )


def _build_fitting(source: _Source, path: Path) -> LanguageModel | Classifier:
    """Build the configured model, if the names and shapes of its tensors are those that were read."""
    # Checked before memory is allocated; if only a few tensors are missing, their names below tell more.
    described, held = count_parameters(source.model, source.head), sum(t.numel() for t in source.tensors.values())
    if described > 2 * held + 2**20:
        raise InputError(
            f"{path}: weights do not fit the configuration, which describes a model of {size_text(described)} parameters; "
            f"there are only {held:,} weights"
        )
    model = build(source.model, source.head)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = wanted.keys() - source.tensors.keys()
    # The first U-Nets with classes showed them to the finest stage alone.
    older = {name for name in missing if re.fullmatch(r"(backbone\.)?down_pools\.\d+\.classes\.weight", name)}
    with torch.no_grad():
        for name in older:
            model.get_parameter(name).zero_()
    missing -= older
    if getattr(source.model, "tie_embeddings", False):
        missing = {name for name in missing if name.removeprefix("backbone.") != "lm_head.weight"}
    unexpected = source.tensors.keys() - wanted.keys()
    other = [
        f"{name} has shape {tuple(source.tensors[name].shape)}, not {tuple(shape)}"
        for name, shape in wanted.items()
        if name in source.tensors and source.tensors[name].shape != shape
    ]
    if missing or unexpected or other:
        raise InputError(
            f"{path}: weights do not fit the configuration; missing {some(missing)}; unexpected {some(unexpected)}"
            + (f"; {some(other)}" if other else "")
        )
    return model


def describe_which(config: Any, which: Which) -> str:
    """Name of the weights in words."""
    if which == "best" and isinstance(config, RunConfig) and config.train.ema is not None:
        return "best moving average"
    names: dict[str, str] = {"last": "last step", "ema": "last moving average", "best-samples": "best-by-samples"}
    return names.get(which, which)


def _from_run(path: Path, which: Which) -> _Source:
    config = read_config(path)
    if which == "ema" and config.train.ema is None:
        raise InputError(f"{path}: this run kept no moving average of its weights; use best or last")
    if which == "best-samples" and not (path / "best_samples.safetensors").exists():
        raise InputError(
            f"{path}: has no best_samples.safetensors, which only audio runs with train.listen write; use best or last"
        )
    if which in ("best", "best-samples"):
        weights = path / ("model.safetensors" if which == "best" else "best_samples.safetensors")
        if not weights.exists():
            raise InputError(
                f"{path}: has no model.safetensors yet, because the run has not been validated; use --which last"
            )
        tensors = read_tensors(weights)
    else:
        last = last_checkpoint(path)
        if last is None:
            raise InputError(
                f"{path}: has no checkpoints/last.safetensors, because no step has been saved; train it further"
            )
        saved = load_checkpoint(last)
        wanted = saved.average if which == "ema" else saved.weights
        if wanted is None:
            raise InputError(f"{last}: contains no moving average of the weights; use best or last")
        tensors = merged(wanted)
    return _Source(tensors, config.model, config, read_manifest(path))


def evaluation_files(run: Path) -> list[Path]:
    """Files `evaluate-SPLIT.json` of a run, without those of `mba evaluate --context`, `--recall` and `--lengths`."""
    other = ("evaluate-context-", "evaluate-recall-", "evaluate-lengths-")
    names = (path.name for path in run.glob("evaluate-*.json"))
    return [inside(run, name) for name in sorted(names) if not name.startswith(other)]


def read_evaluations(run: Path) -> dict[str, Any]:
    """Scores of every `evaluate-SPLIT.json`, without the tables, and the hash of the weights they belong to."""
    found = {}
    for path in evaluation_files(run):
        result = read_json(path)
        model, markov = result.get("model"), result.get("markov")
        if not isinstance(model, dict):
            raise InputError(f"{path}: not an evaluation of this program; remove it")
        own = {name: value for name, value in model.items() if isinstance(value, int | float)}
        if isinstance(model.get("accuracy"), dict):
            own["accuracy"] = model["accuracy"].get("value")
        scores = {"length": result.get("length"), "weights_sha256": result.get("weights_sha256"), "model": own}
        found[path.stem.removeprefix("evaluate-")] = scores | (
            {f"Markov order {markov['chosen_order']}": markov["best"]} if markov else {}
        )
    return found


def _from_folder(path: Path) -> _Source:
    description = read_json(path / "config.json")
    found, weights = read_folder(path)
    ours = description.get("mamba_bio_audio")
    if ours is None:
        tensors = rename(found, weights)
        inferred = infer_config(tensors, weights, description)
        return _Source(tensors, inferred, inferred, {})
    try:
        described = model_config(ours["model"])
    except (ValidationError, KeyError, TypeError) as error:
        reason = mistakes(error) if isinstance(error, ValidationError) else "it describes no model"
        raise InputError(f"{path / 'config.json'}: damaged mamba_bio_audio section: {reason}") from None
    config = None if ours.get("config") is None else validate(ours["config"], str(path / "config.json"), saved=True)
    tensors = found if config is not None and config.head is not None else rename(found, weights)
    if description.get("model_type") in ("mamba", "mamba2"):
        _check_same_function(infer_config(tensors, weights, description), described, path / "config.json")
    return _Source(
        tensors, described, config or described, checked_manifest(ours.get("manifest", {}), path / "config.json")
    )


def _check_same_function(theirs: ModelConfig, ours: ModelConfig | UNetConfig, place: Path) -> None:
    """Check that an export describes the same model twice: for transformers, and in its own section."""
    for key in ("norm_eps", "tie_embeddings"):
        said, section = getattr(theirs, key), getattr(ours, key, None)
        if said != section:
            raise InputError(
                f"{place}: contradicts itself: {key} is {said} in its keys for transformers but {section} in its section "
                f"mamba_bio_audio; export the model again, or correct the file"
            )
