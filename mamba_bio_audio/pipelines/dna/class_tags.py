"""Splits named in labelled data: by a table column, a tag in a FASTA header, or the name of a file or folder.

>chr1 split=train        also written Split:, or with set, subset, fold or partition instead of split
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.split_names import SPLIT_ALIASES, is_split_word, split_meanings

# `split` comes first: beside it, the others matter only if they contradict it.
SPLIT_KEYS = ("split", "set", "subset", "fold", "partition")
REMEDY = "name train, valid or test everywhere, or ignore the splits in the data with data.split=draw"
_TIGHT = re.compile(rf"(?<![\w-])({'|'.join(SPLIT_KEYS)})[=:]([^\s;,|\]\"']+)", re.IGNORECASE)
# With blanks or quotes around it, only a word that names a split counts, because headers are free text.
_LOOSE = re.compile(rf"(?<![\w-])({'|'.join(SPLIT_KEYS)})\s*[=:]\s*[\"']?([^\s;,|\]\"']+)", re.IGNORECASE)


def tags_of(header: str) -> dict[str, str]:
    """Tags of a header that may name a split, like {"split": "train"}; keys in lower case, values as written."""
    loose = {key.lower(): value for key, value in _LOOSE.findall(header) if is_split_word(value)}
    return loose | {key.lower(): value for key, value in _TIGHT.findall(header)}


def splits_of(said: Iterable[tuple[str, Mapping[str, str]]], what: str, remedy: str = REMEDY) -> list[str | None]:
    """The split of each record or row; all None if none names a split.

    Args:
        said: (where, tags) of each; `where` is file and line, tags are key -> value, and values may be empty.
        what: plural name of the records or rows.
        remedy: what to do if they are refused.

    Raises:
        InputError: some name a split and others do not, or a name is unknown, ambiguous or contradictory.
    """
    words: list[str | None] = []
    named: dict[str, str] = {}
    silent = None
    for where, tags in said:
        word = _word(tags, where, remedy) if tags else None
        words.append(word)
        if word is not None:
            named.setdefault(word, where)
        elif silent is None:
            silent = where
    meant = split_meanings(named, remedy)
    if named and silent is not None:
        count = sum(word is not None for word in words)
        word, where = next(iter(named.items()))
        raise InputError(
            f"{count:,} of {len(words):,} {what} name a split ({where}: {word}), but {len(words) - count:,} do not "
            f"({silent}); {remedy}"
        )
    return [None if word is None else meant[word] for word in words]


def _word(tags: Mapping[str, str], where: str, remedy: str) -> str | None:
    """The word for the split among the tags of one record or row; None if they are empty."""
    tags = {key: value for key, value in tags.items() if value}
    if not tags:
        return None
    words = {key: value for key, value in tags.items() if is_split_word(value)}
    if "split" not in tags and not words:
        key, value = next(iter(tags.items()))
        raise InputError(f"{where}: {key}={value} does not name a split; {remedy}")
    key = "split" if "split" in tags else next(iter(words))
    for other, value in words.items():
        if key in words and _meaning(value) != _meaning(tags[key]):
            raise InputError(f"{where}: {key}={tags[key]} and {other}={value} contradict each other; {remedy}")
    return tags[key]


def _meaning(word: str) -> str:
    return SPLIT_ALIASES.get(word.lower(), word.lower())
