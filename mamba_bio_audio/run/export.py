"""Exports a model as a folder with a model card, which `load` opens, and transformers too if it has such a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file

from mamba_bio_audio import __version__
from mamba_bio_audio.errors import InputError, as_written
from mamba_bio_audio.files import atomic_path, write_json, write_text
from mamba_bio_audio.models.build import LanguageModel
from mamba_bio_audio.models.config import ModelConfig, of_family
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.domains import domain_named, domain_of
from mamba_bio_audio.run import foreign_mamba2
from mamba_bio_audio.run.config import RunConfig
from mamba_bio_audio.run.packaged import CHECK, About, about
from mamba_bio_audio.run.sampling import SETTINGS_NAME, Fitted
from mamba_bio_audio.text import printable


def opens_in_transformers(config: ModelConfig | UNetConfig) -> str | None:
    """The class of Hugging Face's transformers that computes the same function, or None."""
    if not isinstance(config, ModelConfig) or config.inputs or config.classes or config.pattern is not None:
        return None
    if config.mixer == "mamba2":
        # There, one epsilon is that of all norms.
        return "Mamba2ForCausalLM" if config.options["norm_eps"] == config.norm_eps else None
    ssm = config.ssm
    own = ssm.complex is False and ssm.selective is True and not ssm.exact_zoh
    return "MambaForCausalLM" if own and of_family(config.mixer) else None


