"""Ordinary gzip to BGZF, which can be read at random positions."""

import gzip
import os
import zlib
from pathlib import Path

from Bio.bgzf import BgzfWriter

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import atomic_path
from mamba_bio_audio.pipelines.dna.fasta_scan import sniff

# Small, because BgzfWriter copies what it holds for every block of 65,536 bytes.
_PIECE_BYTES = 1 << 19


def is_ordinary_gzip(path: str | os.PathLike[str]) -> bool:
    """Is it gzip, but not BGZF?"""
    try:
        with open(path, "rb") as handle:
            head = handle.read(18)
    except OSError:
        return False
    return head[:2] == b"\x1f\x8b" and sniff(str(path), head) == "gzip"


def recompress(source: str | os.PathLike[str], target: Path) -> None:
    """Write the text of a gzip file as BGZF; whole or not at all.

    Raises:
        InputError: the gzip file is cut off or damaged.
    """
    try:
        with gzip.open(source, "rb") as text, atomic_path(target) as temporary:
            # Given no name, so that the bytes depend on the text alone.
            with open(temporary, "wb") as raw, BgzfWriter(fileobj=raw) as packed:
                while data := text.read(_PIECE_BYTES):
                    packed.write(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{source}: the gzip file is truncated or damaged ({error}). Fetch it again.") from error
    except RuntimeError as error:
        # A block that deflate makes longer: nothing written in a few letters.
        raise InputError(f"{source}: the gzip file holds no text. Give a FASTA file.") from error
