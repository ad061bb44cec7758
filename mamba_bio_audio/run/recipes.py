"""Recipes: YAML files, their variants and bases, and `--set` (torch-free).

A recipe is a YAML file, by name from the package (`dna/hg38`) or by path. `extends: NAME` takes another recipe as the
base. `variants:` holds named sets of keys: `dna/hg38@7m-len1m-paper` is the recipe `dna/hg38` with its variants `7m`,
`len1m` and `paper` merged over it. Their order does not matter, because two variants that set a key to different values
are refused. With a hyphen in place of the `@` the longest name that is a recipe comes first: `dna/hg38-7m-len1m-paper`.

Words stay as they were written; `words.py` gives them types.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.plain_yaml import Plain, parse
from mamba_bio_audio.run.words import bracketed


class Recipe(NamedTuple):
    """What a recipe's name asks for."""

    file: str  # packaged name, or path of a YAML file
    variants: list[str]

    @property
    def folder_name(self) -> str:
        """A valid name for its run folder."""
        stem = Path(self.file).stem if _is_path(self.file) else self.file
        return re.sub(r"[^\w.-]+", "-", "-".join([stem, *self.variants])).strip("-.")[:100] or "run"


def locate(recipe: str) -> Recipe:
    """Split a recipe's name into file and variants; whether they exist shows when they are read."""
    path = re.fullmatch(r"(.+\.ya?ml)(@[^/\\]*)?", recipe, flags=re.DOTALL)
    if path:
        return Recipe(path[1], _parts(path[2][1:]) if path[2] else [])
    family, separator, variants = recipe.partition("@")
    if separator:
        return Recipe(family, _parts(variants))
    # Longest name first: dna/hg38-caduceus-1k is a variant of dna/hg38-caduceus.
    names = [name for name in recipe_names() if f"{recipe}-".startswith(f"{name}-")]
    family = max(names, key=len, default=recipe)
    return Recipe(family, _parts(recipe[len(family) + 1 :]) if family != recipe else [])


def _parts(variants: str) -> list[str]:
    return re.split("[-@]", variants)


def _is_path(recipe: str) -> bool:
    return recipe.endswith((".yaml", ".yml"))


def recipe_names() -> list[str]:
    """Names of the packaged recipes without their variants, sorted."""

    def walk(folder: Traversable, prefix: str) -> Iterable[str]:
        for entry in folder.iterdir():
            if entry.is_dir():
                yield from walk(entry, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".yaml"):
                yield prefix + entry.name.removesuffix(".yaml")

    return sorted(walk(files("mamba_bio_audio") / "configs", ""))


def variants_of(recipe: str) -> dict[str, str]:
    """The variants of a recipe, as they stand in its file, with their descriptions.

    Raises:
        InputError: there is no such recipe, or it is not a valid one.
    """
    _, variants = _read(locate(recipe).file)
    return {name: str(keys.get("description", "")) for name, keys in variants.items()}


def recipe_files(recipe: str | None) -> list[str]:
    """Files of a user that a recipe is read from: itself and its bases, without those of the package."""
    found = []
    while recipe is not None and _is_path(file := locate(recipe).file):
        found.append(file)
        values, _ = _read(file)
        recipe = _base(file, values.get("extends"))
    return found


def recipe_values(recipe: str) -> dict[str, Any]:
    """A recipe over its bases, with its variants: plain values whose words have no types yet.

    Raises:
        InputError: no such recipe or variant, variants that contradict each other, or not plain YAML.
    """
    return _resolved(recipe, ())


def own_values(recipe: str) -> dict[str, Any]:
    """What a user's own files say in a recipe: itself and its bases, with the chosen variants, without those of the package.

    Args:
        recipe: one that `recipe_values` has read.
    """
    file, chosen = locate(recipe)
    if not _is_path(file):
        return {}
    values, variants = _read(file)
    base = _base(file, values.pop("extends", None))
    values = merged({} if base is None else own_values(base), values)
    for name in chosen:
        values = merged(values, variants[name])
    return values


def _resolved(recipe: str, seen: tuple[str, ...]) -> dict[str, Any]:
    file, chosen = locate(recipe)
    if file in seen:
        raise InputError(f"recipe {file} extends itself through {' -> '.join(seen)}")
    values, variants = _read(file)
    base = _base(file, values.pop("extends", None))
    if base is not None:
        values = merged(_resolved(base, (*seen, file)), values)
    changes: dict[str, dict[str, Any]] = {}
    for name in chosen:
        if name not in variants:
            raise InputError(f"recipe {recipe}: {_no_variant(file, name, list(variants))}")
        change = {key: value for key, value in variants[name].items() if key != "description"}
        for other, earlier in changes.items():
            if key := _contradiction(earlier, change):
                raise InputError(
                    f"recipe {recipe}: the variants {other} and {name} set {key} to different values; choose one of them"
                )
        changes[name] = change
        values = merged(values, change)
    if chosen:
        # The recipe's own first: "the paper's models on hg38; 16 layers x 256; windows as published".
        texts = [section.get("description") for section in (values, *(variants[name] for name in chosen))]
        values["description"] = "; ".join(str(text) for text in texts if text)
    return values


