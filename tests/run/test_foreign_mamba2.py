"""Mamba-2 models that transformers and mamba_ssm wrote, and ours that transformers opens."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import mamba_bio_audio as mba
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.run import foreign, foreign_mamba2
from mamba_bio_audio.run.export import export, opens_in_transformers

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 6, "head_dim": 8, "num_heads": 4}
TOKENS = torch.randint(11, (2, 37), generator=torch.Generator().manual_seed(1))


def stirred(model):
    """Every parameter matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def theirs(**changes):
    torch.manual_seed(0)
    config = transformers.Mamba2Config(**SIZES | {"n_groups": 2, "chunk_size": 8} | changes)
    return stirred(transformers.Mamba2ForCausalLM(config))


def assert_same(found, expected):
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    theirs().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def change(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_groups": 1},
        {"layer_norm_epsilon": 1e-2, "tie_word_embeddings": True},
        {"use_bias": True, "use_conv_bias": False},
        {"expand": 4, "num_heads": 8, "conv_kernel": 3},
        {"time_step_limit": (0.1, 0.7)},
        {"time_step_limit": (0.3, float("inf"))},
    ],
    ids=str,
)
def test_computes_what_transformers_computes(changes, tmp_path):
    model = theirs(**changes)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert_same(mba.load(tmp_path)(TOKENS).logits, model(TOKENS, use_cache=False).logits)


def test_continues_from_a_state_as_transformers_does_from_its_cache(saved):
    ours, model = mba.load(saved), theirs()
    with torch.no_grad():
        first = model(TOKENS[:, :16], use_cache=True)
        cache = next(value for key, value in first.items() if "cache" in key or "past" in key)
        name = "cache" if "cache" in first else next(key for key in first if "cache" in key or "past" in key)
        expected = model(TOKENS[:, 16:], use_cache=True, **{name: cache}).logits
        start = ours(TOKENS[:, :16])
        assert_same(ours(TOKENS[:, 16:], start.state).logits, expected)


def test_a_bare_state_dict_has_one_group(tmp_path):
    model = theirs(n_groups=1, tie_word_embeddings=True)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    found = mba.load(tmp_path / "weights.pt")
    assert (found.model_config.mixer, found.model_config.options["groups"]) == ("mamba2", 1)
    with torch.no_grad():
        assert_same(found(TOKENS).logits, model(TOKENS, use_cache=False).logits)


def test_a_folder_of_mamba_ssm_opens(saved, tmp_path):
    """Its file has no model_type, and the epsilon of its gated norm is always 1e-5."""
    tensors = load_file(saved / "model.safetensors")
    named = {name.replace("backbone.embeddings", "backbone.embedding"): t for name, t in tensors.items()}
    torch.save(named, tmp_path / "pytorch_model.bin")
    ssm = {"layer": "Mamba2", "d_state": 6, "headdim": 8, "ngroups": 2, "chunk_size": 64}
    described = {"d_model": 16, "n_layer": 2, "vocab_size": 11, "pad_vocab_size_multiple": 1, "ssm_cfg": ssm}
    described |= {"rms_norm": True, "tie_embeddings": False, "norm_epsilon": 1e-3}
    (tmp_path / "config.json").write_text(json.dumps(described))
    config = mba.load(tmp_path).model_config
    assert (config.norm_eps, config.options["norm_eps"], config.options["groups"]) == (1e-3, 1e-5, 2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_heads", 2, "num_heads is 2, but the weights have 4"),
        ("n_groups", 1, "state_size is 6, but the weights have 12"),
        ("n_groups", 5, "channels of the convolution are not"),
        ("head_dim", 16, "head_dim is 16, but the weights have 8"),
        ("hidden_act", "gelu", "hidden_act is"),
        ("norm_before_gate", True, "norm_before_gate is true; supported: false"),
        ("time_step_limit", [0.2], "time_step_limit must be two numbers"),
        ("time_step_limit", [0.2, 0.1], "time_step_limit must be a range"),
        ("architectures", ["MambaForCausalLM"], "architectures is"),
        ("strange", 1, "this key is unknown"),
        ("model_type", "mamba", "neither a Mamba nor a Mamba-2"),
        ("model_type", "mamba3", "only mamba and mamba2 are"),
    ],
)
def test_keys_that_are_not_honoured_are_refused_by_name(folder, key, value, message):
    change(folder, **{key: value})
    with pytest.raises(InputError, match=message):
        mba.load(folder)


json_values = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.floats(), max_size=3)
)
OWN = [*foreign_mamba2.MEASURED, *foreign_mamba2.FIXED, *foreign_mamba2.HARMLESS, "time_step_limit", "ssm_cfg.dt_limit"]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(OWN), json_values)
def test_any_value_of_any_key_is_refused_or_changes_nothing(saved, key, value):
    """But for the limits of the step size, which are honoured."""
    before = json.loads((saved / "config.json").read_text())
    tensors = foreign.rename(load_file(saved / "model.safetensors"), saved)
    place = saved / "model.safetensors"
    expected = foreign.infer_config(tensors, place, before)
    section, _, name = key.rpartition(".")
    try:
        found = foreign.infer_config(tensors, place, before | ({section: {name: value}} if section else {key: value}))
    except InputError:
        return
    if "limit" in key:
        expected.options["dt_limit"] = found.options["dt_limit"]
    assert found == expected


def test_tables_know_every_key_of_transformers(saved):
    known = {
        *foreign.MEASURED,
        *foreign.FIXED,
        *foreign.FIXED_LISTS,
        *foreign.HARMLESS,
        *foreign.EPSILON,
        *foreign.TIED,
    }
    known |= {*foreign.VOCABULARY, *OWN}
    for keys in (transformers.Mamba2Config().to_dict(), json.loads((saved / "config.json").read_text())):
        assert {key for key in keys if not key.startswith("_")} <= known


@pytest.mark.parametrize(
    "options", [{"head_dim": 8, "groups": 2}, {"dt_limit": (0.1, 0.7), "proj_bias": True}], ids=str
)
def test_transformers_opens_our_export(options, tmp_path):
    config = ModelConfig(mixer="mamba2", d_model=16, num_layers=2, vocab_size=11, options={"d_state": 6} | options)
    torch.manual_seed(0)
    model = stirred(build_model(config))
    export(model, tmp_path)
    opened = transformers.Mamba2ForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(TOKENS).logits
        assert_same(opened(TOKENS, use_cache=False).logits, expected)
        assert_same(mba.load(tmp_path)(TOKENS).logits, expected)
    assert "from transformers import Mamba2ForCausalLM" in (tmp_path / "README.md").read_text()


def test_what_transformers_cannot_compute_is_not_promised():
    def config(**changes):
        return ModelConfig(**{"mixer": "mamba2", "d_model": 16, "num_layers": 2, "vocab_size": 11} | changes)

    assert opens_in_transformers(config()) == "Mamba2ForCausalLM"
    assert opens_in_transformers(config(norm_eps=1e-3)) is None
    assert opens_in_transformers(config(mixer="retnet")) is None
    assert opens_in_transformers(config(mixer="mamba", pattern="mamba,mamba2")) is None
    assert opens_in_transformers(config(mixer="mamba")) == "MambaForCausalLM"
