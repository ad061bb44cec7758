"""What others named does nothing to a terminal, and no encoding of it ends a command that has done its work."""

import io
import subprocess
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
        ["embed", "none", name, "--out", "none.npz"],
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


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """A line of a shell, with `mba` for the command, on machinery that would show a traceback."""
    line = line.replace("mba", f"{sys.executable} -m mamba_bio_audio")
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("line", "code", "out"),
    [
        # Whoever read the messages has gone, like a `tee` that Ctrl-C ended.
        ("mba configs nothing 2> >(exec 0<&-; exit)", 2, ""),
        ("mba configs nothing 2>&-", 2, ""),
        ("mba configs nothing 2>/dev/full", 2, ""),
        ("mba configs dna/tiny >&-", 0, ""),
        ("mba configs dna/tiny <&- >&- 2>&-", 0, ""),
    ],
)
def test_streams_that_are_gone(line, code, out):
    done = shell(f"sleep 0.1; {line}")
    assert (done.returncode, done.stdout, done.stderr) == (code, out, "")


def test_rows_for_a_closed_standard_output(tmp_path):
    done = shell(f"mba sample {tmp_path} --length 9 >&-")
    assert (done.returncode, done.stderr) == (2, "mba: standard output is closed; give --out FILE\n")


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path):
    code = "from mamba_bio_audio.cli.main import _prepare_streams as p; p(); print(open(%r, 'w').fileno() > 2)"
    run = f'{sys.executable} -c "{code % str(tmp_path / "x")}" 2>&- <&-'
    assert subprocess.run(["bash", "-c", run], capture_output=True, text=True, timeout=600).stdout == "True\n"
