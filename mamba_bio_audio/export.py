"""Exports: a folder that `load`, and where it can Hugging Face's transformers, opens, with a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mamba_bio_audio import __version__
from mamba_bio_audio.config import RunConfig
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import atomic_path, write_json, write_text
from mamba_bio_audio.models.build import LanguageModel
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.text import printable


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
    # A name of a file or a class with a line end in it stays on its line.
    return "\n".join(printable(line) for line in lines)


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
