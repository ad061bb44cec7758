"""What the documentation site has beside the pages of `docs/`: a page for each command, the recipes, all keys, pictures.

`mkdocs.yml` names this file among its hooks, so the pages are made anew whenever the site is built and cannot be old.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from mamba_bio_audio.jobs.contract import Cli

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# Pages that are generated, and their places in the navigation.
RECIPES, KEYS, COMMANDS = "recipes.md", "keys.md", "commands"


def _cell(text: str) -> str:
    """Text of a cell; in code an angle bracket stays what it is."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if at % 2 else part.replace("<", "&lt;") for at, part in enumerate(parts))


def _code(text: str) -> str:
    return _cell(f"`{text}`") if text else ""


def commands() -> dict[str, ModuleType]:
    """Every job by the words of its command, in the order of `mba --help`."""
    from mamba_bio_audio.cli.adapter import job_modules

    return {job.COMMAND: job for job in job_modules()}


def command_page(name: str, job: ModuleType) -> str:
    """A command with its arguments and options."""
    from mamba_bio_audio.cli.adapter import spelled_options
    from mamba_bio_audio.run.keys import in_words

    found = spelled_options(job)
    arguments = {spelled: field for spelled, field in found.items() if not spelled.startswith("-")}
    usage = " ".join(["mba", name, "[OPTIONS]", *arguments])
    lines = [f"# mba {name}", "", inspect.cleandoc(job.run.__doc__ or ""), "", "```text", usage, "```", ""]
    if arguments:
        lines += ["| argument | |", "|---|---|"]
        lines += [f"| {_code(spelled)} | {_cell(field.description or '')} |" for spelled, field in arguments.items()]
        lines.append("")
    lines += ["| option | takes | default | |", "|---|---|---|---|"]
    for spelled, field in found.items():
        if spelled in arguments:
            continue
        takes, default = in_words(field)
        metavar = next((of.metavar for of in field.metadata if isinstance(of, Cli)), None)
        if takes == "true | false" and not field.default:
            takes, default = "", ""
        shown = "" if default in ("", "null", '""', "[]") else default if default == "required" else _code(default)
        lines.append(f"| `{spelled}` | {_cell(metavar or takes)} | {shown} | {_cell(field.description or '')} |")
    lines += ["| `--json` | | | Print the result as JSON. |", "| `--debug` | | | Show the traceback of an error. |"]
    return "\n".join(lines) + "\n"


def recipes_page() -> str:
    """Every recipe with its variants and what it is, from the recipes themselves."""
    from mamba_bio_audio.jobs.configs import ConfigsOptions, run

    lines = [
        "# Recipes",
        "",
        "What `mba pretrain`, `mba classify` and `mba finetune` take by name. Variants are combined with hyphens, in any",
        "order: `dna/hg38@7m-len1m-paper`. `mba configs NAME` shows a recipe with everything filled in; a YAML file of your",
        "own may say `extends: dna/hg38@7m`. Any key is set by `--set key=value`: [all keys](keys.md).",
        "",
    ]
    for name, text in run(ConfigsOptions()).found.items():
        recipe, _, variant = name.partition("@")
        if not variant:
            lines += ["", f"## {recipe}", "", f"{text}.", ""]
        elif lines[-1] == "":
            lines += ["| variant | |", "|---|---|", f"| `@{variant}` | {_cell(text)} |"]
        else:
            lines.append(f"| `@{variant}` | {_cell(text)} |")
    return "\n".join(lines) + "\n"


def keys_page() -> str:
    """Every key of a recipe by section."""
    from mamba_bio_audio.run.keys import all_keys

    lines = [
        "# All keys",
        "",
        "What a recipe may hold and `--set KEY=VALUE` takes; `mba configs --all` prints the same.",
    ]
    section = None
    for key in all_keys():
        first = key.path.split(".")[0] if "." in key.path else "the run"
        if first != section:
            section = first
            lines += ["", f"## {section}", "", "| key | takes | default | only | |", "|---|---|---|---|---|"]
        default = "required" if key.default == "required" else _code(key.default)
        lines.append(f"| `{key.path}` | {_cell(key.takes)} | {default} | {key.of} | {_cell(key.help)} |")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """The generated pages by their place in the site."""
    made = {RECIPES: recipes_page(), KEYS: keys_page()}
    overview = ["# Commands", "", "Each page is made from the command's own options.", "", "| command | |", "|---|---|"]
    for name, job in commands().items():
        page = f"{name.replace(' ', '-')}.md"
        made[f"{COMMANDS}/{page}"] = command_page(name, job)
        overview.append(f"| [mba {name}]({page}) | {_cell(inspect.cleandoc(job.run.__doc__ or '').splitlines()[0])} |")
    return made | {f"{COMMANDS}/index.md": "\n".join(overview) + "\n"}


# --- hooks of MkDocs


def on_config(config: Any) -> Any:
    """The navigation lists the commands where `mkdocs.yml` says `Commands`."""
    for entry in config["nav"]:
        if "Commands" in entry:
            names = list(commands())
            entry["Commands"] = [f"{COMMANDS}/index.md"] + [
                {f"mba {name}": f"{COMMANDS}/{name.replace(' ', '-')}.md"} for name in names
            ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages, and the pictures of the results that pages show."""
    from mkdocs.structure.files import File

    for place, text in pages().items():
        files.append(File.generated(config, place, content=text))
    shown = {name for page in (ROOT / "docs").rglob("*.md") for name in _pictures(page.read_text(encoding="utf-8"))}
    for name in sorted(shown):
        files.append(File.generated(config, f"results-of/{name}", abs_src_path=str(RESULTS / name)))
    return files


def _pictures(text: str) -> list[str]:
    return re.findall(r"\]\((?:\.\./)+benchmarks/results/([^)]+)\)", text)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Pictures of results lie in the site; in the repository their path leads out of `docs/`."""
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\]\((?:\.\./)+benchmarks/results/", f"]({up}results-of/", markdown)
