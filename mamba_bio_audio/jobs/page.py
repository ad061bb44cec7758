"""A self-contained page: sections of text, tables, pictures and players."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mamba_bio_audio import __version__
from mamba_bio_audio.text import printable

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.contract import Clip


@dataclass
class Image:
    """A picture in the page."""

    alt: str
    png: bytes


@dataclass
class Section:
    """A part of the page; what is empty is not shown."""

    title: str
    text: str = ""
    rows: Sequence[tuple[str, str]] = ()
    pre: str = ""
    images: list[Image] = field(default_factory=list)
    clips: Sequence[Clip] = ()


def render(title: str, lead: str, sections: Sequence[Section], unit: str) -> str:
    """The page as HTML; `unit` is that of the data, a base or a sample."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    template = environment.from_string((files("mamba_bio_audio.jobs") / "report.html").read_text(encoding="utf-8"))
    return template.render(title=title, lead=lead, sections=sections, unit=unit, version=__version__)


def is_page(path: Path) -> bool:
    """Whether a file is such a page."""
    with path.open("rb") as file:
        return b'<meta name="generator" content="mba report">' in file.read(1000)


def _shown(value: Any) -> Any:
    return printable(value, lines=True) if isinstance(value, str) else value
