"""Every key of a configuration is listed, as its section has it."""

import json
import re

import pytest

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.layers.contract import mixers
from mamba_bio_audio.pipelines.domains import domains
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.keys import all_keys
from mamba_bio_audio.run.recipes import recipe_names

KEYS = all_keys()


def paths_of(value, prefix=""):
    """Paths of a saved configuration as the list writes them."""
    for key, inner in value.items():
        path = f"{prefix}{key}"
        yield path
        if isinstance(inner, dict) and path != "model.options" and not path.endswith(".options"):
            yield from paths_of(inner, f"{path}.")
        for item in inner if isinstance(inner, list) else ():
            if isinstance(item, dict):
                yield from paths_of(item, f"{path}[].")


@pytest.mark.parametrize("name", recipe_names())
def test_every_key_of_a_recipe_is_listed(name, tmp_path):
    listed = {key.path for key in KEYS}
    # What is made up needs no path.
    where = [] if name.startswith("synthetic/") else [f"data.path={tmp_path}"]
    saved = load_config(name, where).model_dump(mode="json")
    sections = {"data", "model", "train", "model.ssm", "model.stages[].ssm"}
    missing = set(paths_of(saved)) - listed - sections
    assert not {path for path in missing if "data.columns." not in path and "data.path." not in path}


def test_every_kind_of_data_and_every_mixer_has_its_keys():
    kinds = {kind for domain in domains() for kind in domain.kinds}
    assert kinds <= {kind for key in KEYS for kind in key.of.split(", ")}
    own = {name for key in KEYS if key.path.startswith("model.options.") for name in key.of.split(", ")}
    assert set() < own <= set(mixers())


def test_each_key_says_what_it_takes_and_does():
    for key in KEYS:
        assert all((key.takes, key.default, key.help)), key
        assert "<class" not in key.takes + key.default
    assert len({(key.path, key.of) for key in KEYS}) == len(KEYS)


@pytest.mark.parametrize(
    ("path", "takes", "default"),
    [
        ("train.lr", "number > 0", "required"),
        ("train.steps", "whole number >= 1, <= 1,000,000,000,000", "required"),
        ("train.betas", "[number >= 0, < 1, number >= 0, < 1]", "[0.9, 0.95]"),
        ("train.clip", "number > 0 | null", "1"),
        ("train.cuda_graph", "true | false | auto", "auto"),
        ("train.length_warmup", "list of sections", "[]"),
        ("train.length_warmup[].length", "whole number >= 1", "required"),
        ("head", "section | null", "null"),
        ("model.backbone", "isotropic | unet", "isotropic"),
        ("model.ssm.dt_rank", "whole number >= 1, <= 2^20 | auto", "auto"),
        ("model.pools", "list of whole number <= 65,536", "[4, 4]"),
        ("description", "text", '""'),
    ],
)
def test_types_bounds_and_defaults(path, takes, default):
    (key,) = (key for key in KEYS if key.path == path)
    assert (key.takes, key.default) == (takes, default)


def test_the_command_lists_them(capsys):
    with pytest.raises(SystemExit) as stop:
        command(["configs", "--all"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "\ntrain.lr  number > 0; required\n    peak learning rate of AdamW\n" in shown
    assert re.search(r"^data\.quantizer .*; default mu-law; audio, audio-classes only$", shown, flags=re.MULTILINE)
    with pytest.raises(SystemExit):
        command(["configs", "--all", "--json"])
    assert len(json.loads(capsys.readouterr().out)) == len(KEYS)


def test_all_keys_and_one_recipe_are_different_questions(capsys):
    with pytest.raises(SystemExit) as stop:
        command(["configs", "dna/tiny", "--all"])
    assert stop.value.code == 2
    assert "leave the name out" in capsys.readouterr().err
