"""New sequences, DNA as FASTA: streamed to disk, resumable, in constant memory."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any

from mamba_bio_audio import checkpoint
from mamba_bio_audio.checkpoint import Which
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import atomic_path
from mamba_bio_audio.inference.row_files import RowFiles
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.text import printable
from mamba_bio_audio.training.signals import StopSignal
from mamba_bio_audio.workflow.sample_audio import sample_audio

_LINE_BASES = 80


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
    """Sample from a run, new symbols only: DNA as FASTA, audio as WAV or FLAC (`workflow.sample_audio`).

    Without a prompt the first base is drawn from the composition of the training split in the manifest, and the header
    says so. The bases stream into the folder `OUT.part`, from which an interrupted or killed sampling goes on; `out`
    appears whole.

    Args:
        out: FASTA file, replaced where it exists; None is standard output, which cannot be resumed. Audio: see there.
        prompt: bases, or an audio file.
        batch_size: records made at a time; does not change the result.
        resume: go on with what is in `OUT.part`, with the same settings; from the beginning where there is none. An
            `out` that is complete stays, and is refused where it was sampled with other options.
        force: discard an unfinished sampling.
        progress: called with (bases done, bases in all).

    Returns:
        Name of the signal that stopped it, None at the end.
    """
    model = checkpoint.load_language_model(run, which).to(device)
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
    if resume and out is not None and out.exists() and not unfinished(out).exists():
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
    with StopSignal() as stop, nullcontext() if out is not None else tempfile.TemporaryDirectory() as folder:
        place = unfinished(out) if out is not None else Path(str(folder)) / "rows"
        rows = RowFiles(place, settings, encode=lambda tokens: model.codec.decode(tokens).encode())
        rows.begin(resume=resume, force=force)
        log_likelihood = rows.sample(
            model,
            length=length,
            num_samples=num_samples,
            batch_size=batch_size,
            prompt=prompt,
            progress=progress,
            stop=lambda: stop.number is not None,
            **draws,
        )
        if log_likelihood is None:
            assert stop.number is not None
            return signal.Signals(stop.number).name
        options = _options(length, seed, temperature, top_k, top_p)
        with nullcontext() if out is None else atomic_path(out) as temporary, _open(temporary) as stream:
            for row, nats in enumerate(log_likelihood):
                stream.write(f">sample_{row} {options} {start} log_likelihood={nats:.6g} model={printable(run)}\n")
                stream.writelines(_lines(rows.path(row)))
            stream.flush()
        rows.remove()
    return None


def check_complete(
    out: Path, *, length: int, seed: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """Refuse to call a FASTA complete whose header says that it was sampled with other options.

    Raises:
        InputError: it does.
    """
    if not out.is_file():
        return
    with out.open("rb") as file:
        header = file.readline(4096).decode("utf-8", "replace")
    asked = _options(length, seed, temperature, top_k, top_p)
    if header.startswith(">sample_0 length=") and not header.startswith(f">sample_0 {asked} "):
        made = header.removeprefix(">sample_0 ").split(" prompt=")[0].split(" first_base=")[0]
        raise InputError(f"{out}: complete, but sampled with {made}, not {asked}; choose another --out, or --force")


def _options(length: int, seed: int, temperature: float, top_k: int | None, top_p: float | None) -> str:
    """What a header says of the draws."""
    return f"length={length} seed={seed} temperature={temperature:g}" + "".join(
        f" {name}={value}" for name, value in (("top_k", top_k), ("top_p", top_p)) if value is not None
    )


def unfinished(out: Path) -> Path:
    """Folder in which the samples of `out` grow until they are whole."""
    return out.with_name(f"{out.name}.part")


def _open(path: Path | None) -> AbstractContextManager[IO[str]]:
    return nullcontext(sys.stdout) if path is None else path.open("w", encoding="utf-8")


def _lines(path: Path) -> Iterator[str]:
    """A row's bases as FASTA lines."""
    with path.open(encoding="ascii") as file:
        while piece := file.read(_LINE_BASES):
            yield piece + "\n"
