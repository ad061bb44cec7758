"""`mba export --push`: exactly what was just exported goes to the Hub, and everything that can be checked before is."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mamba_bio_audio.errors import InputError, NetworkError
from mamba_bio_audio.jobs.export import ExportOptions, run
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.run import hub
from mamba_bio_audio.run.export import export

huggingface_hub = pytest.importorskip("huggingface_hub")


class Refused(OSError):
    """As the Hub answers."""

    def __init__(self, status):
        super().__init__(f"HTTP {status}\nmore")
        self.response = SimpleNamespace(status_code=status)


@pytest.fixture
def model(tmp_path) -> Path:
    """A model to export."""
    made = build_model(ModelConfig(d_model=16, num_layers=1, vocab_size=12), seed=0)
    made.codec = DnaTokenizer()
    export(made.eval(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def api(monkeypatch):
    """Stands for the Hub: notes what it is asked, and keeps the files that it gets."""

    class Fake:
        asked, got, fails, token = [], {}, {}, "hf_fake"

        def _ask(self, name, **given):
            self.asked.append((name, given))
            if name in self.fails:
                raise self.fails[name]

        def whoami(self):
            self._ask("whoami")

        def create_repo(self, repo_id, *, private, exist_ok):
            self._ask("create_repo", repo_id=repo_id, private=private, exist_ok=exist_ok)
            return type("RepoUrl", (str,), {"repo_id": f"me/{repo_id.split('/')[-1]}"})(f"https://hub/{repo_id}")

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
            self._ask("upload_folder", repo_id=repo_id)
            files = [
                path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()
            ]
            for name in huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns):
                self.got[name] = (Path(folder_path) / name).read_bytes()

    Fake.asked, Fake.got, Fake.fails = [], {}, {}
    monkeypatch.setattr(huggingface_hub, "HfApi", Fake)
    return Fake


def test_exactly_what_was_exported_is_pushed(model, api, tmp_path):
    out = tmp_path / "out"
    result = run(ExportOptions(run=model, out=out, push="me/toy", private=True))
    assert result.pushed == "https://hub/me/toy"
    assert result.text().endswith("\npushed to https://hub/me/toy")
    assert [name for name, _ in api.asked] == ["whoami", "create_repo", "upload_folder"]
    assert api.asked[1][1] == {"repo_id": "me/toy", "private": True, "exist_ok": True}
    assert api.got == {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".mba.json"}
    assert {"model.safetensors", "config.json", "README.md", "generation_config.json"} <= set(api.got)


def test_a_file_that_came_in_between_is_not_pushed(model, api, tmp_path, monkeypatch):
    push = hub.Push.push

    def late(self, folder, files, **how):
        (folder / "secret.txt").write_text("x")
        return push(self, folder, files, **how)

    monkeypatch.setattr(hub.Push, "push", late)
    run(ExportOptions(run=model, out=tmp_path / "out", push="me/toy"))
    assert "model.safetensors" in api.got
    assert "secret.txt" not in api.got


def test_a_folder_that_cannot_be_replaced_is_not_pushed(model, api, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        run(ExportOptions(run=model, out=tmp_path / "out", push="me/toy"))
    assert not api.got


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "/b", "a/", "a b", "https://huggingface.co/a/b", "-a/b", "a/b--c", "ä/b"]
)
def test_a_name_that_is_none_is_refused_before_anything(model, api, tmp_path, name):
    with pytest.raises(InputError, match="not a repository"):
        run(ExportOptions(run=model, out=tmp_path / "out", push=name))
    assert not api.asked
    assert not (tmp_path / "out").exists()


def test_without_the_extra(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'mamba-bio-audio\[hub\]'"):
        run(ExportOptions(run=model, out=tmp_path / "out", push="me/toy"))
    assert not (tmp_path / "out").exists()
    assert run(ExportOptions(run=model, out=tmp_path / "out")).pushed is None


def test_without_a_token(model, api, tmp_path, monkeypatch):
    api.token = None
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="needs a token.*hf auth login"):
        run(ExportOptions(run=model, out=tmp_path / "out", push="me/toy"))
    assert not api.asked
    assert not (tmp_path / "out").exists()


def test_a_token_that_is_refused(model, api, tmp_path):
    api.fails["whoami"] = Refused(401)
    with pytest.raises(InputError, match=r"refuses this token \(HTTP 401\).*nothing was exported"):
        run(ExportOptions(run=model, out=tmp_path / "out", push="me/toy"))
    assert not (tmp_path / "out").exists()


def test_without_a_network(model, api, tmp_path):
    api.fails["whoami"] = ConnectionError("Name or service not known")
    with pytest.raises(NetworkError, match="ConnectionError: Name or service not known; nothing was exported"):
        run(ExportOptions(run=model, out=tmp_path / "out", push="me/toy"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "error", "kind"),
    [
        ("create_repo", Refused(403), InputError),
        ("upload_folder", Refused(500), NetworkError),
        ("upload_folder", TimeoutError("timed out"), NetworkError),
    ],
)
def test_an_upload_that_fails_leaves_the_export(model, api, tmp_path, asked, error, kind):
    api.fails[asked] = error
    out = tmp_path / "out"
    with pytest.raises(kind, match="the export is complete in .*repeat the command with --force"):
        run(ExportOptions(run=model, out=out, push="me/toy"))
    assert json.loads((out / "config.json").read_text())["model_type"] == "mamba"
    api.fails.clear()
    assert run(ExportOptions(run=model, out=out, push="me/toy", force=True)).pushed


def test_private_goes_with_push(model, tmp_path):
    with pytest.raises(ValueError, match="--private goes with --push"):
        ExportOptions(run=model, out=tmp_path / "out", private=True)
