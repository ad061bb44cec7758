"""Loading what others wrote, and saying clearly what cannot be loaded."""

import json

import pytest
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.run.described import read_manifest
from mamba_bio_audio.run.export import export


@pytest.fixture
def model():
    return build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=16, vocab_multiple=1), seed=0)


def mamba_ssm_names(model) -> dict[str, torch.Tensor]:
    state = {f"backbone.{k}": v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    return state | {"lm_head.weight": model.lm_head.weight.detach()}


@pytest.mark.parametrize("folder", [True, False])
def test_mamba_ssm_state_dict_loads(model, folder, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(mamba_ssm_names(model), path)
    (tmp_path / "config.json").write_text(json.dumps({"d_model": 16, "n_layer": 2, "vocab_size": 16}))
    loaded = mba.load(tmp_path if folder else path)
    tokens = torch.randint(16, (1, 20))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert not loaded.training
    assert loaded.codec is None


@pytest.mark.parametrize("mixer", ["mamba", "mamba-complex", "s4d", "s4d-real"])
def test_every_mixer_exports_and_loads(mixer, tmp_path):
    model = build_model(ModelConfig(d_model=16, num_layers=2, vocab_size=12, mixer=mixer), seed=0)
    export(model, tmp_path)
    kind = json.loads((tmp_path / "config.json").read_text())["model_type"]
    assert kind == ("mamba" if mixer == "mamba" else "mamba_bio_audio")
    loaded = mba.load(tmp_path)
    tokens = torch.randint(7, 11, (1, 20))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert loaded.model_config == model.model_config


def test_export_is_not_narrowed_by_ties(model, tmp_path):
    export(model, tmp_path)
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert tensors["backbone.embeddings.weight"].dtype == torch.float32
    assert "16" in (tmp_path / "README.md").read_text()


def test_what_cannot_be_loaded_says_why(model, tmp_path):
    with pytest.raises(InputError, match="no such run"):
        mba.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="neither a run"):
        mba.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        mba.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(InputError, match=r"neither model\.safetensors nor"):
        mba.load(tmp_path)
    torch.save(mamba_ssm_names(model), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="llama"):
        mba.load(tmp_path)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot be read"):
        mba.load(bad)
    mamba2 = {k: v for k, v in mamba_ssm_names(model).items() if "x_proj" not in k and "dt_proj" not in k}
    torch.save(mamba2, tmp_path / "mamba2.pt")
    with pytest.raises(InputError, match="Mamba-2"):
        mba.load(tmp_path / "mamba2.pt")
    layer_missing = {k: v for k, v in mamba_ssm_names(model).items() if "layers.1.mixer.D" not in k}
    torch.save(layer_missing, tmp_path / "missing.pt")
    with pytest.raises(InputError, match="missing layers.1.mixer.D; unexpected nothing"):
        mba.load(tmp_path / "missing.pt")


def test_a_manifest_with_name_and_hash_of_its_files_is_read(tmp_path):
    """What else it says of a file is for people."""
    path = tmp_path / "manifest.json"
    for file in ({"name": "x.fa", "sha256": "0"}, {"name": "x.fa", "sha256": "0", "bytes": 1}):
        path.write_text(json.dumps({"data": {"files": [file]}}))
        assert read_manifest(tmp_path)["data"]["files"] == [file]
    path.write_text(json.dumps({"data": {"files": [{"name": "x.fa"}]}}))
    with pytest.raises(InputError, match="not a manifest of this program"):
        read_manifest(tmp_path)


def test_the_home_folder_may_be_written_as_a_tilde(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    export(model, tmp_path / "model")
    tokens = torch.randint(16, (1, 20))
    assert torch.equal(mba.load("~/model")(tokens).logits, model(tokens).logits)
