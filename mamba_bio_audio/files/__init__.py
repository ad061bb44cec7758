"""Writing for the user: output is whole or absent, locked while it grows, and never replaces what others made.

| file | what |
|---|---|
| `atomic.py` | a file that appears whole or not at all |
| `locks.py` | one writer at a time; others are told who it is |
| `inside.py` | reading from a folder without following links out of it |
| `folders.py` | markers: which command made a folder, and replacing only what that command made |
| `tensors.py` | nested values with tensors in one file, without pickle (imports torch; not imported here) |
| `unfinished.py` | `OUT.part`: outputs that grow, and are continued with equal settings |
"""

from mamba_bio_audio.files.atomic import (
    atomic_path,
    check_folder,
    name_full_disk,
    read_json,
    to_json,
    write_json,
    write_text,
)
from mamba_bio_audio.files.folders import (
    MARKER,
    Maker,
    begins_with,
    check_file,
    check_out,
    check_outside,
    growing_folder,
    is_occupied,
    mark,
    new_folder,
    put_in_place,
    replacing,
    restore,
)
from mamba_bio_audio.files.inside import inside
from mamba_bio_audio.files.locks import locked
from mamba_bio_audio.files.unfinished import begin_unfinished, discard_unfinished, unfinished

__all__ = [
    "MARKER",
    "Maker",
    "atomic_path",
    "begin_unfinished",
    "begins_with",
    "check_file",
    "check_folder",
    "check_out",
    "check_outside",
    "discard_unfinished",
    "growing_folder",
    "inside",
    "is_occupied",
    "locked",
    "mark",
    "name_full_disk",
    "new_folder",
    "put_in_place",
    "read_json",
    "replacing",
    "restore",
    "to_json",
    "unfinished",
    "write_json",
    "write_text",
]
