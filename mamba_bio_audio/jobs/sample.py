"""New sequences, DNA as FASTA: streamed to disk, resumable, in constant memory."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import atomic_path, begins_with, check_file, locked, unfinished
from mamba_bio_audio.inference.generate import generate_blocks
from mamba_bio_audio.inference.row_files import RowFiles
from mamba_bio_audio.jobs.sample_audio import sample_audio
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.saved import Which
from mamba_bio_audio.signals import StopSignal
from mamba_bio_audio.text import printable

_LINE_BASES = 80
_OURS = begins_with(">sample_0 ")


def sample(
    run: Path,
    out: Path | None,
    *,
    length: int,
    num_samples: int = 1,
    which: Which = "best",
    device: str = "cpu",
    prompt: str | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch_size: int = 16,
    resume: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> str | None:
    """Sample from a run, new symbols only: DNA as FASTA, audio as WAV or FLAC (`jobs.sample_audio`).

    Without a prompt the first base is drawn from the composition of the training split in the manifest, and the header
    says so. The bases stream into the folder `OUT.part`, from which an interrupted or killed sampling goes on; `out`
    appears whole.

    Args:
        out: FASTA file, replaced where it exists; None is standard output, which cannot be resumed and gets each record as
            it is drawn. Audio: see there.
        prompt: bases, or an audio file.
        batch_size: records made at a time; does not change the result.
        resume: go on with what is in `OUT.part`, with the same settings; from the beginning where there is none. An
            `out` that is complete stays, and is refused where it was sampled with other options.
        force: discard an unfinished sampling.
        progress: called with (bases done, bases in all).

    Returns:
        Name of the signal that stopped it, None at the end.
    """
    part = None if out is None else unfinished(out)
    complete = out is not None and resume and out.exists() and part is not None and not part.exists()
    audio_file = out is not None and out.suffix.lower() in (".wav", ".flac")
    if out is not None and not out.is_dir() and not audio_file and not complete:
        check_file(out, "sample", _OURS, [run], force=force or resume)
    model = saved.load_language_model(run, which).to(device)
    if model.codec is None:
        raise InputError(f"{run}: weights without a codec cannot be sampled as DNA; use mba.generate")
    draws: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if model.codec.name == "audio":
        if out is None:
            raise InputError("audio is not written to standard output; give --out FILE.wav, FILE.flac or a folder")
        return sample_audio(
            model,
            run,
            out,
            which=which,
            weights=weights_hash(model),
            length=length,
            num_samples=num_samples,
            batch_size=batch_size,
            prompt=prompt,
            draws=draws,
            device=device,
            resume=resume,
            force=force,
            progress=progress,
        )
    if complete:
        assert out is not None
        check_complete(out, length=length, seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)
        return None
    if prompt is not None:
        model.codec.check_prompt(prompt)
    initial, start = None, f"prompt={prompt}"
    if prompt is None:
        composition = model.manifest.get("data", {}).get("composition")
        initial = None if composition is None else [composition[base] for base in "ACGT"]
        shares = composition or dict.fromkeys("ACGT", 0.25)
        origin = "training composition" if composition else "uniform, no composition in the manifest"
        start = f"first_base=drawn from {origin} " + " ".join(f"{b}:{p:.4f}" for b, p in shares.items())
    draws["initial"] = initial
    settings = draws | {
        "length": length,
        "num_samples": num_samples,
        "batch_size": batch_size,
        "prompt": prompt,
        "weights": weights_hash(model),
        "device": device,
    }
    if resume and out is None:
        raise InputError("--resume needs --out: what went to standard output cannot be continued")
    options = {"length": length, "num_samples": num_samples, "batch_size": batch_size, "prompt": prompt} | draws
    header = f"{_options(length, seed, temperature, top_k, top_p)} {start}"
    if out is None:
        return _stream(model, run, header, options, progress)
    with locked(out), StopSignal() as stop:
        rows = RowFiles(unfinished(out), settings, encode=lambda tokens: model.codec.decode(tokens).encode())
        rows.begin(resume=resume, force=force)
        log_likelihood = rows.sample(model, progress=progress, stop=lambda: stop.number is not None, **options)
        if log_likelihood is None:
            assert stop.number is not None
            return signal.Signals(stop.number).name
        # Again: hours may have gone by.
        check_file(out, "sample", _OURS, [run], force=True)
        with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for row, nats in enumerate(log_likelihood):
                stream.write(_header(row, f"{header} log_likelihood={nats:.6g}", run))
                with rows.path(row).open(encoding="ascii") as bases:
                    _write_lines(stream, iter(lambda: bases.read(_LINE_BASES * 1024), ""))
        rows.remove()
    return None


def _stream(
    model: Any, run: Path, header: str, options: dict[str, Any], progress: Callable[[int, int], None] | None
) -> str | None:
    """Sample to standard output, the first row of each batch as it is drawn; the others wait in unnamed files.

    The headers give no log-likelihood, which is known at the end of a row only.
    """
    length, num_samples, batch_size = options["length"], options["num_samples"], options["batch_size"]
    with ExitStack() as held, StopSignal() as stop:
        waiting: list[IO[bytes]] = []
        column = 0

        def flush_waiting(first: int) -> None:
            for row, file in enumerate(waiting, start=first):
                file.seek(0)
                sys.stdout.write(_header(row, header, run))
                _write_lines(sys.stdout, (data.decode() for data in iter(lambda: file.read(1 << 16), b"")))  # noqa: B023
                file.close()
            waiting.clear()

        for block in generate_blocks(model, **options):
            rows = min(batch_size, num_samples - block.row)
            if block.position == 0:
                sys.stdout.write(_header(block.row, header, run))
                waiting += [held.enter_context(tempfile.TemporaryFile()) for _ in range(rows - 1)]
                column = 0
            first, *others = (model.codec.decode(tokens) for tokens in block.tokens.numpy())
            column = _write_lines(sys.stdout, [first], column)
            for file, text in zip(waiting, others, strict=True):
                file.write(text.encode())
            done = block.position + block.tokens.shape[1]
            if progress is not None:
                progress(block.row * length + rows * done, num_samples * length)
            if done == length:
                if column:
                    sys.stdout.write("\n")
                flush_waiting(block.row + 1)
            sys.stdout.flush()
            if stop.number is not None:
                return signal.Signals(stop.number).name
    return None


def _header(row: int, options: str, run: Path) -> str:
    return f">sample_{row} {options} model={printable(run)}\n"


def check_complete(
    out: Path, *, length: int, seed: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Refuse to call a FASTA complete whose header does not say that it was sampled with these options.

    Raises:
        InputError: it does not.
    """
    with out.open("rb") as file:
        header = file.readline(4096).decode("utf-8", "replace")
    asked = _options(length, seed, temperature, top_k, top_p)
    if not header.startswith(">sample_0 length="):
        raise InputError(f"{out}: not made by mba sample; choose another --out")
    if not header.startswith(f">sample_0 {asked} "):
        made = header.removeprefix(">sample_0 ").split(" prompt=")[0].split(" first_base=")[0]
        raise InputError(f"{out}: complete, but sampled with {made}, not {asked}; choose another --out, or --force")


def _options(length: int, seed: int, temperature: float, top_k: int | None, top_p: float | None) -> str:
    """What a header says of the draws."""
    return f"length={length} seed={seed} temperature={temperature:g}" + "".join(
        f" {name}={value}" for name, value in (("top_k", top_k), ("top_p", top_p)) if value is not None
    )


def _write_lines(stream: IO[str], pieces: Iterable[str], column: int | None = None) -> int:
    """Write bases as lines of 80.

    Args:
        column: where the last piece ended, whose line goes on; None begins a record that ends with these pieces.

    Returns:
        The column at which the last line ended; 0 after a line end.
    """
    at = column or 0
    for piece in pieces:
        start = 0
        while start < len(piece):
            part = piece[start : start + _LINE_BASES - at]
            stream.write(part)
            start, at = start + len(part), at + len(part)
            if at == _LINE_BASES:
                stream.write("\n")
                at = 0
    if column is None and at:
        stream.write("\n")
        at = 0
    return at
