"""Run folders and exchange of weights: load, export, and what Hugging Face and mamba_ssm wrote.

| folder or file | recognised by |
|---|---|
| our run | `config.yaml` |
| our export, Hugging Face `MambaForCausalLM` | `config.json` and safetensors |
| mamba_ssm folder | `config.json` with `d_model`, and `pytorch_model.bin` |
| bare state dict of either | `.pt`, `.bin`, `.pth` or `.safetensors` file |
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from yaml import YAMLError

from mamba_bio_audio import __version__
from mamba_bio_audio.config import RunConfig, model_config, validate
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import atomic_path, write_json, write_text
from mamba_bio_audio.models.build import LanguageModel, build
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.head_config import HeadConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.training.fit import load_checkpoint

# Kind of data -> codec from the data section.
CODECS: dict[str, Callable[[Any], Any]] = {
    "dna": lambda data: DnaTokenizer(),
    "dna-classes": lambda data: DnaTokenizer(),
    "audio": AudioCodec.of,
    "audio-classes": AudioCodec.of,
}
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
    """As `load`, for what needs next-symbol predictions.

    Raises:
        InputError: also when it is a classifier.
    """
    model = load(path, which)
    if isinstance(model, Classifier):
        raise InputError(f"{path}: a classifier of {', '.join(model.labels)}; this command needs a language model")
    return model


def load_classifier(path: str | Path, which: Which = "best") -> Classifier:
    """As `load`, for what needs class probabilities.

    Raises:
        InputError: also when it is a language model.
    """
    model = load(path, which)
    if not isinstance(model, Classifier):
        raise InputError(f"{path}: a language model; this command needs a classifier, from mba classify")
    return model


def load(path: str | Path, which: Which = "best") -> LanguageModel | Classifier:
    """Load a model for use.

    Args:
        path: run folder, export, Hugging Face Mamba folder, mamba_ssm folder, or a state dict file.
        which: "best" by validation (of the average where the run kept one), "last", "ema", the last average, or
            "best-samples", those whose generated audio came closest to recordings (`train.listen`).

    Returns:
        A language model, or a classifier with `.labels`, on the CPU in fp32 and eval mode, with `.config` (`RunConfig`,
        or `ModelConfig` for foreign weights), `.codec` (symbols to ids and back; None for foreign weights) and
        `.manifest` (what the run wrote of itself).

    Raises:
        InputError: nothing loadable there, or weights that do not fit.
    """
    path = Path(path)
    if which not in get_args(Which):
        raise InputError(f"which is {which!r}; choose one of {', '.join(get_args(Which))}")
    if not path.exists():
        raise InputError(f"{path}: no such run, folder or file")
    if path.is_file():
        tensors = _rename(_read_tensors(path), path)
        inferred = _infer_config(tensors, path, {})
        source = _Source(tensors, inferred, inferred, {})
    elif (path / "config.yaml").exists():
        source = _from_run(path, which)
    elif (path / "config.json").exists():
        if which != "best":
            raise InputError(f"{path}: an exported folder holds one set of weights, not {which!r}")
        source = _from_folder(path)
    else:
        raise InputError(
            f"{path}: neither a run (config.yaml) nor an exported model (config.json); "
            f"give the folder that mba pretrain or mba export wrote"
        )
    model = build(source.model, source.head)
    try:
        missing, unexpected = model.load_state_dict(source.tensors, strict=False)
    except RuntimeError as error:
        raise InputError(
            f"{path}: weights do not fit the configuration: {str(error).splitlines()[-1].strip()}"
        ) from None
    if getattr(source.model, "tie_embeddings", False):
        missing = [name for name in missing if name.removeprefix("backbone.") != "lm_head.weight"]
    if missing or unexpected:
        raise InputError(
            f"{path}: weights do not fit the configuration; missing {sorted(missing)[:4]}, "
            f"unexpected {sorted(unexpected)[:4]}"
        )
    model.eval()
    model.config = source.config
    run = source.config
    model.codec = CODECS[run.data.kind](run.data) if isinstance(run, RunConfig) else None
    model.manifest = source.manifest
    return model


def describe_which(config: Any, which: Which) -> str:
    """Which weights these are, in words."""
    if which == "best" and isinstance(config, RunConfig) and config.train.ema is not None:
        return "best moving average"
    names: dict[str, str] = {"last": "last step", "ema": "last moving average", "best-samples": "best-by-samples"}
    return names.get(which, which)


def read_manifest(run: Path) -> dict[str, Any]:
    """A run's `manifest.json`, or an empty dict."""
    path = run / "manifest.json"
    if not path.exists():
        return {}
    manifest = _read_json(path)
    data = manifest.get("data", {})
    files = data.get("files", []) if isinstance(data, dict) else None
    sound = (
        isinstance(files, list)
        and all(isinstance(file, dict) and {"name", "sha256"} <= set(file) for file in files)
        and isinstance(manifest.get("sessions", []), list)
    )
    if not sound:
        raise InputError(f"{path}: not a manifest of this program; restore the file")
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}; restore the file") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object; restore the file")
    return value


