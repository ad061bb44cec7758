"""The class of a recording by the folders that it lies in."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.files import AudioFile
from mamba_bio_audio.pipelines.audio.splits import split_by_share
from mamba_bio_audio.pipelines.dna.class_tags import splits_of
from mamba_bio_audio.pipelines.spans import Span
from mamba_bio_audio.pipelines.split_names import SPLITS, is_split_word

REMEDY = (
    "Accepted: a folder per class; folders train, valid and test with a folder per class, or the other way round; or name "
    "the split of every file in data.intervals"
)


def class_and_tags(file: AudioFile) -> tuple[str, dict[str, str]]:
    """The class of a recording, its last folder that is not called after a split, and the splits its folders name."""
    folders = PurePosixPath(file.name).parent.parts
    words = [name for name in folders if is_split_word(name)]
    names = [name for name in folders if not is_split_word(name)]
    if words and not names:
        raise InputError(f"{file.path}: {words[-1]!r} is the name of a split, but no folder names a class. {REMEDY}")
    # Absolute: `t0.wav` and `../t0.wav` name no folder.
    name = names[-1] if words else os.path.basename(os.path.dirname(os.path.abspath(file.path)))
    return name, {f"folder {word}": word for word in words}


def known_classes(class_of: Mapping[str, str], wanted: Sequence[str] | None, key: str) -> tuple[str, ...]:
    """The classes in the order of their numbers.

    Args:
        class_of: class of each file.
        wanted: some of them in order; None is all, sorted.
        key: configuration key that names them, for messages.

    Raises:
        InputError: one has no recordings.
    """
    there = sorted(set(class_of.values()))
    for name in wanted or ():
        if name not in there:
            raise InputError(f"{key}: no folder {name!r} with recordings; there are {there}")
    return tuple(wanted or there)


def split_by_class(
    files: Iterable[AudioFile], sizes: Mapping[str, int], classes: Sequence[str], valid: float, test: float
) -> tuple[dict[str, list[Span]], str]:
    """The splits that folders name, and where they name none, draws for each class; and how they were made.

    Args:
        files: recordings; those of other classes belong to no split.
        sizes: samples of each file, by its name.
        classes: names of the classes.
        valid, test: shares of validation and test.

    Raises:
        InputError: only some folders name a split, or a name is contradictory.
    """
    found = [(file, *class_and_tags(file)) for file in files]
    class_of = {file.name: name for file, name, _ in found if name in classes}
    said = splits_of(((file.path, tags) for file, name, tags in found if name in classes), "recordings", REMEDY)
    splits = dict(zip(class_of, said, strict=True))
    given = any(said)
    drawn = {None} if not given else set() if valid == 0 or "valid" in said else {"train"}
    spans: dict[str, list[Span]] = {split: [] for split in SPLITS}
    for file, split in splits.items():
        if split is not None and split not in drawn:
            spans[split].append(Span(file, 0, sizes[file]))
    # Class by class, because in the order of names whole classes would be one split.
    for name in classes:
        own = [file for file, split in splits.items() if class_of[file] == name and split in drawn]
        if not own:
            continue
        made, how = split_by_share({file: sizes[file] for file in own}, valid, 0 if given else test)
        for split, some in made.items():
            spans[split] += some
    if given:
        return spans, "the folders" + (f"; {valid:.0%} of their train is validation, {how}" if drawn else "")
    return spans, f"{how}, class by class"
