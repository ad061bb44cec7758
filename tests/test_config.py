"""Sections that come in kinds: defaults, mistakes in one line per key, and what must fit together."""

import pytest

from mamba_bio_audio.config import RunConfig, load_config, model_config, to_yaml, validate
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.unet_config import UNetConfig
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig


def mistakes(recipe: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as error:
        load_config(recipe, overrides)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_kinds_are_dna_and_isotropic_where_left_out():
    values = {"data": {}, "model": {"d_model": 8, "num_layers": 1}}
    values["train"] = {"steps": 1, "length": 16, "tokens_per_step": 16, "lr": 1e-3}
    config = RunConfig.model_validate(values)
    assert isinstance(config.data, DnaDataConfig)
    assert isinstance(config.model, ModelConfig)
    values["data"], values["model"] = {"kind": "audio"}, {"backbone": "unet", "d_model": 8, "num_layers": 1}
    config = RunConfig.model_validate(values)
    assert isinstance(config.data, AudioDataConfig)
    assert isinstance(config.model, UNetConfig)
    assert config.model == model_config(config.model.model_dump(mode="json"))


def test_a_saved_audio_configuration_is_read_again(tmp_path):
    config = load_config("audio/tiny", [f"data.path={tmp_path}"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.kind=dan", "data.kind: there is no 'dan'; allowed: dna | audio"),
        ("model.backbone=unt", "model.backbone: there is no 'unt'; allowed: isotropic | unet"),
        ("data.bits=16", "data.bits: choose 8 to 12 bits"),
        ("data.block_bases=9", "data.block_bases: unknown key; allowed: kind, path"),
        ("model.poools=[4]", "model.poools: unknown key; did you mean pools?"),
        ("model.stages=[{mixer: mmba}]", "model.stages.0.mixer: Input should be"),
        ("model.pools=[4,x]", "model.pools: "),
        ("data=3", "data: must be a section with keys, not a value; its keys: kind, path"),
        ("train.length=1000", "train.length: 1,000 is not a multiple of 16, the product of model.pools [4, 4]; near"),
        ("train.stream_chunk=24", "train.stream_chunk: 24 is not a multiple of 16"),
        ("train.sequence_parallel=2", "train.sequence_parallel: passes the states of layers from device to device"),
    ],
)
def test_mistakes_are_one_line_per_key(override, expected, tmp_path):
    more = ["train.tokens_per_step=8000"] if "length" in override else ["train.devices=2"]
    found = mistakes("audio/tiny", f"data.path={tmp_path}", override, *more)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_missing_paths_say_what_the_kind_reads():
    assert mistakes("audio/tiny")[0].startswith("data.path: missing; allowed: WAV, FLAC, OGG or MP3 file")
    assert mistakes("dna/tiny")[0].startswith("data.path: missing; allowed: FASTA")
    # `demo` is packaged DNA, and no recording.
    assert mistakes("audio/tiny", "data.path=demo") == ["data.path: demo: no such file or folder"]


def test_missing_sections_are_named():
    with pytest.raises(InputError, match="data: this section is missing; its keys: kind, path"):
        validate({"model": {"d_model": 8, "num_layers": 1}}, "here")
