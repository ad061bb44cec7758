"""Prompts of any length from files of sequence, read piece by piece."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.spans import Span

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.corpus import Ids
    from mamba_bio_audio.pipelines.dna.genome import Genome


class Prompt:
    """Token ids of a record or a part of one, read from disk as they are asked for.

    Attributes:
        file: where it is read from.
        name: `record:start-end`, 1-based with the end included.
    """

    def __init__(self, genome: Genome, span: Span) -> None:
        self.genome, self.span = genome, span
        self.file = genome.paths[0]
        self.name = f"{span.record}:{span.start + 1}-{span.end}"

    def __len__(self) -> int:
        return self.span.end - self.span.start

    def __getitem__(self, piece: slice) -> Ids:
        low, high, _ = piece.indices(len(self))
        return self.genome.fetch(self.span.record, self.span.start + low, self.span.start + max(low, high))


def read_prompts(given: str) -> tuple[list[Prompt], list[dict[str, Any]]]:
    """Prompts of `FILE[:RECORD[:START-END]]`, FASTA or 2bit; a file without a record gives each of its records.

    Args:
        given: as the user wrote it. START and END count from 1, with the end included.

    Returns:
        Prompts in the order of the file, and name and SHA-256 of the file.

    Raises:
        InputError: there is no such file, record or region.
    """
    from mamba_bio_audio.pipelines.dna.genome import Genome
    from mamba_bio_audio.pipelines.dna.intervals import region

    path, within = _split(given)
    genome = Genome(path)
    try:
        spans = [Span(record, 0, length) for record, length in genome.records.items()]
        if within is not None:
            spans = [region(within, genome)]
    except InputError as error:
        raise InputError(f"--prompt-file {given}: {error}") from None
    return [Prompt(genome, span) for span in spans], list(genome.contents())


def _split(given: str) -> tuple[str, str | None]:
    """File and what follows it; names of files and records may contain colons, so the longest name that exists wins."""
    at = len(given)
    while at > 0:
        if os.path.isfile(given[:at]):
            return given[:at], given[at + 1 :] or None
        at = given.rfind(":", 0, at)
    raise InputError(f"--prompt-file {given}: there is no such file; give FILE, FILE:RECORD or FILE:RECORD:START-END")