def read_config(run: Path) -> RunConfig:
    """A run's resolved configuration."""
    path = run / "config.yaml"
    if not path.exists():
        raise InputError(f"{run}: not a run folder, it has no config.yaml")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise InputError(f"{path}: not a configuration: {error}; restore the file") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping of keys; restore the file")
    return validate({str(k): v for k, v in values.items()}, str(path))


def _from_run(path: Path, which: Which) -> _Source:
    config = read_config(path)
    if which == "ema" and config.train.ema is None:
        raise InputError(f"{path}: this run kept no moving average of its weights; use best or last")
    if which == "best-samples" and not (path / "best_samples.safetensors").exists():
        raise InputError(
            f"{path}: no best_samples.safetensors, as runs of audio with train.listen keep; use best or last"
        )
    if which in ("best", "best-samples"):
        weights = path / ("model.safetensors" if which == "best" else "best_samples.safetensors")
        if not weights.exists():
            raise InputError(f"{path}: no model.safetensors yet, the run has not been validated; use --which last")
        tensors = _read_tensors(weights)
    else:
        checkpoint = path / "checkpoints" / "last.ckpt"
        if not checkpoint.exists():
            raise InputError(f"{path}: no checkpoints/last.ckpt")
        saved = load_checkpoint(checkpoint)
        # With an average Lightning puts it into `state_dict`, and the weights of the step beside it.
        state = saved["state_dict"] if which == "ema" else saved.get("current_model_state", saved["state_dict"])
        tensors = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return _Source(tensors, config.model, config, read_manifest(path))


def evaluation_files(run: Path) -> list[Path]:
    """`evaluate-SPLIT.json` of a run; not what `mba evaluate --context` leaves beside them."""
    return sorted(path for path in run.glob("evaluate-*.json") if not path.name.startswith("evaluate-context-"))


def read_evaluations(run: Path) -> dict[str, Any]:
    """The figures of `evaluate-SPLIT.json`, without their tables."""
    found = {}
    for path in evaluation_files(run):
        result = _read_json(path)
        model, markov = result.get("model"), result.get("markov")
        if not isinstance(model, dict):
            raise InputError(f"{path}: not an evaluation of this program; remove it")
        own = {name: value for name, value in model.items() if isinstance(value, int | float)}
        if isinstance(model.get("accuracy"), dict):
            own["accuracy"] = model["accuracy"].get("value")
        found[path.stem.removeprefix("evaluate-")] = {"length": result.get("length"), "model": own} | (
            {f"Markov order {markov['chosen_order']}": markov["best"]} if markov else {}
        )
    return found


def _from_folder(path: Path) -> _Source:
    description = _read_json(path / "config.json")
    candidates = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
    weights = next((candidate for candidate in candidates if candidate.exists()), None)
    if weights is None:
        raise InputError(f"{path}: has config.json but neither model.safetensors nor pytorch_model.bin")
    tensors = _rename(_read_tensors(weights), weights)
    ours = description.get("mamba_bio_audio")
    if ours is not None:
        try:
            described = model_config(ours["model"])
        except (ValidationError, KeyError, TypeError) as error:
            raise InputError(f"{path / 'config.json'}: damaged mamba_bio_audio section: {error}") from None
        if ours.get("config") is None:
            return _Source(tensors, described, described, {})
        config = validate(ours["config"], str(path / "config.json"))
        if config.head is not None:
            tensors = _read_tensors(weights)
        return _Source(tensors, described, config, ours.get("manifest", {}))
    model_type = description.get("model_type", "mamba")
    if model_type != "mamba":
        raise InputError(f"{path}: model_type {model_type!r} is not supported; Mamba-1 language models are")
    inferred = _infer_config(tensors, weights, description)
    return _Source(tensors, inferred, inferred, {})


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path}: cannot be read as weights: {error}") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path}: not a state dict of tensors")
    return loaded


