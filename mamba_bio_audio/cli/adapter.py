"""Commands from jobs: each field of a job's options becomes an argument or option of its command."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from annotated_types import Ge, Le
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

from mamba_bio_audio import jobs
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import to_json
from mamba_bio_audio.jobs.contract import GROUPS, PANELS, Cli, Options, Result
from mamba_bio_audio.text import show

_COMMON = {
    "as_json": typer.Option("--json", help="Print the result as JSON."),
    "debug": typer.Option("--debug", help="Show the traceback of an error."),
}


class ByPanel(TyperGroup):
    """Lists commands in the order of the panels; Typer puts groups last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands; a panel keeps the order in which its commands were added."""
        return sorted(self.commands, key=lambda name: PANELS.index(self.commands[name].rich_help_panel))  # type: ignore[attr-defined]


def job_modules() -> Iterator[ModuleType]:
    """Every file of `jobs/` that is a command, in the order in which `mba --help` lists them."""
    names = [found.name for found in pkgutil.iter_modules(jobs.__path__)]
    found = [importlib.import_module(f"{jobs.__name__}.{name}") for name in names]
    commands = [module for module in found if hasattr(module, "COMMAND")]
    yield from sorted(commands, key=lambda module: (PANELS.index(module.PANEL), module.COMMAND))


def command(job: ModuleType) -> Callable[..., None]:
    """A function whose signature Typer turns into the command of a job."""
    options_type: type[Options] = get_type_hints(job.run)["options"]

    def call(**given: Any) -> None:
        as_json = given.pop("as_json")
        given.pop("debug")
        options = options_from(options_type, given)
        if as_json:
            options.check_json()
        result: Result = job.run(options)
        if not result.silent:
            if text := to_json(result.to_json()) if as_json else result.text():
                show(text)
            if notes := result.notes():
                show(notes, file=sys.stderr)
        if result.exit_code:
            raise typer.Exit(result.exit_code)

    only = inspect.Parameter.KEYWORD_ONLY
    parameters = []
    for name, field in _in_order_of_help(options_type).items():
        default = field.get_default(call_default_factory=True)
        default = inspect.Parameter.empty if field.is_required() else _plain(default)
        parameters.append(inspect.Parameter(name, only, default=default, annotation=_annotation(name, field)))
    for name, how in _COMMON.items():
        parameters.append(inspect.Parameter(name, only, default=False, annotation=Annotated[bool, how]))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__doc__ = job.run.__doc__
    return call


def spelled_options(job: ModuleType) -> dict[str, FieldInfo]:
    """The arguments and options of a job as the user writes them, in the order of its help; without --json and --debug."""
    options: type[Options] = get_type_hints(job.run)["options"]
    return {_spelling(name, options): field for name, field in _in_order_of_help(options).items()}


def add_commands(app: typer.Typer, modules: Iterable[ModuleType]) -> None:
    """Add a command for each job; one of two words belongs to a group, whose help is `GROUPS`."""
    groups: dict[str, typer.Typer] = {}
    for job in modules:
        *group, verb = job.COMMAND.split()
        place = app
        if group:
            name = group[0]
            if name not in groups:
                groups[name] = typer.Typer(no_args_is_help=True, help=GROUPS[name])
                app.add_typer(groups[name], name=name, rich_help_panel=job.PANEL)
            place = groups[name]
        place.command(verb, rich_help_panel=None if group else job.PANEL)(command(job))


def options_from(options: type[Options], given: dict[str, Any]) -> Options:
    """Options from what the command line gave.

    Raises:
        InputError: a bound or a rule between options is broken; the message names the option.
    """
    try:
        return options(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            where = f"{_spelling(str(problem['loc'][0]), options)}: " if problem["loc"] else ""
            lines.append(where + problem["msg"].removeprefix("Value error, "))
        raise InputError("\n".join(lines)) from None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _in_order_of_help(options: type[Options]) -> dict[str, FieldInfo]:
    """Fields as `--help` lists them: what is required first, what every command has last."""
    fields = options.model_fields
    last = list(Options.model_fields)
    return dict(sorted(fields.items(), key=lambda of: (not of[1].is_required(), of[0] in last, of[0] == "force")))


def _cli(field: FieldInfo) -> Cli:
    return next((of for of in field.metadata if isinstance(of, Cli)), Cli())


def _spelling(name: str, options: type[Options]) -> str:
    """A field as the user writes it: `--option`, or the name of an argument."""
    cli = _cli(options.model_fields[name]) if name in options.model_fields else Cli()
    if cli.argument:
        return cli.metavar or name.upper()
    return cli.flag or "--" + name.replace("_", "-")


def _annotation(name: str, field: FieldInfo) -> Any:
    """A field as what Typer reads: type, bounds, spelling, help."""
    cli = _cli(field)
    how: dict[str, Any] = {"help": field.description, "metavar": cli.metavar}
    for bound in () if cli.text else field.metadata:
        if isinstance(bound, Ge):
            how["min"] = bound.ge
        elif isinstance(bound, Le):
            how["max"] = bound.le
    kind: Any = str if cli.text else field.annotation
    if get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
    if cli.argument:
        how["metavar"] = cli.metavar or name.upper()
        return Annotated[kind, typer.Argument(**how)]
    # Without a spelling Typer makes --name and --no-name of a switch: right for one that is on by default.
    named = [cli.flag or "--" + name.replace("_", "-")] if kind is not bool or field.default is False else []
    return Annotated[kind, typer.Option(*named, **how)]
