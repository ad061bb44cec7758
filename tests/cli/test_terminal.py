"""What others named does nothing to a terminal, and no encoding of it ends a command that has done its work."""

import io
import sys

import pytest

from mamba_bio_audio.cli.main import run as command


def mba(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.mark.parametrize("name", ["\x1b]0;title\x07", "\x1b[2K\rmba: all is well", "\u202egnp.af", "bell\x07"])
def test_errors_name_files_without_obeying_them(name, capsys):
    for arguments in (
        ["report", name],
        ["sample", name, "--length", "1"],
        ["predict", "none", name],
        ["pretrain", f"{name}.yaml"],
        ["pretrain", "dna/tiny", "--set", f"data.path={name}"],
        ["pretrain", "dna/tiny", "--set", "data.path=demo", "--set", f"name={name}"],
        ["pretrain", "dna/tiny", "--set", f"data.{name}=1"],
        ["prepare", "genome", name, "--out", "none"],
    ):
        assert mba(*arguments) == 2
        printed = capsys.readouterr()
        text = printed.out + printed.err
        assert text.startswith("mba: ")
        assert not set(text) & set("\x1b\x07\r\u202e"), arguments


def test_recipes_are_shown_in_any_encoding(tmp_path, monkeypatch):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text('extends: dna/tiny\ndescription: "José\'s genome \\e[31m"\n', encoding="utf-8")
    for encoding, shown in (("ascii", rb"Jos\xe9's genome"), ("utf-8", "José's genome".encode())):
        stream = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding=encoding, write_through=True))
        assert mba("configs", recipe) == 0
        assert shown in stream.getvalue()
        assert b"\x1b" not in stream.getvalue()