def _rename(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Hugging Face and mamba_ssm names to ours, in fp32."""
    renamed = {}
    for name, tensor in tensors.items():
        ours = re.sub(r"^(model\.)?(backbone\.)?", "", name)
        ours = ours.replace("embeddings.weight", "embedding.weight")
        renamed[ours] = tensor.float()
    if "embedding.weight" not in renamed:
        raise InputError(f"{path}: no embedding among {len(tensors)} tensors; not a Mamba language model")
    return renamed


def _infer_config(tensors: dict[str, Tensor], path: Path, description: dict[str, Any]) -> ModelConfig:
    """Shapes say everything but the norm's epsilon."""
    first = "layers.0.mixer."
    try:
        vocab, d_model = tensors["embedding.weight"].shape
        d_inner, d_state = tensors[first + "A_log"].shape
        dt_rank = tensors[first + "dt_proj.weight"].shape[1]
        d_conv = tensors[first + "conv1d.weight"].shape[2]
    except (KeyError, ValueError, IndexError):
        raise InputError(f"{path}: not a Mamba-1 language model (Mamba-2 and others are not supported)") from None
    if "norm_f.bias" in tensors:
        raise InputError(f"{path}: this model has LayerNorms; RMSNorm is supported")
    head = tensors.get("lm_head.weight")
    layers = {int(match[1]) for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))}
    return ModelConfig.model_validate(
        {
            "d_model": d_model,
            "num_layers": len(layers),
            "vocab_size": vocab,
            "vocab_multiple": 1,
            "norm_eps": description.get("layer_norm_epsilon", 1e-5),
            "tie_embeddings": head is None or torch.equal(head, tensors["embedding.weight"]),
            "ssm": {
                "d_state": d_state,
                "d_conv": d_conv,
                "expand": d_inner // d_model,
                "dt_rank": dt_rank,
                "conv_bias": first + "conv1d.bias" in tensors,
                "proj_bias": first + "in_proj.bias" in tensors,
            },
        }
    )


def opens_in_transformers(config: ModelConfig | UNetConfig) -> bool:
    """Whether Hugging Face's `MambaForCausalLM` computes the same function."""
    ssm = config.ssm
    return isinstance(config, ModelConfig) and ssm.complex is False and ssm.selective is True and not ssm.exact_zoh