def export(
    model: LanguageModel | Classifier,
    out: Path,
    *,
    evaluations: Mapping[str, Any] | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    fitted: Fitted | None = None,
) -> list[str]:
    """Write `model.safetensors`, `config.json`, a model card and, where the domain has one, a tokenizer.

    `load` always opens the folder; `transformers.MambaForCausalLM.from_pretrained` does if the model is real, selective
    and Euler, as its own are, and `Mamba2ForCausalLM` if it is of Mamba-2. `transformers.AutoTokenizer` then encodes as
    `DnaTokenizer` does, and `generate` emits only symbols that `mba.generate` may.

    Args:
        out: folder; files of an earlier export in it are replaced.
        evaluations: result of `read_evaluations`, for the card.
        precision: of the weights in the file. bf16 takes half the space and rounds them; what layers keep in fp32 (A, D and
            the bias of delta) stays fp32. The rounded weights are others than those that were scored so far.
        fitted: how samples are drawn, which the folder keeps if it was fitted to the weights in the file.

    Returns:
        Notes for people on scores that the card cannot vouch for: those of other weights, which it leaves out, and those
        of unknown weights; and on fitted settings that are left out.
    """
    if evaluations:
        model.manifest = {**model.manifest, "evaluations": dict(evaluations)}
    if (out / "config.yaml").exists():
        raise InputError(f"{out}: a run folder; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    config = model.model_config
    backbone = model.backbone if isinstance(model, Classifier) else model
    padded, d_model = backbone.embedding.weight.shape
    if precision == "bf16":
        model = copy.deepcopy(model).to(torch.bfloat16)
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if precision == "bf16":
        # As `load` will return it: the card quotes the scores of these weights alone.
        model = model.float()
    if isinstance(model, IsotropicModel):
        head = tensors.pop("lm_head.weight")
        tensors = {
            "backbone." + name.replace("embedding.weight", "embeddings.weight"): tensor
            for name, tensor in tensors.items()
        }
        if not model.model_config.tie_embeddings:
            tensors["lm_head.weight"] = head
    with atomic_path(out / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    description: dict[str, Any] = {
        "model_type": "mamba_bio_audio",
        "vocab_size": padded,
        "hidden_size": d_model,
        "num_hidden_layers": config.num_layers,
    }
    if isinstance(model, IsotropicModel) and opens_in_transformers(config):
        description |= _of_layers(model) | {
            "layer_norm_epsilon": config.norm_eps,
            "hidden_act": "silu",
            "residual_in_fp32": True,
            # If true, transformers 5 reinitialises out_proj after loading it.
            "rescale_prenorm_residual": False,
            "tie_word_embeddings": model.model_config.tie_embeddings,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "dtype": "float32",
        }
    run = model.config if isinstance(model.config, RunConfig) else None
    description["mamba_bio_audio"] = {
        "version": __version__,
        "model": config.model_dump(mode="json"),
        "config": None if run is None else run.model_dump(mode="json"),
        "manifest": dict(model.manifest),
    }
    write_json(out / "config.json", description)
    pad_id = None if model.codec is None else domain_named(model.codec.name).write_tokenizer(model.codec, out)
    if isinstance(model, IsotropicModel) and opens_in_transformers(config):
        write_json(out / "generation_config.json", _generation(model, padded, pad_id))
    # The manifest of an export that is exported again comes from its config.json.
    with as_written("manifest.json or evaluate-*.json of the model", "restore these files, or move them away"):
        write_text(out / "README.md", model_card(model))
        notes = scores_of_other_weights(model)
    if fitted is not None and fitted.weights_sha256 == weights_hash(model):
        write_json(out / SETTINGS_NAME, fitted.model_dump(mode="json", exclude={"path"}))
        return notes
    (out / SETTINGS_NAME).unlink(missing_ok=True)
    if fitted is not None:
        notes.append(
            f"{fitted.path}: fitted to other weights, so left out; samples of the export are drawn at temperature 1"
        )
    return notes


def _of_layers(model: IsotropicModel) -> dict[str, Any]:
    """Kind and sizes of the layers as transformers names them."""
    config = model.model_config
    mixer: Any = model.layers[0].mixer
    if config.mixer == "mamba2":
        return foreign_mamba2.described(mixer)
    return {
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "state_size": config.ssm.d_state,
        "conv_kernel": config.ssm.d_conv,
        "expand": config.ssm.expand,
        "intermediate_size": mixer.d_inner,
        "time_step_rank": mixer.dt_rank,
        "use_bias": config.ssm.proj_bias,
        "use_conv_bias": config.ssm.conv_bias,
    }


def _generation(model: IsotropicModel, padded: int, pad_id: int | None) -> dict[str, Any]:
    """Restrict `generate` of transformers to the ids that `mba.generate` samples; padding rows are not symbols."""
    allowed = range(model.model_config.vocab_size or padded) if model.codec is None else model.codec.sample_ids
    suppressed = sorted(set(range(padded)) - set(allowed))
    return {"suppress_tokens": suppressed or None, "pad_token_id": pad_id}


class _Score(NamedTuple):
    """A score of the model recorded in its manifest."""

    name: str
    weights: str | None  # hash of the weights scored; None if an earlier version wrote the score
    figures: list[str]


def _scores(manifest: Mapping[str, Any]) -> list[_Score]:
    scores = []
    result = manifest.get("result", {})
    if result.get("valid_nats") is not None:
        unit = result.get("per", result.get("unit", "base"))
        figure = f"{result['valid_nats']:.4f} nats per {unit} at step {result['best_step']:,}"
        scores.append(_Score("best validation", result.get("weights_sha256"), [figure]))
    for split, found in manifest.get("evaluations", {}).items():
        figures = [
            f"windows of {found['length']:,}, {name}: "
            + ", ".join(f"{key} {value:.4f}" for key, value in row.items() if value is not None)
            for name, row in found.items()
            if isinstance(row, dict)
        ]
        scores.append(_Score(f"{split} split", found.get("weights_sha256"), figures))
    return scores


def scores_of_other_weights(model: LanguageModel | Classifier) -> list[str]:
    """Notes on scores in the manifest that are not known to belong to the model's weights."""
    weights, notes = weights_hash(model), []
    for score in _scores(model.manifest):
        if score.weights is None:
            notes.append(
                f"{score.name}: these scores were written by an earlier version, and it is unknown which weights they "
                "belong to"
            )
        elif score.weights != weights:
            notes.append(f"{score.name}: these scores belong to other weights; the model card leaves them out")
    return notes


def model_card(model: LanguageModel | Classifier) -> str:
    """Model card in Markdown: what the model is, what it was trained on, and how to open it."""
    config, facts = model.model_config, about(model)
    name = "FOLDER" if facts is None else facts.name
    lines = [
        "---",
        "library_name: mamba-bio-audio",
        "---",
        f"# {config.outline}, {model.num_parameters():,} parameters",
        "",
        f"{_layers(config)} Written by mamba-bio-audio {__version__}.",
        "",
    ]
    if isinstance(model.config, RunConfig):
        lines += _card_of_training(model.config, model.manifest, weights_hash(model), facts)
        lines += _card_of_limits(model, facts)
    lines += [
        "## Use",
        "",
        "```python",
        "import mamba_bio_audio as mba",
        "",
        f'model = mba.load("{name}")',
        "```",
        "",
    ]
    if model.classes:
        lines += [
            f"It generates by class, {', '.join(model.classes)}: `mba sample FOLDER --class {model.classes[0]} ...`, "
            f'`mba.generate(model, class_="{model.classes[0]}", ...)`.',
            "",
        ]
    if model.labels:
        lines += ["## Classes", "", f"{', '.join(model.labels)}, in the order of the outputs.", ""]
    elif (kind := opens_in_transformers(config)) is not None:
        lines += [
            "```python",
            f"from transformers import {kind}",
            "",
            f'model = {kind}.from_pretrained("FOLDER")',
            "```",
            "",
        ]
    if model.codec is not None:
        lines += ["## Symbols", "", domain_named(model.codec.name).card_symbols(model.codec), ""]
    # A file or class name that contains a line break stays on its line.
    return "\n".join(printable(line) for line in lines)


def _layers(config: ModelConfig | UNetConfig) -> str:
    """The settings of the layers, a sentence."""
    if isinstance(config, ModelConfig) and config.options:
        return f"Layers: {_settings(config.options)}."
    ssm = config.ssm
    kind = f"{'complex' if ssm.complex else 'real'}, selective {str(ssm.selective).lower()}"
    return f"State space: {kind}, {ssm.d_state} states per channel."


def _settings(options: Mapping[str, Any]) -> str:
    """Names and values, those of a mixer of a pattern in brackets."""
    words = {
        name: f"({_settings(value)})"
        if isinstance(value, dict)
        else f"{value:g}"
        if isinstance(value, float)
        else value
        for name, value in options.items()
    }
    return ", ".join(f"{name} {value}" for name, value in words.items())


def _card_of_training(config: RunConfig, manifest: Mapping[str, Any], weights: str, facts: About | None) -> list[str]:
    train = config.train
    data = manifest.get("data", {})
    lines = ["## Data", ""]
    if facts is not None:
        lines += [f"Trained on {facts.saw}.", "", "| data | source | licence |", "|---|---|---|"]
        lines += [f"| {source.data} | {source.source} | {source.licence} |" for source in facts.sources] + [""]
    files = data.get("files", [])
    lines += [f"- {file['name']}, SHA-256 `{file['sha256']}`" for file in files[:20]]
    lines += [f"- and {len(files) - 20:,} more, listed in config.json"] if len(files) > 20 else []
    if found := domain_of(config.data.kind).card_data(data):
        lines += ["", *found]
    shorter = ", ".join(f"{stage.length:,}" for stage in train.length_warmup)
    lines += [
        "",
        "No licence is stated here: whoever publishes these weights must choose one that the data's licences allow."
        if facts is None
        else f"Licence of the weights: {facts.licence}. {facts.use[:1].upper()}{facts.use[1:]}.",
        "",
        "## Training",
        "",
        f"{train.steps:,} steps of {train.tokens_per_step:,} positions at length {train.length:,}"
        f"{f' after {shorter}' if shorter else ''}, "
        f"peak learning rate {train.lr:g}, betas {train.betas[0]:g} and {train.betas[1]:g}, "
        f"weight decay {train.weight_decay:g}, seed {config.seed}.",
    ]
    made = [f"{name} {manifest[name]}" for name in ("torch", "device", "precision", "commit") if manifest.get(name)]
    if made:
        lines.append(f"Made with {', '.join(made)}.")
    lines += ["", "## Results", ""]
    for score in _scores(manifest):
        if score.weights in (None, weights):
            doubt = "" if score.weights else " (it is not recorded which weights these scores belong to)"
            lines += [f"- {score.name}, {figure}{doubt}" for figure in score.figures]
        else:
            lines.append(f"- {score.name}: left out, because the scores belong to other weights")
    if not manifest.get("evaluations") and (facts is None or not facts.measured):
        lines.append("Not yet evaluated on held-out data beside baselines (`mba evaluate`).")
    lines += [] if facts is None else [f"- {sentence}" for sentence in facts.measured]
    if facts is not None and facts.check_nats is not None:
        lines.append(
            f"- Sequence that comes with the package, to check an installation (`mba evaluate {facts.name} "
            f"{' '.join(CHECK)}`, on a CPU): nats {facts.check_nats:.4f}."
        )
    return [*lines, ""]


def _card_of_limits(model: LanguageModel | Classifier, facts: About | None) -> list[str]:
    length = model.config.train.length
    lines = [
        "## Limits",
        "",
        f"- Trained on sequences of {length:,} positions; its behaviour with longer context was not trained.",
        "- It knows only the distribution of its training data; performance on other data has to be measured.",
    ]
    config = model.config
    limits = domain_of(config.data.kind).card_limits(config.data, classifier=bool(model.labels))
    lines += [f"- {limit}" for limit in [*limits, *(() if facts is None else facts.limits)]]
    return [*lines, ""]
