"""Models that transformers and mamba_ssm wrote: every key of config.json is honoured, checked or refused by name."""

import json
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import mamba_bio_audio as mba
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.run import foreign
from mamba_bio_audio.run.export import export


def theirs(**settings):
    """A tiny `MambaForCausalLM` of transformers in which every parameter matters."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 11, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    torch.manual_seed(0)
    model = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes | settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def check_logits(path, model) -> None:
    tokens = torch.randint(11, (2, 37), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        found = mba.load(path)(tokens).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder that transformers wrote."""
    folder = tmp_path_factory.mktemp("saved")
    theirs().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def change(folder, **keys) -> None:
    """Set keys of config.json; None removes one."""
    path = folder / "config.json"
    description = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_norm_epsilon": 1e-2},
        {"layer_norm_epsilon": 1.0},
        {"use_conv_bias": False},
        {"use_bias": True},
        {"use_bias": True, "use_conv_bias": False},
        {"tie_word_embeddings": False},
        {"expand": 3},
        {"intermediate_size": 48},
        {"conv_kernel": 3},
        {"time_step_rank": 3},
        {"hidden_act": "swish"},
        {"use_mambapy": True, "rescale_prenorm_residual": True, "residual_in_fp32": False},
    ],
    ids=str,
)
def test_computes_what_transformers_computes(settings, tmp_path):
    model = theirs(**settings)
    model.save_pretrained(tmp_path)
    check_logits(tmp_path, model)
    export(mba.load(tmp_path), tmp_path / "again")
    check_logits(tmp_path / "again", model)


@pytest.mark.parametrize("value", [1e-2, 1e-3])
def test_epsilon_of_config_json_is_honoured(folder, value):
    """The tensors do not say it, and it is all that differs here."""
    model = theirs()
    change(folder, layer_norm_epsilon=value)
    with pytest.raises(AssertionError):
        check_logits(folder, model)
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = value
    check_logits(folder, model)
    assert mba.load(folder).model_config.norm_eps == value


@pytest.mark.parametrize(
    "prefix", ["model.", "model.backbone.", "module.", "_orig_mod.model.", "module.model.backbone."]
)
def test_wrapped_state_dicts_load(saved, prefix, tmp_path):
    tensors = {
        name.removeprefix("backbone."): tensor for name, tensor in load_file(saved / "model.safetensors").items()
    }
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "weights.pt")
    check_logits(tmp_path / "weights.pt", theirs())


def test_half_wrapped_state_dict_loads_where_no_name_is_there_twice(saved, tmp_path):
    tensors = load_file(saved / "model.safetensors")
    half = {("model." if "layers.1" in name else "") + name: tensor for name, tensor in tensors.items()}
    save_file(half, tmp_path / "half.safetensors")
    check_logits(tmp_path / "half.safetensors", theirs())
    twice = half | {"layers.0.mixer.D": torch.zeros(32)}
    save_file(twice, tmp_path / "twice.safetensors")
    with pytest.raises(InputError, match=r"backbone\.layers\.0\.mixer\.D and layers\.0\.mixer\.D are both"):
        mba.load(tmp_path / "twice.safetensors")


def test_state_dict_without_convolution_bias_loads(tmp_path):
    model = theirs(use_conv_bias=False)
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    check_logits(tmp_path / "weights.bin", model)
    assert not mba.load(tmp_path / "weights.bin").model_config.ssm.conv_bias