def export(model: LanguageModel | Classifier, out: Path, *, evaluations: Mapping[str, Any] | None = None) -> None:
    """Write `model.safetensors`, `config.json` and a model card.

    The folder opens with `transformers.MambaForCausalLM.from_pretrained` where the model is one of its own (real,
    selective, Euler), and with `load` always.

    `evaluations` are those of `read_evaluations`, for the card.
    """
    if evaluations:
        model.manifest = {**model.manifest, "evaluations": dict(evaluations)}
    if (out / "config.yaml").exists():
        raise InputError(f"{out} is a run folder; export to another --out")
    out.mkdir(parents=True, exist_ok=True)
    config = model.model_config
    backbone = model.backbone if isinstance(model, Classifier) else model
    padded, d_model = backbone.embedding.weight.shape
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
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
        mixer: Any = model.layers[0].mixer
        description |= {
            "model_type": "mamba",
            "architectures": ["MambaForCausalLM"],
            "state_size": config.ssm.d_state,
            "conv_kernel": config.ssm.d_conv,
            "expand": config.ssm.expand,
            "intermediate_size": mixer.d_inner,
            "time_step_rank": mixer.dt_rank,
            "layer_norm_epsilon": config.norm_eps,
            "use_bias": config.ssm.proj_bias,
            "use_conv_bias": config.ssm.conv_bias,
            "hidden_act": "silu",
            "residual_in_fp32": True,
            # With true, transformers 5 initialises out_proj again after loading it.
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
    write_text(out / "README.md", model_card(model))


def model_card(model: LanguageModel | Classifier) -> str:
    """What the model is, what it was trained on and how to open it, in Markdown."""
    config = model.model_config
    ssm = config.ssm
    kind = f"{'complex' if ssm.complex else 'real'}, selective {str(ssm.selective).lower()}"
    lines = [
        "---",
        "library_name: mamba-bio-audio",
        "---",
        f"# {config.mixer}, {config.num_layers} layers {'a stage ' if isinstance(config, UNetConfig) else ''}"
        f"x {config.d_model}, {model.num_parameters():,} parameters",
        "",
        f"State space: {kind}, {ssm.d_state} states per channel. Written by mamba-bio-audio {__version__}.",
        "",
    ]
    if isinstance(model.config, RunConfig):
        lines += [*_card_of_training(model.config, model.manifest), *_card_of_limits(model)]
    lines += [
        "## Use",
        "",
        "```python",
        "import mamba_bio_audio as mba",
        'model = mba.load("FOLDER")',
        "```",
        "",
    ]
    if isinstance(model, Classifier):
        lines += ["## Classes", "", f"{', '.join(model.labels)}, in the order of the outputs.", ""]
    elif opens_in_transformers(config):
        lines += [
            "```python",
            "from transformers import MambaForCausalLM",
            'model = MambaForCausalLM.from_pretrained("FOLDER")',
            "```",
            "",
        ]
    if isinstance(model.codec, AudioCodec):
        lines += ["## Symbols", "", f"{model.codec.description}, {model.codec.sample_rate_hz:,} Hz.", ""]
    elif model.codec is not None:
        ids = ", ".join(f"{symbol} {i}" for i, symbol in enumerate(model.codec.vocab))
        lines += ["## Symbols", "", f"{ids}.", ""]
    return "\n".join(lines)


def _card_of_training(config: RunConfig, manifest: Mapping[str, Any]) -> list[str]:
    train = config.train
    data, result = manifest.get("data", {}), manifest.get("result", {})
    unit = result.get("per", result.get("unit", "base"))
    lines = ["## Data", ""]
    files = data.get("files", [])
    lines += [f"- {file['name']}, SHA-256 `{file['sha256']}`" for file in files[:20]]
    lines += [f"- and {len(files) - 20:,} more, listed in config.json"] if len(files) > 20 else []
    if config.data.kind == "dna" and "bases" in data:
        lines += [
            "",
            f"{data['bases']:,} bases in {data.get('records', 0):,} records, {data['unknown_percent']:.3f} % not A, C, "
            f"G or T, {data['lower_case_percent']:.2f} % lower case (tokens do not depend on case). Split by "
            f"{data.get('split_source', 'an unknown rule')}:",
            "",
        ]
        for split, counts in data.get("splits", {}).items():
            lines.append(f"- {split}: {counts['bases']:,} bases in {counts['intervals']:,} intervals")
    lines += [
        "",
        "No licence is stated here: whoever publishes these weights chooses one that the licences of the data allow.",
        "",
        "## Training",
        "",
        f"{train.steps:,} steps of {train.tokens_per_step:,} positions at length {train.length:,}, "
        f"peak rate {train.lr:g}, betas {train.betas[0]:g} and {train.betas[1]:g}, decay {train.weight_decay:g}, "
        f"seed {config.seed}.",
    ]
    made = [f"{name} {manifest[name]}" for name in ("torch", "device", "precision", "commit") if manifest.get(name)]
    if made:
        lines.append(f"Made with {', '.join(made)}.")
    lines += ["", "## Results", ""]
    if result.get("valid_nats") is not None:
        lines.append(f"Best validation: {result['valid_nats']:.4f} nats per {unit} at step {result['best_step']:,}.")
    for split, found in manifest.get("evaluations", {}).items():
        for name, scores in found.items():
            if isinstance(scores, dict):
                figures = ", ".join(f"{key} {value:.4f}" for key, value in scores.items() if value is not None)
                lines.append(f"- {split} split, windows of {found['length']:,}, {name}: {figures}")
    if not manifest.get("evaluations"):
        lines.append("Not evaluated on held-out data beside baselines yet (`mba evaluate`).")
    return [*lines, ""]


def _card_of_limits(model: LanguageModel | Classifier) -> list[str]:
    length = model.config.train.length
    lines = [
        "## Limits",
        "",
        f"- Trained on sequences of {length:,} positions; what it does with longer context was not trained.",
        "- It knows the distribution of its training data only; figures on other data have to be measured.",
    ]
    if isinstance(model.codec, DnaTokenizer):
        strands = "both strands" if getattr(model.config.data, "reverse_complement", False) else "the strand as written"
        lines.append(f"- It has read {strands}; it is causal, so a base is judged from what stands before it alone.")
        lines.append("- A likelihood is no measure of function or of harm; it is not a medical device.")
        lines.append("- Samples can repeat training sequence: `mba sample` reports the longest exact match.")
    elif not isinstance(model, Classifier):
        lines.append("- Samples can repeat training recordings; the rights in those are not touched by these weights.")
    return [*lines, ""]
