"""Puts new layers into a trained model, so that a training goes on from it: `mba pretrain ... --set train.init=OUT`.

    python scripts/with_layers.py MODEL OUT --pattern mamba*8,transformer,mamba*8 --option mlp=none --option rope_theta=null

The layers of MODEL keep their order and weights; each layer of the pattern that is no `mamba` is new. A new layer ends in
zeros, so that the model computes at first what MODEL does; its other weights are drawn from the seed. OUT is an export,
which every command opens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml

from mamba_bio_audio.models.build import build
from mamba_bio_audio.models.config import ModelConfig, layers_of
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.export import export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run, an export or the name of a packaged model, of Mamba layers only")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pattern", required=True, help="all layers, old and new")
    parser.add_argument("--option", action="append", default=[], help="KEY=VALUE of the new layers' mixer")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    options = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in given.option)}
    model = with_layers(saved.load_language_model(given.model), given.pattern, options, given.seed)
    export(model, given.out)


def with_layers(model: Any, pattern: str, options: dict[str, Any], seed: int) -> Any:
    """The model with the layers of the pattern that are no `mamba` in it; ends the program where the others are not its own."""
    names = layers_of(pattern)
    config = model.model_config
    if config.pattern is not None or config.mixer != "mamba" or names.count("mamba") != config.num_layers:
        raise SystemExit(
            f"with_layers: the pattern has {names.count('mamba')} layers of Mamba, the model {config.outline}"
        )
    others = {name: options for name in names if name != "mamba"}
    values = config.model_dump(mode="json") | {"pattern": pattern, "num_layers": len(names), "options": others}
    found: Any = build(ModelConfig(**values), None, seed=seed)
    # A block of Mamba is one layer of the network, one of a transformer with an MLP two.
    kinds = [type(block.mixer) for block in model.layers[:1]]
    old = iter(model.layers)
    for block in found.layers:
        if type(block.mixer) in kinds:
            block.load_state_dict(next(old).state_dict())
        else:
            ending = block.mixer.out_proj if hasattr(block.mixer, "out_proj") else list(block.mixer.children())[-1]
            torch.nn.init.zeros_(ending.weight)
    found.embedding.load_state_dict(model.embedding.state_dict())
    found.lm_head.load_state_dict(model.lm_head.state_dict())
    found.norm_f.load_state_dict(model.norm_f.state_dict())
    found.codec, found.config, found.manifest = model.codec, None, {}
    return found


if __name__ == "__main__":
    main()