def test_extra_and_missing_tensors_are_named(saved, tmp_path):
    tensors = load_file(saved / "model.safetensors")
    path = tmp_path / "weights.safetensors"
    cases = [
        ({"backbone.layers.0.attention.weight": torch.ones(2)}, "unexpected layers.0.attention.weight"),
        ({"backbone.layers.1.mixer.D": None}, "missing layers.1.mixer.D"),
        ({"backbone.layers.1.mixer.conv1d.bias": None}, "missing layers.1.mixer.conv1d.bias"),
        ({"backbone.layers.1.mixer.D": torch.ones(3)}, r"layers.1.mixer.D has shape \(3,\), not \(32,\)"),
        ({"backbone.layers.3.norm.weight": torch.ones(16)}, "layer 3, but none of layer 2"),
        ({"backbone.layers.999999999.norm.weight": torch.ones(16)}, "layer 999,999,999, but none of layer 2"),
        ({"backbone.norm_f.bias": torch.ones(16)}, "LayerNorm"),
        ({"backbone.layers.1.norm.bias": torch.ones(16)}, "LayerNorm"),
        ({"backbone.embeddings.weight": torch.ones(11, 24)}, "not a multiple of the width, 24"),
        ({"backbone.embeddings.weight": torch.ones(11, 0)}, "not a multiple of the width, 0"),
        ({"backbone.layers.0.mixer.D": torch.ones(32, dtype=torch.int8)}, "int8"),
    ]
    for changes, message in cases:
        changed = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
        save_file(changed, path)
        with pytest.raises(InputError, match=message):
            mba.load(path)


# Key, value, a part of the message. The tensors are as transformers wrote them.
REFUSED = [
    ("hidden_act", "gelu", 'hidden_act is "gelu"'),
    ("hidden_act", 3, "hidden_act is 3"),
    ("num_hidden_layers", 3, "num_hidden_layers is 3, but the weights have 2"),
    ("num_hidden_layers", 1, "num_hidden_layers is 1, but the weights have 2"),
    ("num_hidden_layers", 1_000_000, "num_hidden_layers is 1000000"),
    ("num_hidden_layers", -2, "num_hidden_layers is -2"),
    ("num_hidden_layers", "2", 'num_hidden_layers is "2"'),
    ("num_hidden_layers", 10**400, "num_hidden_layers is 1000"),
    ("n_layer", 24, "n_layer is 24"),
    ("hidden_size", 32, "hidden_size is 32, but the weights have 16"),
    ("d_model", 32, "d_model is 32"),
    ("state_size", 16, "state_size is 16, but the weights have 4"),
    ("conv_kernel", 3, "conv_kernel is 3"),
    ("intermediate_size", 64, "intermediate_size is 64"),
    ("d_inner", 64, "d_inner is 64"),
    ("expand", 3, "expand is 3"),
    ("expand", 1e308, r"expand is 1e\+308"),
    ("time_step_rank", 2, "time_step_rank is 2"),
    ("time_step_rank", [], r"time_step_rank is \[\]"),
    ("use_bias", True, "use_bias is true"),
    ("use_conv_bias", False, "use_conv_bias is false"),
    ("use_conv_bias", 1, "use_conv_bias is 1"),
    ("layer_norm_epsilon", 0, "layer_norm_epsilon is 0"),
    ("layer_norm_epsilon", -1e-5, "layer_norm_epsilon is -1e-05"),
    ("layer_norm_epsilon", "1e-5", 'layer_norm_epsilon is "1e-5"'),
    ("layer_norm_epsilon", float("nan"), "layer_norm_epsilon is NaN"),
    ("layer_norm_epsilon", float("inf"), "layer_norm_epsilon is Infinity"),
    ("layer_norm_epsilon", 10**400, "layer_norm_epsilon is 1000"),
    ("layer_norm_epsilon", True, "layer_norm_epsilon is true"),
    ("norm_epsilon", 1e-3, "layer_norm_epsilon is 1e-05 but norm_epsilon is 0.001"),
    ("tie_word_embeddings", False, "no lm_head.weight"),
    ("tie_word_embeddings", "no", 'tie_word_embeddings is "no"'),
    ("tie_embeddings", False, "tie_word_embeddings is true but tie_embeddings is false"),
    ("vocab_size", 16, "vocab_size is 16, but the embedding has 11 rows"),
    ("vocab_size", "11", 'vocab_size is "11"'),
    ("vocab_size", -11, "vocab_size is -11"),
    ("rms_norm", False, "rms_norm is false"),
    ("rms_norm", 1, "rms_norm is 1"),
    ("d_intermediate", 64, "d_intermediate is 64"),
    ("attn_layer_idx", [1], r"attn_layer_idx is \[1\]"),
    ("layer_types", ["linear_attention", "full_attention"], "layer_types is"),
    ("architectures", ["MambaForSequenceClassification"], "architectures is"),
    ("architectures", "MambaForCausalLM", "architectures is"),
    ("auto_map", {"AutoModelForCausalLM": "modeling.Other"}, "auto_map is"),
    ("quantization_config", {"bits": 4}, "quantization_config is"),
    ("per_layer_config", {"0": {"hidden_act": "gelu"}}, "per_layer_config is"),
    ("model_type", "falcon_mamba", "falcon_mamba"),
    ("model_type", 7, "model_type 7"),
    ("ssm_cfg", {"layer": "Mamba2"}, 'ssm_cfg.layer is "Mamba2"'),
    ("ssm_cfg", {"d_state": 64}, "ssm_cfg.d_state is 64"),
    ("ssm_cfg", {"ngroups": 2}, "ssm_cfg.ngroups is 2; this key is unknown"),
    ("ssm_cfg", "Mamba1", "ssm_cfg is"),
    ("rotary_everything", {"a": 1}, "rotary_everything is .* unknown"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_keys_that_are_not_honoured_are_refused_by_name(folder, key, value, message):
    if key == "expand":
        change(folder, intermediate_size=None)
    change(folder, **{key: value})
    with pytest.raises(InputError, match=message):
        mba.load(folder)


def test_null_is_no_number(folder):
    path = folder / "config.json"
    for key in (
        "num_hidden_layers",
        "layer_norm_epsilon",
        "tie_word_embeddings",
        "vocab_size",
        "hidden_act",
        "use_bias",
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: None}))
        with pytest.raises(InputError, match=f"{key} is null"):
            mba.load(folder)
        change(folder, **{key: None})
        if key != "tie_word_embeddings":
            assert mba.load(folder).num_parameters()


