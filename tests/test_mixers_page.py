"""`docs/mixers.md` says of every registered mixer what its layers are and do. `WRITE_MIXERS=1` writes its tables anew."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mamba_bio_audio.layers.contract import MixerConfig, mixers
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.recipes import variants_of

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "mixers.md"
WIDTH, LENGTH = 256, 1024


class Said(NamedTuple):
    """What only a person knows of a mixer."""

    what: str
    kernel: str
    oracle: str  # implementation of others or definition that it is compared with
    test: str  # where


SCAN = "`selective_scan`, Triton on a GPU"
FAMILY = "tests/kernels/scan/test_cpu.py"
SAID = {
    "mamba": Said(
        "Mamba, real and selective", f"{SCAN}, fused layer", "transformers' Mamba", "tests/run/test_foreign.py"
    ),
    "mamba-complex": Said("Mamba with complex modes", SCAN, "sequential reference in fp64", FAMILY),
    "s4d": Said("Mamba's block, complex scan that no input changes", SCAN, "sequential reference in fp64", FAMILY),
    "s4d-real": Said("the same with real states", SCAN, "sequential reference in fp64", FAMILY),
    "mamba2": Said("Mamba-2", "`ssd`, Triton", "transformers' Mamba2", "tests/layers/test_mamba2.py"),
    "retnet": Said(
        "retention, MLP of 2 D",
        "`ssd`, Triton",
        "fla_core's `naive_retention`; quadratic form in fp64",
        "tests/layers/test_retnet.py",
    ),
    "transformer": Said(
        "Transformer++: rotary positions, SwiGLU",
        "PyTorch's flash attention",
        "transformers' Llama, Mistral (window)",
        "tests/layers/test_attention.py",
    ),
    "h3": Said("H3, MLP of 4 D", f"{SCAN}; `conv1d` of 64 taps", "scipy's `lfilter`", "tests/layers/test_lti.py"),
    "s4d-glu": Said("S4D as in the literature", SCAN, "scipy's `lfilter`", "tests/layers/test_lti.py"),
    "hyena": Said(
        "HyenaDNA's operator, MLP of 4 D",
        "FFT",
        "definition in fp64, convolution by scipy's `lfilter`",
        "tests/layers/test_hyena.py",
    ),
}


def settings_of(name: str) -> MixerConfig:
    of, preset = mixers()[name]
    return of(**preset)


def state_bytes(config: MixerConfig, length: int) -> int:
    """Bytes that the state of a row and layer has behind so many positions, activations being bf16."""
    layer = config.layers(WIDTH, 1)[0].bfloat16()
    # What grows does so by the same number of bytes a position.
    with torch.no_grad():
        _, state = layer(torch.randn(1, 8, WIDTH, dtype=torch.bfloat16))
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    size = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    return size * length // 8 if config.streaming == "growing" else size


def thousands(number: float) -> str:
    """Three digits, such as 12.3 k or 1.23 M."""
    for factor, letter in ((1e6, " M"), (1e3, " k")):
        if number >= factor:
            return f"{number / factor:.3g}{letter}"
    return f"{number:.0f}"


def row(name: str) -> str:
    config, said = settings_of(name), SAID[name]
    flops = config.flops(WIDTH, LENGTH)
    mlp = config.num_parameters(WIDTH) - sum(p.numel() for p in config.layers(WIDTH, 1)[0].parameters())
    if config.streaming == "none":
        state = moved = "none"
    elif config.streaming == "constant":
        size = state_bytes(config, LENGTH)
        state, moved = f"{thousands(size)}B", f"{thousands(2 * size)}B"
    else:
        each = state_bytes(config, 8) // 8
        state, moved = f"{thousands(each)}B x t", f"{thousands(each)}B x t"
    resets = "yes" if all(layer.resets for layer in config.layers(WIDTH, 1)) else "no"
    cells = [
        f"`{name}`: {said.what}",
        thousands(config.num_parameters(WIDTH) - mlp) + (f" + {thousands(mlp)}" if mlp else ""),
        config.streaming,
        resets,
        state,
        moved,
        thousands(flops.maps),
        thousands(flops.rest),
        said.kernel,
        f"{said.oracle} (`{said.test}`)",
    ]
    return "| " + " | ".join(cells) + " |"


def layer_table() -> str:
    head = "| mixer | weights | state | resets | bytes of it | moved a step | FLOPs: maps | rest | kernel | compared with |"
    return "\n".join([head, "|" + "---|" * 10, *map(row, sorted(mixers()))])


def preset_table() -> str:
    lines = ["| preset | model | parameters | peak rate |", "|---|---|---|---|"]
    for variant, description in variants_of("dna/hg38").items():
        config = load_config(f"dna/hg38@{variant}", ["data.path=."])
        found = re.search(r"\(([\d,]+) parameters\)", description)
        if found and config.model.d_model == 128:
            lines.append(f"| `dna/hg38@{variant}` | {config.model.outline} | {found[1]} | {config.train.lr:g} |")
    return "\n".join(lines)


TABLES = {"layers": layer_table, "presets": preset_table}


def test_the_page_is_what_the_registry_says():
    assert set(SAID) == set(mixers()), "a new mixer needs its row in SAID"
    text = PAGE.read_text(encoding="utf-8")
    for name, table in TABLES.items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert between.search(text), name
        text = between.sub(lambda found, table=table: f"{found[1]}{table()}\n{found[2]}", text)
    if os.environ.get("WRITE_MIXERS"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text
    for said in SAID.values():
        assert (ROOT / said.test).exists(), said.test


@pytest.mark.parametrize(
    ("name", "changed"), [*((name, {}) for name in SAID), *(("mamba", {"selective": s}) for s in "bc")]
)
def test_flops_of_maps_are_those_that_pytorch_counts(name, changed):
    """Products with weights, counted while the layers run; what the rest is made of differs by path."""
    config = settings_of(name).model_copy(update=changed)
    length = 64
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        for layer in config.layers(WIDTH, 1):
            layer(torch.randn(1, length, WIDTH))
    counts = counter.get_flop_counts()["Global"]
    counted = sum(value for op, value in counts.items() if str(op) in ("aten.mm", "aten.addmm"))
    # Hyena's filter is made once for all rows.
    shared = 2 * length * (5 * 64 + 2 * 64 * 64 + 64 * WIDTH) if name == "hyena" else 0
    assert counted == config.flops(WIDTH, length).maps * length + shared


def test_flops_of_attention_are_those_of_its_products():
    config = settings_of("transformer")
    assert config.flops(WIDTH, 1).rest == 4 * WIDTH
    assert config.flops(WIDTH, 999).rest == 4 * WIDTH * 500
    windowed = config.model_copy(update={"window": 10})
    assert windowed.flops(WIDTH, 10).rest == 4 * WIDTH * 5.5
    assert windowed.flops(WIDTH, 1000).rest == pytest.approx(4 * WIDTH * (10 * 5.5 + 990 * 10) / 1000)
