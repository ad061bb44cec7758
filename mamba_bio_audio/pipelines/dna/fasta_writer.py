"""Sampled DNA as FASTA: the header of a record says how it was sampled."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import atomic_path, begins_with, check_file
from mamba_bio_audio.pipelines.corpus import Ids
from mamba_bio_audio.pipelines.dna.prompts import Prompt, read_prompts
from mamba_bio_audio.pipelines.dna.records import LINE_BASES
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.sample_writer import Sampled, SampleRequest, SampleWriter
from mamba_bio_audio.text import printable

_OURS = begins_with(">sample_0 ")


class FastaWriter(SampleWriter):
    """New bases only, without the prompt.

    Without a prompt the first base is drawn from the composition of the training split in the manifest, and the header says
    so.
    """

    def __init__(self, request: SampleRequest) -> None:
        self.request, self.codec = request, DnaTokenizer()
        initial, begins = None, f"prompt={request.prompt}"
        prompt: Any = request.prompt
        self.settings = {}
        self.prompts: list[Prompt] = []
        if request.prompt_file is not None:
            self.prompts, files = read_prompts(request.prompt_file)
            self.num_samples = len(self.prompts) * request.num_samples
            # The rows of one prompt share the object, and so its state.
            prompt = [one for one in self.prompts for _ in range(request.num_samples)]
            self.settings = {"prompt_file": request.prompt_file, "prompt_contents": files}
        elif request.prompt is not None:
            self.codec.check_prompt(request.prompt)
        else:
            composition = request.data.get("composition")
            initial = None if composition is None else [composition[base] for base in "ACGT"]
            shares = composition or dict.fromkeys("ACGT", 0.25)
            origin = "training composition" if composition else "uniform, no composition in the manifest"
            begins = f"first_base=drawn from {origin} " + " ".join(f"{b}:{p:.4f}" for b, p in shares.items())
        self.start = {"prompt": prompt, "initial": initial}
        self.settings |= {"initial": initial}
        draws = request.draws
        self.options = (
            f"length={request.length or 'inf'} seed={draws['seed']} temperature={draws['temperature']:g}"
            + "".join(f" {name}={draws[name]}" for name in ("top_k", "top_p") if draws[name] is not None)
            + ("" if draws.get("precision", "fp32") == "fp32" else f" precision={draws['precision']}")
        )
        self.begins = begins

    def encode(self, tokens: Ids) -> bytes:
        """Letters."""
        return self.codec.decode(tokens).encode()

    @property
    def _out(self) -> Path:
        assert self.request.out is not None
        return self.request.out

    def check_target(self, *, replace: bool) -> None:
        """Only a FASTA of samples is replaced."""
        inputs: list[Path | str] = [self.request.run, *sorted({one.file for one in self.prompts})]
        check_file(self._out, "sample", _OURS, inputs, force=replace)

    def check_complete(self, settings: Mapping[str, Any]) -> None:
        """The header of the first record names the options."""
        self.check_target(replace=True)
        with self._out.open("rb") as file:
            header = file.readline(4096).decode("utf-8", "replace")
        if not header.startswith(">sample_0 length="):
            raise InputError(f"{self._out}: not made by mba sample; choose another --out")
        # What follows the options, so that none that this command lacks stands between.
        if not header.startswith(tuple(f">sample_0 {self.options} {begins}=" for begins in ("prompt", "first_base"))):
            made = header.removeprefix(">sample_0 ").split(" prompt=")[0].split(" first_base=")[0]
            raise InputError(
                f"{self._out}: complete, but sampled with {made}, not {self.options}; choose another --out, or --force"
            )

    def finish(self, sampled: Sampled, work: Path) -> str:
        """One FASTA file."""
        with atomic_path(self._out) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for row, (path, nats) in enumerate(zip(sampled.rows, sampled.log_likelihood, strict=True)):
                stream.write(self._header(row, f" log_likelihood={nats:.6g} path={sampled.settings['path']}"))
                with path.open(encoding="ascii") as bases:
                    write_lines(stream, iter(lambda: bases.read(LINE_BASES * 1024), ""))
        count = len(sampled.rows)
        return f"{count:,} sample{'s' * (count != 1)} of {sampled.length:,} bases"

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
                    column = 0
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

    def _header(self, row: int, more: str = "") -> str:
        begins = self.begins
        if self.prompts:
            begins = f"prompt={printable(self.prompts[row // self.request.num_samples].name)}"
        return f">sample_{row} {self.options} {begins}{more} model={printable(self.request.run)}\n"


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
