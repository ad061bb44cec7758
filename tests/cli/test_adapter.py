"""Commands made from jobs: one file is one command."""

import gc
import json
import re
import sys
import types
from typing import Annotated, Literal

import pytest
import typer
from pydantic import Field, model_validator

from mamba_bio_audio.cli import adapter, main
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.jobs.contract import PANELS, Cli, Options, Overrides, Result

TOY = '''
"""`mba greet`: a toy."""
from __future__ import annotations
from typing import Annotated
from pydantic import Field
from mamba_bio_audio.jobs.contract import Cli, Options, Result

COMMAND = "greet"
PANEL = "Use"


class GreetOptions(Options):
    name: Annotated[str, Cli(argument=True)] = Field(description="Who is greeted.")
    times: int = Field(1, ge=1, le=3, description="How often.")


class GreetResult(Result):
    greeting: str

    def text(self) -> str:
        return self.greeting


def run(options: GreetOptions) -> GreetResult:
    """Greet somebody."""
    return GreetResult(greeting=" ".join([f"hello {options.name}"] * options.times))
'''


def run_app(app, *arguments):
    try:
        app(list(arguments), standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    return 0


def test_a_file_in_jobs_is_a_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "greet.py").write_text(TOY)
    monkeypatch.setattr(adapter.jobs, "__path__", [*adapter.jobs.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mamba_bio_audio.jobs.greet", raising=False)
    app = typer.Typer()
    adapter.add_commands(app, adapter.job_modules())
    monkeypatch.setattr(main, "app", app)
    for arguments, code, out, error in (
        (["greet", "you", "--times", "2"], 0, "hello you hello you\n", ""),
        (["greet", "you", "--times", "4"], 2, "", "--times"),
        (["greet"], 2, "", "NAME"),
        (["--help"], 0, "Greet somebody.", ""),
        (["greet", "--help"], 0, "How often.", ""),
    ):
        with pytest.raises(SystemExit) as stop:
            main.run(arguments)
        shown = capsys.readouterr()
        assert (stop.value.code or 0) == code
        assert out in shown.out
        assert error in shown.err
    with pytest.raises(SystemExit):
        main.run(["greet", "you", "--json"])
    assert json.loads(capsys.readouterr().out) == {"greeting": "hello you"}


class EverythingOptions(Options):
    """One field of each kind."""

    place: Annotated[str, Cli(argument=True, metavar="PLACE")] = Field(description="A place.")
    overrides: Overrides = ()
    kind: Literal["a", "b"] = "a"
    share: float | None = Field(None, gt=0, le=1)
    baselines: bool = True
    force: bool = False
    top_k: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_of_two(self):
        if self.force and self.top_k:
            raise ValueError("--force does not go with --top-k")
        return self


class EverythingResult(Result):
    """The options again."""

    given: EverythingOptions
    left: str = "out"

    @property
    def silent(self):
        return self.given.kind == "b" and self.given.force

    def text(self):
        return "text"

    def notes(self):
        return "notes"

    @property
    def exit_code(self):
        return 130 if self.given.force else 0


@pytest.fixture
def everything(monkeypatch):
    def run(options: EverythingOptions) -> EverythingResult:
        """All of it."""
        return EverythingResult(given=options)

    job = types.SimpleNamespace(COMMAND="prepare everything", PANEL="Data", run=run)
    app = typer.Typer()
    adapter.add_commands(app, [job, types.SimpleNamespace(COMMAND="one", PANEL="Use", run=run)])
    monkeypatch.setattr(main, "app", app)

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main.run(["prepare", "everything", *arguments])
        return stop.value.code or 0

    return call


def test_every_kind_of_field(everything, capsys):
    arguments = ("here", "--set", "a=1", "--set", "b=2", "--kind", "b", "--share", "0.5", "--no-baselines", "--json")
    assert everything(*arguments) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["given"] == {
        "quiet": False,
        "place": "here",
        "overrides": ["a=1", "b=2"],
        "kind": "b",
        "share": 0.5,
        "baselines": False,
        "force": False,
    }
    assert shown.err == "notes\n"
    assert everything("here", "--force") == 130
    assert capsys.readouterr().out == "text\n"
    # Another process than the first of several.
    for more in ((), ("--json",)):
        assert everything("here", "--force", "--kind", "b", *more) == 130
        assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("here", "--kind", "c"), "'c' is not one of 'a', 'b'"),
        (("here", "--share", "0"), "--share: Input should be greater than 0"),
        (("here", "--top-k", "0"), "--top-k"),
        (("here", "--force", "--top-k", "2"), "--force does not go with --top-k"),
        (("here", "--no-force"), "No such option"),
    ],
)
def test_bad_usage_is_code_2(arguments, message, everything, capsys):
    assert everything(*arguments) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.replace("│", " ").split())


def test_every_command_has_the_common_options():
    for job in adapter.job_modules():
        names = set(adapter.command(job).__annotations__)
        assert {"quiet", "as_json", "debug"} <= names, job
        fields = adapter.get_type_hints(job.run)["options"].model_fields
        assert all(field.description for field in fields.values()), job.COMMAND


def commands(group, *names):
    """(name, command) of every command of the program, groups entered."""
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from commands(found, *names, name)
        else:
            yield " ".join([*names, name]), found


def test_every_help_text_is_a_sentence():
    sentence = re.compile(r"[A-Z0-9].*\.", re.DOTALL)
    for name, found in commands(typer.main.get_command(main.app)):
        assert sentence.fullmatch(found.help or ""), name
        for parameter in found.params:
            assert sentence.fullmatch(parameter.help or ""), f"{name} {parameter.name}: {parameter.help!r}"


def test_commands_are_listed_by_panel(capsys):
    with pytest.raises(SystemExit):
        main.run(["--help"])
    titles = re.findall(r"─ (\w+) ─", capsys.readouterr().out)
    assert titles == ["Options", *PANELS]


def test_help_lists_what_is_required_first_and_what_all_have_last():
    job = next(job for job in adapter.job_modules() if job.COMMAND == "prepare genome")
    names = list(adapter.command(job).__annotations__)
    assert names[:2] == ["out", "fasta"]
    assert names[-4:] == ["force", "quiet", "as_json", "debug"]


def test_errors_name_a_field_as_it_is_typed():
    class Odd(Options):
        at_hand: Annotated[int, Cli(flag="--from")] = Field(1, ge=1)
        name: Annotated[str, Cli(argument=True)] = Field("x", min_length=1)

    for given, spelling in (({"at_hand": 0}, "--from: "), ({"name": ""}, "NAME: ")):
        with pytest.raises(InputError, match=f"^{spelling}"):
            adapter.options_from(Odd, given)


def test_a_process_that_ends_looks_for_no_garbage(monkeypatch, capsys):
    """A command in a process of its own; one that is called from Python leaves the process as it is."""
    ends: list[object] = []
    monkeypatch.setattr("atexit.register", ends.append)
    with pytest.raises(SystemExit):
        main.run(["--version"])
    assert ends == []
    monkeypatch.setattr("sys.argv", ["mba", "--version"])
    with pytest.raises(SystemExit):
        main.run()
    assert ends == [gc.freeze]


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main.run(["--version"])
    assert not stop.value.code
    assert capsys.readouterr().out.startswith("mamba-bio-audio ")