def test_all_mistakes_are_told_at_once(folder):
    change(folder, hidden_act="gelu", num_hidden_layers=9, strange=1)
    with pytest.raises(InputError, match="3 keys not honoured") as error:
        mba.load(folder)
    assert all(word in str(error.value) for word in ("hidden_act", "num_hidden_layers", "strange", "config.json"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
all_keys = [*foreign.MEASURED, *foreign.FIXED, *foreign.FIXED_LISTS, *sorted(foreign.HARMLESS)]
all_keys += [*foreign.EPSILON, *foreign.TIED, *foreign.VOCABULARY, "ssm_cfg", "unheard_of"]


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(all_keys), json_values)
def test_any_value_of_any_key_is_refused_or_changes_nothing(saved, key, value):
    """Of a folder that transformers wrote; only the epsilon may be another."""
    before = json.loads((saved / "config.json").read_text())
    if key == "mamba_bio_audio":
        return
    tensors = foreign.rename(load_file(saved / "model.safetensors"), saved)
    place = saved / "model.safetensors"
    expected = foreign.infer_config(tensors, place, before)
    section, _, name = key.rpartition(".")
    changed = before | ({section: {name: value}} if section else {key: value})
    try:
        found = foreign.infer_config(tensors, place, changed)
    except InputError:
        return
    if key in foreign.EPSILON:
        expected = expected.model_copy(update={"norm_eps": found.norm_eps})
    assert found == expected


def test_table_knows_every_key_of_transformers(saved):
    transformers = pytest.importorskip("transformers")
    known = {*foreign.MEASURED, *foreign.FIXED, *foreign.FIXED_LISTS, *foreign.HARMLESS}
    known |= {*foreign.EPSILON, *foreign.TIED, *foreign.VOCABULARY}
    for keys in (transformers.MambaConfig().to_dict(), json.loads((saved / "config.json").read_text())):
        assert {key for key in keys if not key.startswith("_")} <= known


def test_published_folder_with_keys_of_both_libraries_opens(folder):
    """As the conversion of state-spaces/mamba-130m: mamba_ssm's keys beside those of transformers, agreeing."""
    change(
        folder,
        d_inner=32,
        d_model=16,
        n_layer=2,
        fused_add_norm=True,
        rms_norm=True,
        pad_vocab_size_multiple=8,
        ssm_cfg={},
        time_step_init_scheme="random",
        torch_dtype="float32",
        transformers_version="4.39.0.dev0",
        tie_word_embeddings=None,
    )
    check_logits(folder, theirs())


def test_head_beside_a_tie_must_be_the_embedding(folder):
    model = theirs(tie_word_embeddings=False)
    model.save_pretrained(folder)
    check_logits(folder, model)
    for value in (True, None):
        change(folder, tie_word_embeddings=value)
        with pytest.raises(InputError, match="tied to the embedding, but lm_head.weight differs"):
            mba.load(folder)
    # What has no config.json says it by its tensors.
    check_logits(folder / "model.safetensors", model)
    # Not tied, though the values are equal: they part when it is trained.
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["backbone.embeddings.weight"].clone()}, folder / "model.safetensors")
    for value in (True, False):
        change(folder, tie_word_embeddings=value)
        assert mba.load(folder).model_config.tie_embeddings is value


