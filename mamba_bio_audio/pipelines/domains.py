"""The domains there are. A new one is a folder in `pipelines/` and a line here."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.contract import Domain

# Modules, importable without torch, whose `DOMAIN` is one.
MODULES = [f"mamba_bio_audio.pipelines.{name}.domain" for name in ("dna", "audio", "synthetic")]


@cache
def domains() -> tuple[Domain, ...]:
    """Every domain, in the order of `MODULES`."""
    return tuple(import_module(name).DOMAIN for name in MODULES)


def domain_of(kind: str) -> Domain:
    """The domain that a `data.kind` belongs to."""
    return next(domain for domain in domains() if kind in domain.kinds)


def domain_named(name: str) -> Domain:
    """The domain of this name, which is also that of its codec."""
    return next(domain for domain in domains() if domain.name == name)
