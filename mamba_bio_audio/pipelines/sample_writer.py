"""What writes the samples of a domain: text, recordings; the job `mba sample` knows neither."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, NamedTuple

from mamba_bio_audio.errors import InputError

_PIECE = 1 << 18

# Domains are defined without numpy.
if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.corpus import Ids


class SampleRequest(NamedTuple):
    """A request for samples.

    Attributes:
        run: the run that they are sampled from; an input, so it is not replaced.
        out: where they go; None is standard output.
        length: symbols of each, without the prompt; None goes on until it is stopped.
        num_samples: how many, of each prompt.
        prompts: as the user gave them; none without.
        draws: temperature, top_k, top_p, min_p, hold, seed, precision, best_of, usual_bits.
        config: data section of the run.
        data: what the run's manifest says of its data.
        prompt_file: file or part of one that holds prompts, as the user gave it; instead of `prompts`.
        classes: class of each sample of a prompt; empty where none is asked for.
        keep_prompt: each sample is written behind its prompt.
    """

    run: Path
    out: Path | None
    length: int | None
    num_samples: int
    prompts: Sequence[str]
    draws: Mapping[str, Any]
    config: Any
    data: Mapping[str, Any]
    prompt_file: str | None = None
    classes: Sequence[str] = ()
    keep_prompt: bool = False


class Sampled(NamedTuple):
    """Samples that are complete, row by row.

    Attributes:
        rows: files of the rows, as `SampleWriter.encode` and `header` made them.
        length: new symbols of each.
        log_likelihood: log-likelihood of each row's new symbols, nats.
        settings: everything that decided the samples.
        which: the weights, in words.
        symbols_per_second: over all rows; None where there was too little to measure.
        environment: versions and device.
    """

    rows: Sequence[Path]
    length: int
    log_likelihood: Sequence[float]
    settings: Mapping[str, Any]
    which: str
    symbols_per_second: float | None
    environment: Mapping[str, Any]


class RowForm(ABC):
    """Layout of a growing row of symbols on disk (`inference/row_files.py`).

    Attributes:
        suffix: suffix of the files, without a dot.
        symbol_bytes: bytes per symbol.
    """

    suffix: ClassVar[str] = "txt"
    symbol_bytes: ClassVar[int] = 1

    @abstractmethod
    def encode(self, tokens: Ids, row: int = 0) -> bytes:
        """Bytes of symbols (n,) of a row, `symbol_bytes` for each."""

    def kept(self, row: int) -> Any:
        """Symbols that a row's file holds before the new ones, as its kept prompt: an array, or read in slices from disk."""
        return ()

    def kept_bytes(self, row: int) -> Iterator[bytes]:
        """Those symbols as bytes, piece by piece."""
        symbols = self.kept(row)
        for low in range(0, len(symbols), _PIECE):
            yield self.encode(symbols[low : low + _PIECE], row)

    def header(self, symbols: int) -> bytes:
        """First bytes of a file of so many symbols, always equally many.

        Rewritten after every block, so that a killed run leaves files that other programs can read.
        """
        return b""


class SampleWriter(RowForm):
    """Writes the samples of a domain to files.

    The job owns the lock, the growing rows in `OUT.part`, resuming and signals. The writer says how token ids become bytes,
    what may be replaced, and what the finished output looks like. It is made after the request was checked, and raises
    `InputError` for what it cannot write.

    Attributes:
        start: options of `generate_blocks` for how rows begin: `prompt`, and optionally `initial`.
        num_samples: rows in all, where there are several prompts; None is as many as were asked for.
        classes: class of each row; empty where none is asked for.
        most: new symbols that a file holds, at which endless sampling stops; None where it goes to standard output only.
        settings: what decides the samples besides the request and the weights; equal settings may be resumed.
        remarks: what seems wrong with prompts that can be read, a line each.
    """

    start: Mapping[str, Any]
    settings: Mapping[str, Any]
    num_samples: int | None = None
    classes: Sequence[str] = ()
    most: int | None = None

    @property
    def remarks(self) -> Sequence[str]:
        """None, unless a domain knows better."""
        return ()

    @abstractmethod
    def check_target(self, *, replace: bool) -> None:
        """Refuse to write over anything but samples.

        Args:
            replace: earlier samples may be replaced.

        Raises:
            InputError: something else is in the place of the output, or earlier samples that may not be replaced.
        """

    @abstractmethod
    def check_complete(self, settings: Mapping[str, Any]) -> None:
        """Refuse to call an output complete that was sampled with other settings, as far as it records them.

        Raises:
            InputError: it was.
        """

    @abstractmethod
    def finish(self, sampled: Sampled, work: Path) -> str:
        """Write the output, which appears whole.

        Args:
            sampled: rows and what is known of them.
            work: folder on the same disk for what is half made.

        Returns:
            What was written, for people.
        """

    def stream(self, blocks: Iterable[Any], to: IO[str]) -> Iterator[Any]:
        """Write samples to standard output as they are drawn.

        Args:
            blocks: of `inference.blocks.Block`.
            to: text stream; bytes go to its `buffer`.

        Yields:
            Each block, once it has been written.

        Raises:
            InputError: this domain's samples cannot be written there.
        """
        raise InputError("these samples cannot be written to standard output; give --out FILE")