@pytest.mark.parametrize(("vocab", "multiple"), [(11, 8), (16, None), (13, 4)])
def test_mamba_ssm_vocabulary_is_padded(vocab, multiple, tmp_path):
    ours = build_model(ModelConfig(d_model=16, num_layers=1, vocab_size=16), seed=0)
    state = {f"backbone.{name}": tensor for name, tensor in ours.state_dict().items() if not name.startswith("lm_head")}
    torch.save(state | {"lm_head.weight": ours.embedding.weight.detach()}, tmp_path / "pytorch_model.bin")
    keys = {"d_model": 16, "n_layer": 1, "vocab_size": vocab, "ssm_cfg": {"layer": "Mamba1", "d_state": 16}}
    keys |= {"rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True, "tie_embeddings": True}
    keys |= {} if multiple is None else {"pad_vocab_size_multiple": multiple}
    (tmp_path / "config.json").write_text(json.dumps(keys))
    model = mba.load(tmp_path)
    assert model.model_config.vocab_size == vocab
    assert torch.equal(model(torch.tensor([[1, 2]])).logits, ours(torch.tensor([[1, 2]])).logits)
    (tmp_path / "config.json").write_text(json.dumps(keys | {"vocab_size": 7}))
    with pytest.raises(InputError, match="vocab_size is 7, padded to a multiple of"):
        mba.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(keys | {"norm_epsilon": 0.5}))
    assert mba.load(tmp_path).model_config.norm_eps == 0.5


@pytest.fixture(params=["safetensors", "bin"])
def sharded(request, tmp_path):
    """A folder in three shards, as transformers writes it, or as it once wrote it with pickle."""
    model = theirs()
    if request.param == "safetensors":
        model.save_pretrained(tmp_path, max_shard_size="8KB")
        index = tmp_path / "model.safetensors.index.json"
    else:
        model.config.save_pretrained(tmp_path)
        tensors = list(model.state_dict().items())
        names = [f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)]
        for i, name in enumerate(names):
            torch.save(dict(tensors[i::3]), tmp_path / name)
        index = tmp_path / "pytorch_model.bin.index.json"
        places = {name: names[i % 3] for i, (name, _) in enumerate(tensors)}
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    assert len(set(json.loads(index.read_text())["weight_map"].values())) > 1
    return index


def test_shards_open(sharded):
    check_logits(sharded.parent, theirs())


def test_shards_and_index_must_agree(sharded):
    text = sharded.read_text()
    description = json.loads(text)
    places = description["weight_map"]
    name, shard = next(iter(places.items()))
    other = next(place for place in places.values() if place != shard)

    def refused(message, weight_map) -> None:
        sharded.write_text(json.dumps(description | {"weight_map": weight_map}))
        with pytest.raises(InputError, match=message):
            mba.load(sharded.parent)

    outside = sharded.parent.parent / f"outside{sharded.parent.name}{(sharded.parent / shard).suffix}"
    outside.write_bytes((sharded.parent / shard).read_bytes())
    moved = {key: f"../{outside.name}" if place == shard else place for key, place in places.items()}
    refused("only .* files in the same folder", moved)
    refused("only .* files in the same folder", {**places, name: str(outside)})
    refused("only .* files in the same folder", {**places, name: f"a\\{shard}"})
    refused("only .* files in the same folder", {**places, name: "config.json"})
    refused("unexpected " + name, {**places, name: other})
    refused("unexpected " + name, {key: place for key, place in places.items() if key != name})
    refused("missing backbone.extra", {**places, "backbone.extra": shard})
    for nonsense in ({}, [], None, {name: 3}, "x"):
        refused("no weight_map", nonsense)
    sharded.write_text(text)
    (sharded.parent / shard).unlink()
    with pytest.raises(InputError, match=f"{shard}: this shard is missing"):
        mba.load(sharded.parent)


