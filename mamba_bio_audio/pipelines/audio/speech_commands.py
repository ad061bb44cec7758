"""Speech Commands (Warden 2018): its releases, and the digits of one copied from its archive."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.archives import tar_members

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# A clip of one second has 32 kB, a list of splits 400 kB.
_MAX_MEMBER_BYTES = 64 << 20
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}


class SpeechCommands(NamedTuple):
    """A release of Speech Commands (Warden 2018): its address, size and hash, and the number of digits that it must hold."""

    url: str
    size_bytes: int
    sha256: str
    clips: dict[str, int]  # per split


SPEECH_COMMANDS = {
    "v0.02": SpeechCommands(
        "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        2_428_923_189,
        "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        {"train": 31_158, "valid": 3_643, "test": 4_107},
    ),
    "v0.01": SpeechCommands(
        "http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz",
        1_489_096_277,
        "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
        {"train": 18_620, "valid": 2_494, "test": 2_552},
    ),
}


def copy_digits(source: Path, folder: Path, max_unpacked_bytes: int) -> dict[str, str]:
    """Copy the digits' clips; returns the official lists, by split."""

    def wanted(name: str) -> bool:
        parts = name.removeprefix("./").split("/")
        return len(parts) == 2 and parts[0] in DIGITS and parts[1].endswith(".wav") and not parts[1].startswith(".")

    def decoded(data: bytes, name: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise InputError(f"{source}: {name} is not UTF-8 text; use the whole release") from None

    lists: dict[str, str] = {}
    for word in DIGITS:
        (folder / word).mkdir()
    if source.is_dir():
        for path in source.glob("*/*.wav"):
            name = path.relative_to(source).as_posix()
            if wanted(name):
                shutil.copyfile(path, folder / name)
        lists = {
            split: decoded((source / name).read_bytes(), name)
            for split, name in LISTS.items()
            if (source / name).is_file()
        }
    elif source.is_file():
        for name, size, stream in tar_members(source, max_unpacked_bytes):
            split = next((split for split, listed in LISTS.items() if listed == name), None)
            if not (split or wanted(name)):
                continue
            if size > _MAX_MEMBER_BYTES:
                raise InputError(
                    f"{source}: {name} has {size:,} bytes, so this is not Speech Commands; download it again"
                )
            if split:
                lists[split] = decoded(stream.read(), name)
            else:
                (folder / name).write_bytes(stream.read())
    else:
        raise InputError(f"{source}: no such file or folder; correct the path")
    for split, name in LISTS.items():
        if split not in lists:
            raise InputError(f"{source}: {name}, which the official split needs, is missing; use the whole release")
    return lists