def _read(file: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The keys of one file, and its variants."""
    source = f"recipe {file}"
    values = parse(_text(file), source)
    if not isinstance(values, dict):
        raise InputError(f"{source} must be a mapping of keys")
    variants = values.pop("variants", {})
    if not isinstance(variants, dict):
        raise InputError(f"{source}: variants must be a mapping from names to keys")
    for name, keys in variants.items():
        if not re.fullmatch(r"[\w.]+", name):
            raise InputError(f"{source}: variants.{name}: a variant's name has letters, digits, _ and dots only")
        if not isinstance(keys, dict):
            raise InputError(f"{source}: variants.{name} must be a mapping of keys")
        for key in ("extends", "variants"):
            if key in keys:
                raise InputError(f"{source}: variants.{name}.{key}: move this key out of the variant")
    return values, variants


def _text(file: str) -> str:
    if _is_path(file):
        if not Path(file).is_file():
            raise InputError(f"recipe {file}: no such file")
        try:
            return Path(file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"recipe {file} is not UTF-8 text: {error}") from None
    names = recipe_names()
    if file not in names:
        tries = (file.partition("-")[0], file)
        close = next((found[0] for text in tries if (found := difflib.get_close_matches(text, names, 1))), None)
        hint = f"did you mean {close}? " if close else ""
        raise InputError(f"recipe {file}: {hint}packaged recipes: {', '.join(names)}; or give a .yaml file")
    return (files("mamba_bio_audio") / "configs" / f"{file}.yaml").read_text(encoding="utf-8")


def _base(file: str, extends: Any) -> str | None:
    """Name or path of a recipe's base, as its key `extends` gives it."""
    if extends is None or getattr(extends, "null", False):
        return None
    base = str(extends)
    return str(Path(file).parent / base) if _is_path(locate(base).file) else base


def _no_variant(file: str, name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    close = close or difflib.get_close_matches(f"{file}-{name}", recipe_names(), 1, cutoff=0.85)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{file} has no variant {name!r}; {hint}its variants: {', '.join(names) or 'none'}"


def _contradiction(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first key that both set to different values."""
    for key in (key for key in one if key in other):
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            if below := _contradiction(one[key], other[key]):
                return f"{key}.{below}"
        elif one[key] != other[key]:
            return key
    return None


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; anything else in `over` replaces what `base` has."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(result.get(key), dict) and isinstance(value, dict)
        result[key] = merged(result[key], value) if both else value
    return result


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Put `a.b=c` overrides into plain values, in place.

    Raises:
        InputError: an override cannot be placed.
    """
    for text in overrides:
        key, separator, value = text.partition("=")
        keys = key.strip().split(".")
        if not separator or not all(keys):
            raise InputError(f"--set {text}: write it as key=value, for example --set train.lr=1e-3")
        place: Any = values
        for number, name in enumerate(keys):
            last = number == len(keys) - 1
            if isinstance(place, list):
                if not name.isdecimal() or int(name) >= len(place):
                    raise InputError(
                        f"--set {text}: {'.'.join(keys[:number])} is a list of {len(place)}, and {name} is none of its "
                        f"numbers from 0; set the whole list, [a, b]"
                    )
                at: Any = int(name)
                now = place[at]
            else:
                at, now = name, place.get(name)
            if isinstance(now, Plain) and bracketed(now) and not last:
                now = place[at] = parse(now, f"--set {'.'.join(keys[: number + 1])}")
            if last:
                given = Plain(value, null=value == "null", argument=True)
                # A mapping over a mapping changes the keys that it names.
                whole = isinstance(now, dict) and value.strip().startswith("{")
                place[at] = merged(now, _collection(given, f"--set {text}", dict)) if whole else given
            elif isinstance(now, dict | list):
                place = now
            elif now is None or getattr(now, "null", False):
                place[at] = place = {}
            else:
                raise InputError(
                    f"--set {text}: {'.'.join(keys[: number + 1])} is {str(now)!r}, not a section with keys"
                )


def _collection(word: Plain, source: str, kind: type) -> Any:
    value = parse(word, source)
    if not isinstance(value, kind):
        raise InputError(f"{source}: write a list as [a, b] and a mapping as {{a: 1, b: 2}}")
    return value
