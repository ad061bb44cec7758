"""Sampled DNA as FASTA: the header of a record says how it was sampled."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from mamba_bio_audio.errors import InputError, OtherSettings
from mamba_bio_audio.files import atomic_path, begins_with, check_file
from mamba_bio_audio.pipelines.corpus import Ids
from mamba_bio_audio.pipelines.dna.prompts import Prompt, read_prompts
from mamba_bio_audio.pipelines.dna.records import LINE_BASES
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.sample_writer import Sampled, SampleRequest, SampleWriter
from mamba_bio_audio.text import printable

_OURS = begins_with(">sample_0 ")


class FastaWriter(SampleWriter):
    """New bases, with `keep_prompt` behind the prompt as the model read it: capital letters, N for every other letter.

    The header then gives the prompt's length, and `length` is that of the new bases. Without a prompt the first base is
    drawn from the composition of the training split in the manifest, and the header says so.
    """

    def __init__(self, request: SampleRequest) -> None:
        self.request, self.codec = request, DnaTokenizer()
        initial, self.begins = None, ""
        self.settings = {}
        # Text, or what reads a file.
        self.prompts: Sequence[str | Prompt] = request.prompts
        self.inputs: set[str] = set()
        if request.prompt_file is not None:
            found, files = read_prompts(request.prompt_file)
            self.prompts, self.inputs = found, {one.file for one in found}
            self.settings = {"prompt_file": request.prompt_file, "prompt_contents": files}
        elif request.prompts:
            for text in request.prompts:
                self.codec.check_prompt(text)
        else:
            composition = request.data.get("composition")
            initial = None if composition is None else [composition[base] for base in "ACGT"]
            shares = composition or dict.fromkeys("ACGT", 0.25)
            origin = "training composition" if composition else "uniform, no composition in the manifest"
            self.begins = f"first_base=drawn from {origin} " + " ".join(f"{b}:{p:.4f}" for b, p in shares.items())
        self.ids = [self.codec.encode(one) if isinstance(one, str) else one for one in self.prompts]
        prompt: Any = request.prompts[0] if request.prompts else None
        if request.prompt_file is not None or len(self.prompts) > 1:
            self.num_samples = len(self.prompts) * request.num_samples
            # The rows of one prompt share the object, and so its state.
            prompt = [self._prompt(row) for row in range(self.num_samples)]
        self.start = {"prompt": prompt, "initial": initial}
        self.settings |= {"initial": initial}
        draws = request.draws
        self.options = (
            f"length={request.length or 'inf'} seed={draws['seed']} temperature={draws['temperature']:g}"
            + "".join(
                f" {name}={draws[name]}" for name in ("top_k", "top_p", "min_p", "hold") if draws.get(name) is not None
            )
            + ("" if draws.get("precision", "fp32") == "fp32" else f" precision={draws['precision']}")
            + ("" if draws.get("best_of", 1) == 1 else f" best_of={draws['best_of']}")
            + ("" if draws.get("usual_bits") is None else f" usual_bits={draws['usual_bits']:g}")
        )

    def _prompt(self, row: int) -> str | Prompt:
        return self.prompts[row // self.request.num_samples]

    def kept(self, row: int) -> Any:
        """The bases of a prompt that is kept."""
        return self.ids[row // self.request.num_samples] if self.request.keep_prompt else ()

    def encode(self, tokens: Ids, row: int = 0) -> bytes:
        """Letters."""
        return self.codec.decode(tokens).encode()

    @property
    def _out(self) -> Path:
        assert self.request.out is not None
        return self.request.out

    def check_target(self, *, replace: bool) -> None:
        """Only a FASTA of samples is replaced."""
        inputs: list[Path | str] = [self.request.run, *sorted(self.inputs)]
        check_file(self._out, "sample", _OURS, inputs, force=replace)

    def check_complete(self, settings: Mapping[str, Any]) -> None:
        """The header of the first record names the options."""
        self.check_target(replace=True)
        with self._out.open("rb") as file:
            header = file.readline(4096).decode("utf-8", "replace")
        if not header.startswith(">sample_0 length="):
            raise InputError(f"{self._out}: not made by mba sample; choose another --out")
        # What follows the options, so that none that this command lacks stands between.
        asked = self._options(0)
        if not header.startswith(tuple(f">sample_0 {asked} {begins}=" for begins in ("prompt", "first_base"))):
            made = header.removeprefix(">sample_0 ").split(" prompt=")[0].split(" first_base=")[0]
            before, wanted = (
                dict(field.split("=", 1) for field in text.split() if "=" in field) for text in (made, asked)
            )
            raise OtherSettings(
                f"{self._out}: complete, but sampled with {made}, not {asked}; choose another --out, or --force",
                before,
                [name for name in before | wanted if before.get(name) != wanted.get(name)],
            )

    def finish(self, sampled: Sampled, work: Path) -> str:
        """One FASTA file."""
        with atomic_path(self._out) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for row, (path, nats) in enumerate(zip(sampled.rows, sampled.log_likelihood, strict=True)):
                stream.write(self._header(row, f" log_likelihood={nats:.6g} path={sampled.settings['path']}"))
                with path.open(encoding="ascii") as bases:
                    write_lines(stream, iter(lambda: bases.read(LINE_BASES * 1024), ""))
        count = len(sampled.rows)
        behind = f" behind {'their prompts' if len(self.prompts) > 1 else 'the prompt'}" * self.request.keep_prompt
        return f"{count:,} sample{'s' * (count != 1)} of {sampled.length:,} bases{behind}"

    def stream(self, blocks: Iterable[Any], to: IO[str]) -> Iterator[Any]:
        """The first row of each batch as it is drawn; the others wait in unnamed files.

        Headers give no log-likelihood, which is known only at the end of a row.
        """
        with ExitStack() as held:
            waiting: list[IO[bytes]] = []
            column = 0
            for block in blocks:
                if block.position == 0:
                    to.write(self._header(block.row))
                    waiting = [held.enter_context(tempfile.TemporaryFile()) for _ in block.tokens[1:]]
                    for row, file in enumerate(waiting, start=block.row + 1):
                        file.writelines(self.kept_bytes(row))
                    column = write_lines(to, (piece.decode() for piece in self.kept_bytes(block.row)), 0)
                first, *others = (self.codec.decode(tokens) for tokens in block.tokens.numpy())
                column = write_lines(to, [first], column)
                for file, text in zip(waiting, others, strict=True):
                    file.write(text.encode())
                if block.position + block.tokens.shape[1] == self.request.length:
                    if column:
                        to.write("\n")
                    for row, file in enumerate(waiting, start=block.row + 1):
                        file.seek(0)
                        to.write(self._header(row))
                        write_lines(to, (data.decode() for data in iter(lambda: file.read(1 << 16), b"")))  # noqa: B023
                        file.close()
                to.flush()
                try:
                    yield block
                except GeneratorExit:
                    # Stopped within a record.
                    if column:
                        to.write("\n")
                        to.flush()
                    raise

    def _options(self, row: int) -> str:
        return self.options + (f" kept_prompt={len(self.kept(row))}" if self.request.keep_prompt else "")

    def _header(self, row: int, more: str = "") -> str:
        begins = self.begins
        if self.prompts:
            prompt = self._prompt(row)
            begins = f"prompt={prompt if isinstance(prompt, str) else printable(prompt.name)}"
        return f">sample_{row} {self._options(row)} {begins}{more} model={printable(self.request.run)}\n"


def kept_prompt(header: str) -> int:
    """Bases of a sample's record that were its prompt, by the header."""
    found = re.match(r"sample_\d+(?: (?!prompt=|first_base=)\w+=\S+)*? kept_prompt=(\d+) prompt=", header)
    return int(found[1]) if found else 0


def write_lines(stream: IO[str], pieces: Iterable[str], column: int | None = None) -> int:
    """Write bases as lines of 80.

    Args:
        column: where the last piece ended, whose line is continued; None begins a record that ends with these pieces.

    Returns:
        The column at which the last line ended; 0 after a line end.
    """
    at = column or 0
    for piece in pieces:
        start = 0
        while start < len(piece):
            part = piece[start : start + LINE_BASES - at]
            stream.write(part)
            start, at = start + len(part), at + len(part)
            if at == LINE_BASES:
                stream.write("\n")
                at = 0
    if column is None and at:
        stream.write("\n")
        at = 0
    return at
