"""The words that people use for training, validation and test, and what each means within a data set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from mamba_bio_audio.errors import InputError

SPLITS = ("train", "valid", "test")
SPLIT_ALIASES = {
    "training": "train",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "devel": "valid",
    "development": "valid",
    "testing": "test",
}
# Some mean validation, others test; accepted only if the rest of the data leaves a single meaning.
AMBIGUOUS = ("eval", "evaluation")
# Words with the same meaning; if a data set uses two of these sets, we do not know what it means.
_VALIDATION = ({"val", "valid", "validation"}, {"dev", "devel", "development"}, set(AMBIGUOUS))


def is_split_word(text: str) -> bool:
    """Whether a word, in upper or lower case, names a split."""
    word = text.strip().lower()
    return word in SPLITS or word in SPLIT_ALIASES or word in AMBIGUOUS


def split_meanings(words: Mapping[str, str], remedy: str = "write train, valid or test") -> dict[str, str]:
    """Map every word that a data set uses for splits to the split that it means.

    Args:
        words: word as written -> where it occurs first.
        remedy: what to do about a word that is refused.

    Raises:
        InputError: a word does not name a split, or could mean two.
    """
    lower = {word: word.strip().lower() for word in words}
    for word, place in words.items():
        if not is_split_word(word):
            raise InputError(
                f"{place}: unknown split {word!r}; allowed: {', '.join(SPLITS)} (val, validation and dev mean valid); "
                f"{remedy}"
            )
    used = [[word for word in words if lower[word] in kind] for kind in _VALIDATION]
    first = [found[0] for found in used if found]
    if len(first) > 1:
        raise InputError(
            f"{words[first[1]]}: split {first[1]!r}, but {first[0]!r} at {words[first[0]]}, so it is unclear which of them "
            f"is validation; {remedy}"
        )
    meant = {word: SPLIT_ALIASES.get(short, short) for word, short in lower.items()}
    if used[2]:
        if "test" not in meant.values():
            raise InputError(
                f"{words[used[2][0]]}: split {used[2][0]!r} could mean validation or test, because nothing else in the data "
                f"is called test; {remedy}"
            )
        meant |= dict.fromkeys(used[2], "valid")
    return meant


def without_split_word(name: str) -> tuple[str, str] | None:
    """(rest, word) of a name that contains one split word, like `human` and `train` for human_train; else None."""
    parts = re.split(r"[._\-\s]+", name)
    words = [part for part in parts if is_split_word(part)]
    if len(words) != 1:
        return None
    return "_".join(part for part in parts if part != words[0]).lower(), words[0]


def refuse_split_names(names: Iterable[str], where: str, remedy: str) -> None:
    """Refuse classes that are named after splits: `train` and `test`, or `human_train` and `human_test`.

    Args:
        names: names of the classes, taken from files, folders or keys.
        where: where the names come from.
        remedy: what to do instead.
    """
    seen: dict[str, tuple[str, str]] = {}
    for name in names:
        found = without_split_word(name)
        if found is None:
            continue
        rest, word = found
        if not rest:
            raise InputError(f"{where}: {name!r} is the name of a split, not of a class. {remedy}")
        other, before = seen.setdefault(rest, (name, word))
        if before != word:
            raise InputError(
                f"{where}: judging by their names, {other!r} and {name!r} are one class in two splits, not two classes. "
                f"{remedy}"
            )
