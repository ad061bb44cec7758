"""Reads Mamba and Mamba-2 language models written by Hugging Face's transformers or by mamba_ssm.

The tensors tell the model's size, `config.json` tells what it computes. Each key of that file is of one of five kinds:

| kind | keys | treatment |
|---|---|---|
| honoured | epsilon of the norms, tied head, `vocab_size` | adopted |
| measured | width, layers, states, convolution, biases, ranks | must agree with the tensors |
| fixed | activation, kind of norm, kind of layer, custom code, quantisation | must be what our layer computes |
| harmless | initialisation, choice of kernel, fine-tuning, generation, bookkeeping | any value is accepted |
| unknown | any other | refused by name, because it may change the function |

The tables here are Mamba-1's; `foreign_mamba2.py` has what is different for Mamba-2. Only tensors are ever unpickled. A bare
state dict does not state its epsilon; 1e-5 is assumed, as in both libraries.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.run import foreign_mamba2
from mamba_bio_audio.run.described import read_json

# In the order in which transformers looks for them.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
DEFAULT_EPSILON = 1e-5

# Keys of config.json; those of mamba_ssm's `ssm_cfg` as `ssm_cfg.KEY`.
EPSILON = ("layer_norm_epsilon", "norm_epsilon")
TIED = ("tie_word_embeddings", "tie_embeddings")
VOCABULARY = ("vocab_size", "pad_vocab_size_multiple")
# Key -> the quantity that it states, one of the keys of `_measure`.
MEASURED = {
    "hidden_size": "width",
    "d_model": "width",
    "num_hidden_layers": "layers",
    "n_layer": "layers",
    "state_size": "states per channel",
    "ssm_cfg.d_state": "states per channel",
    "conv_kernel": "taps of the convolution",
    "ssm_cfg.d_conv": "taps of the convolution",
    "intermediate_size": "inner channels",
    "d_inner": "inner channels",
    "expand": "inner channels per channel",
    "ssm_cfg.expand": "inner channels per channel",
    "time_step_rank": "rank of delta",
    "ssm_cfg.dt_rank": "rank of delta",
    "use_bias": "bias of the projections",
    "ssm_cfg.bias": "bias of the projections",
    "use_conv_bias": "bias of the convolution",
    "ssm_cfg.conv_bias": "bias of the convolution",
}
# Key -> values with which our layer computes the same.
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("mamba",),
    "hidden_act": ("silu", "swish"),
    "rms_norm": (True,),
    "d_intermediate": (0,),
    "attn_layer_idx": ([], None),
    "ssm_cfg.layer": ("Mamba1",),
    "auto_map": ({}, None),
    "quantization_config": ({}, None),
    "per_layer_config": ({}, None),
    "pruned_heads": ({}, None),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}
# Key -> values that the list may contain.
FIXED_LISTS = {
    "architectures": ("MambaForCausalLM", "MambaModel", "MambaLMHeadModel"),
    "layer_types": ("linear_attention", "mamba"),
}
# Reason why they are harmless -> keys.
_HARMLESS = {
    "initialisation": "initializer_range initializer_cfg rescale_prenorm_residual time_step_scale time_step_min "
    "time_step_max time_step_init_scheme time_step_floor ssm_cfg.dt_min ssm_cfg.dt_max ssm_cfg.dt_init "
    "ssm_cfg.dt_scale ssm_cfg.dt_init_floor",
    "rounding and speed; weights and residual stream are fp32 here": "residual_in_fp32 dtype torch_dtype use_bfloat16 "
    "fused_add_norm use_mambapy use_associative_scan use_cache ssm_cfg.use_fast_path attn_implementation attn_cfg "
    "chunk_size_feed_forward torchscript gradient_checkpointing",
    "outputs besides the logits": "return_dict output_hidden_states output_attentions tie_last_hidden_states",
    "fine-tuning and bookkeeping": "transformers_version name_or_path id2label label2id num_labels problem_type "
    "finetuning_task task_specific_params tokenizer_class prefix is_decoder tie_encoder_decoder "
    "cross_attention_hidden_size tf_legacy_loss mamba_bio_audio bos_token_id eos_token_id pad_token_id sep_token_id "
    "decoder_start_token_id",
    "generation settings, which transformers once kept here": "max_length min_length max_new_tokens do_sample early_stopping "
    "num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores "
    "return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens "
    "exponential_decay_length_penalty begin_suppress_tokens epsilon_cutoff eta_cutoff encoder_repetition_penalty "
    "num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind "
    "target_lookbehind",
}
HARMLESS = frozenset(key for keys in _HARMLESS.values() for key in keys.split())

_LAYER = re.compile(r"layers\.([0-9]{1,9})\.")
# Prefixes that wrappers add in a state dict: Lightning's module, DDP, torch.compile, the model around its backbone.
_WRAPPERS = re.compile(r"^(?:(?:model|module|_orig_mod|backbone)\.)+")


def read_folder(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """Read the tensors of an exported folder, under the names in its files; also returns the file read (or shard index).

    Raises:
        InputError: there are no weights, they are unreadable, or shards disagree with their index.
    """
    for name in WEIGHTS:
        path = folder / name
        if path.is_file():
            return (_read_shards(path) if name.endswith(".index.json") else read_tensors(path)), path
    raise InputError(
        f"{folder}: has config.json but neither model.safetensors nor pytorch_model.bin, whole or as shards with an "
        f".index.json; copy the weights there"
    )


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(shard, str) for shard in places.values()):
        raise InputError(f"{index}: has no weight_map of tensor names to files; restore the file")
    suffix = ".safetensors" if index.name == "model.safetensors.index.json" else ".bin"
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if re.search(r"[/\\]", shard) or not shard.endswith(suffix):
            raise InputError(
                f"{index}: names the file {shard!r}; only {suffix} files in the same folder are read as shards"
            )
        listed = {name for name, place in places.items() if place == shard}
        path = index.parent / shard
        if not path.is_file():
            raise InputError(f"{path}: this shard is missing; it holds {some(listed)}; copy it here")
        held = read_tensors(path)
        if held.keys() != listed:
            raise InputError(
                f"{path}: disagrees with {index.name}; missing {some(listed - held.keys())}, "
                f"unexpected {some(held.keys() - listed)}; copy index and shards from the same place"
            )
        tensors |= held
    return tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a file written by `torch.save`, to the CPU.

    Raises:
        InputError: the file is damaged, contains anything but tensors, or unpacks to more than its own size.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as weights: {error}; restore the file") from None
    loaded = _unpickle(path)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise InputError(
            f"{path}: contains a {type(loaded).__name__}, not a state dict of tensors; save the model's state_dict()"
        )
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise InputError(
                f"{path}: not a state dict of tensors: {str(name)[:60]!r} is a {type(tensor).__name__}; save the "
                f"model's state_dict() by itself"
            )
        sound = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not sound or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise InputError(f"{path}: {name} is not a plain dense tensor; save it as one")
    return loaded


def _unpickle(path: Path) -> Any:
    """Read what `torch.save` wrote, if it is tensors in plain containers; no other object is ever created."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            # torch.save does not compress.
            if unpacked > path.stat().st_size:
                raise InputError(
                    f"{path}: unpacks to {unpacked:,} bytes, more than its own size; torch.save writes no such file"
                )
        return torch.load(path, map_location="cpu", weights_only=True)
    except (InputError, MemoryError):
        raise
    # A damaged pickle can raise nearly anything; torch's own text for a refused one advises to run it.
    except Exception as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise InputError(
                f"{path}: cannot be read as weights: it contains objects other than tensors, which are never opened "
                f"because that could run code; ask for the state dict as safetensors"
            ) from None
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: cannot be read as weights: {reason}; restore the file") from None