def test_pickles_are_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("it ran",))

    torch.save({"backbone.embedding.weight": torch.ones(2, 2), "extra": Trap()}, tmp_path / "trap.bin")
    with pytest.raises(InputError, match="never opened") as error:
        mba.load(tmp_path / "trap.bin")
    assert "weights_only" not in str(error.value)
    torch.save({"weights": torch.ones(2), "epoch": 3}, tmp_path / "epoch.bin")
    with pytest.raises(InputError, match="'epoch' is a int"):
        mba.load(tmp_path / "epoch.bin")
    torch.save([torch.ones(2)], tmp_path / "list.bin")
    with pytest.raises(InputError, match="contains a list"):
        mba.load(tmp_path / "list.bin")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02}q\x00.", b"\x80\x04K\x01.", b"\x00" * 100])
def test_damaged_state_dicts_are_one_error(content, tmp_path):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(InputError, match="weights.pt"):
        mba.load(tmp_path / "weights.pt")


def test_small_files_do_not_become_large(tmp_path):
    """A tensor of one number repeated, and a compressed archive."""
    torch.save({"backbone.embedding.weight": torch.ones(1).expand(2**40)}, tmp_path / "expanded.pt")
    with pytest.raises(InputError, match="not a plain dense tensor"):
        mba.load(tmp_path / "expanded.pt")
    torch.save({"backbone.embedding.weight": torch.zeros(2**20)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in plain.infolist():
            bomb.writestr(member.filename, plain.read(member))
    with pytest.raises(InputError, match="unpacks to"):
        mba.load(tmp_path / "bomb.pt")


def test_shapes_beyond_our_layer_are_told(tmp_path):
    theirs(state_size=300).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="ssm.d_state is 300"):
        mba.load(tmp_path)


def test_nonsense_in_config_json_is_one_error(folder):
    path = folder / "config.json"
    for text in ("[]", "null", '"x"', "[" * 100_000, "\ufeff{}", '{"a": 1' + "0" * 5000 + "}"):
        path.write_text(text)
        with pytest.raises(InputError, match="config.json"):
            mba.load(folder)
    path.write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(InputError, match="config.json"):
        mba.load(folder)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "num_layers", 3, "missing layers.2.mixer.A_log.* and 6 more; unexpected nothing"),
        ("model", "num_layers", 1_000_000, "num_layers is 1000000"),
        ("model", "d_model", 24, r"embedding.weight has shape \(16, 16\), not \(16, 24\)"),
        ("model", "d_model", 2**20, "describes a model of .* parameters; there are only"),
        ("model", "d_model", 10**30, "d_model is 1000"),
        ("model", "num_layers", 10_000, "describes a model of"),
        ("model", "vocab_size", 10**6, "describes a model of"),
        ("model", "vocab_size", 10**12, "vocab_size is 1000"),
        ("model", "norm_eps", 1e-2, "contradicts itself: norm_eps is 1e-05"),
        ("model", "tie_embeddings", False, "contradicts itself: tie_embeddings"),
        ("model", "strange", 1, "damaged mamba_bio_audio section"),
        (None, "manifest", [], "not a manifest"),
        (None, "layer_norm_epsilon", 1e-2, "contradicts itself: norm_eps is 0.01"),
        (None, "num_hidden_layers", 3, "num_hidden_layers is 3"),
    ],
)
def test_our_own_exports_are_checked_too(section, key, value, message, tmp_path):
    export(build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=16), seed=0), tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    if section == "model":
        description["mamba_bio_audio"]["model"][key] = value
    else:
        (description["mamba_bio_audio"] if key == "manifest" else description)[key] = value
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=message):
        mba.load(tmp_path)