def rename(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Map Hugging Face and mamba_ssm names, with or without `model.` and other wrappers, to ours; tensors become fp32.

    Raises:
        InputError: two tensors map to the same name, or one does not hold floating-point numbers.
    """
    renamed: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        ours = _WRAPPERS.sub("", name)
        ours = "embedding.weight" if ours == "embeddings.weight" else ours
        if ours in renamed:
            raise InputError(f"{path}: {origin[ours]} and {name} are both {ours}; keep one of them")
        if not tensor.is_floating_point():
            raise InputError(
                f"{path}: {name} is {tensor.dtype}; quantised weights are not supported, provide them in fp32"
            )
        renamed[ours], origin[ours] = tensor.detach().float(), name
    if "embedding.weight" not in renamed:
        raise InputError(f"{path}: not a Mamba language model: no embedding among its {len(tensors)} tensors")
    return renamed


def infer_config(tensors: Mapping[str, Tensor], path: Path, description: Mapping[str, Any] | None) -> ModelConfig:
    """Derive the configuration of foreign weights.

    Args:
        tensors: tensors under our names, from `rename`.
        path: file that they come from, for messages.
        description: contents of `config.json` beside them; None for a bare state dict.

    Raises:
        InputError: it is no Mamba or Mamba-2 language model, or one that our layer does not compute; names every such key.
    """
    # Checked first: in another kind of model the shapes below mean something else, or are missing.
    second = foreign_mamba2.is_mamba2(tensors)
    kind = ("mamba2" if second else "mamba") if description is None else description.get("model_type")
    if kind not in ("mamba", "mamba2", None):
        raise InputError(f"{path.parent}: model_type {_show(kind)} is not supported, only mamba and mamba2 are")
    second = kind == "mamba2" or (kind is None and second)
    flat = {} if description is None else _flatten(description, path.with_name("config.json"))
    sizes = foreign_mamba2.measure(tensors, path, flat) if second else _measure(tensors, path)
    sizes["layers"] = _layers(tensors, path)
    head = tensors.get("lm_head.weight")
    same = head is None or torch.equal(head, tensors["embedding.weight"])
    epsilon, tied, vocab, multiple = DEFAULT_EPSILON, same, tensors["embedding.weight"].shape[0], 1
    dt_limit = None
    if description is not None:
        place = path.with_name("config.json")
        problems = _problems(flat, sizes, second)
        dt_limit = foreign_mamba2.limit(flat, problems) if second else None
        epsilon = _agreed(flat, EPSILON, DEFAULT_EPSILON, _epsilon_problem, problems)
        tied = _agreed(flat, TIED, True, _tied_problem, problems)
        multiple = 1 if _of_transformers(flat) else flat.get("pad_vocab_size_multiple", 8)
        rows, vocab = vocab, flat.get("vocab_size", vocab)
        if not (_is_count(vocab) and _is_count(multiple) and -(-vocab // multiple) * multiple == rows):
            padded = "" if multiple == 1 else f", padded to a multiple of {_show(multiple)}"
            problems.append(f"vocab_size is {_show(vocab)}{padded}, but the embedding has {rows:,} rows")
        if tied is False and head is None:
            problems.append("the head is not tied to the embedding, but there is no lm_head.weight")
        if tied is True and not same:
            problems.append(
                "the head is tied to the embedding, but lm_head.weight differs from it; set tie_word_embeddings "
                "(tie_embeddings in mamba_ssm's files) to false if that is intended, or remove the tensor"
            )
        if problems:
            count = len(problems)
            raise InputError(
                f"{place}: {count} key{'s' if count > 1 else ''} not honoured\n"
                + "\n".join(f"  {problem}" for problem in problems)
            )
    try:
        return ModelConfig.model_validate(
            {
                "d_model": sizes["width"],
                "num_layers": sizes["layers"],
                "vocab_size": vocab,
                "vocab_multiple": multiple,
                "norm_eps": epsilon,
                "tie_embeddings": tied,
                **_layer_settings(sizes, second, dt_limit, epsilon if _of_transformers(flat) else DEFAULT_EPSILON),
            }
        )
    except ValidationError as error:
        raise InputError(f"{path}: a Mamba model of unsupported shape: {mistakes(error)}") from None


def _layer_settings(
    sizes: Mapping[str, Any], second: bool, dt_limit: tuple[float, float] | None, inner_epsilon: float
) -> dict[str, Any]:
    """Settings of the layers; `inner_epsilon` is that of Mamba-2's own norm, which only transformers lets be another."""
    if second:
        return foreign_mamba2.settings(sizes, dt_limit, inner_epsilon)
    return {
        "ssm": {
            "d_state": sizes["states per channel"],
            "d_conv": sizes["taps of the convolution"],
            "expand": sizes["inner channels per channel"],
            "dt_rank": sizes["rank of delta"],
            "conv_bias": sizes["bias of the convolution"],
            "proj_bias": sizes["bias of the projections"],
        }
    }


def mistakes(error: ValidationError) -> str:
    """The values that a configuration class refused, on one line."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))} is {str(problem['input'])[:60]}: {problem['msg']}"
        for problem in error.errors()
    )


def _measure(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Sizes according to the tensors of layer 0 and the names of the others."""
    first = "layers.0.mixer."
    try:
        _, width = tensors["embedding.weight"].shape
        inner, states = tensors[first + "A_log"].shape
        _, rank = tensors[first + "dt_proj.weight"].shape
        _, _, taps = tensors[first + "conv1d.weight"].shape
    except (KeyError, ValueError):
        raise InputError(f"{path}: neither a Mamba nor a Mamba-2 language model") from None
    if not width or inner % width:
        raise InputError(
            f"{path}: {inner:,} inner channels are not a multiple of the width, {width:,}, which is not supported"
        )
    return {
        "width": width,
        "states per channel": states,
        "taps of the convolution": taps,
        "inner channels": inner,
        "inner channels per channel": inner // width,
        "rank of delta": rank,
        "bias of the projections": first + "in_proj.bias" in tensors,
        "bias of the convolution": first + "conv1d.bias" in tensors,
    }


def _layers(tensors: Mapping[str, Tensor], path: Path) -> int:
    """Number of layers, all of which are there."""
    if any(re.fullmatch(r"norm_f\.bias|layers\.[0-9]+\.norm\.bias", name) for name in tensors):
        raise InputError(f"{path}: this model has LayerNorms, but only RMSNorm is supported")
    layers = {int(match[1]) for name in tensors if (match := _LAYER.match(name))}
    if len(layers) != max(layers) + 1:
        gap = next(i for i in range(len(layers)) if i not in layers)
        raise InputError(f"{path}: has tensors of layer {max(layers):,}, but none of layer {gap:,}; restore the file")
    return len(layers)


def _flatten(description: Mapping[str, Any], place: Path) -> dict[str, Any]:
    ssm = description.get("ssm_cfg")
    if not isinstance(ssm, dict | None):
        raise InputError(f"{place}: ssm_cfg is {_show(ssm)}; it must be an object")
    flat = {key: value for key, value in description.items() if key != "ssm_cfg"}
    return flat | {f"ssm_cfg.{key}": value for key, value in (ssm or {}).items()}


def _of_transformers(flat: Mapping[str, Any]) -> bool:
    return "hidden_size" in flat or "model_type" in flat


def _problems(flat: Mapping[str, Any], sizes: Mapping[str, Any], second: bool) -> list[str]:
    """Measured and fixed keys with values that do not hold, and unknown keys; `second` is Mamba-2."""
    measured, fixed, lists, harmless = MEASURED, FIXED, FIXED_LISTS, HARMLESS
    if second:
        ranks = {key for key, size in MEASURED.items() if size == "rank of delta"}
        measured = {key: size for key, size in MEASURED.items() if key not in ranks} | foreign_mamba2.MEASURED
        fixed, lists = FIXED | foreign_mamba2.FIXED, FIXED_LISTS | {"architectures": foreign_mamba2.ARCHITECTURES}
        harmless = HARMLESS | foreign_mamba2.HARMLESS | {"time_step_limit", "ssm_cfg.dt_limit"}
    problems = []
    for key, value in flat.items():
        if key in measured:
            # transformers uses the inner width alone if it is given.
            if key == "expand" and "intermediate_size" in flat:
                continue
            found = sizes[measured[key]]
            if value == "auto" and measured[key] == "rank of delta":
                value = math.ceil(sizes["width"] / 16)
            # In JSON, true is not the number 1.
            if value != found or isinstance(value, bool) != isinstance(found, bool):
                problems.append(f"{key} is {_show(value)}, but the weights have {_show(found)} ({measured[key]})")
        elif key in fixed:
            if not any(value == allowed and type(value) is type(allowed) for allowed in fixed[key]):
                wanted = " or ".join(_show(allowed) for allowed in fixed[key] if allowed is not None)
                problems.append(f"{key} is {_show(value)}; supported: {wanted}")
        elif key in lists:
            if value is not None and not (isinstance(value, list) and all(v in lists[key] for v in value)):
                problems.append(f"{key} is {_show(value)}; supported: {', '.join(lists[key])}")
        elif key not in (*EPSILON, *TIED, *VOCABULARY) and key not in harmless and not key.startswith("_"):
            problems.append(
                f"{key} is {_show(value)}; this key is unknown and may change what the model computes, so remove it only "
                f"if it does not"
            )
    return problems


def _agreed(flat: Mapping[str, Any], keys: tuple[str, ...], default: Any, wrong: Any, problems: list[str]) -> Any:
    """The value of a key that has two names; anything wrong with it is added to `problems`."""
    given = {key: flat[key] for key in keys if key in flat}
    mistakes = [f"{key} is {_show(value)}; {text}" for key, value in given.items() if (text := wrong(value))]
    if not mistakes and len(set(given.values())) > 1:
        mistakes = [" but ".join(f"{key} is {_show(value)}" for key, value in given.items())]
    problems += mistakes
    return next(iter(given.values()), default) if not mistakes else default


def _epsilon_problem(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "" if number and 0 < value <= 1e30 else "it must be a number above zero"


def _tied_problem(value: Any) -> str:
    return "" if isinstance(value, bool) else "it must be true or false"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _show(value: Any) -> str:
    """A JSON value on one short line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def some(names: Any) -> str:
    """The first few of many names, as text."""
    ordered = sorted(names)
    if not ordered:
        return "nothing"
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4:,} more" if len(ordered) > 4 else "")
