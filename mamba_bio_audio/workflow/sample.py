"""New sequences as FASTA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from mamba_bio_audio import checkpoint
from mamba_bio_audio.checkpoint import Which
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference.generate import generate_blocks


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
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Sample DNA from a run as FASTA, new bases only.

    Without a prompt the first base is drawn from the composition of the training split in the manifest, and the
    header says so. Everything is checked before `out` is opened; each record is written when it is whole, so an
    interrupt leaves whole records.

    Args:
        out: FASTA file, replaced where it exists; None is standard output.
        batch_size: records made at a time; does not change the result.
        progress: called with (bases done, bases in all).
    """
    model = checkpoint.load(run, which).to(device)
    if model.codec is None:
        raise InputError(f"{run}: weights without a codec cannot be sampled as DNA; use mba.generate")
    if model.codec.name != "dna":
        raise InputError(f"{run}: a model of audio; mba sample writes DNA, use mba.generate for its levels")
    if prompt is not None:
        unknown = next((i for i, letter in enumerate(prompt) if letter not in "ACGTNacgtn"), None)
        if unknown is not None or not prompt:
            where = "is empty" if not prompt else f"has {prompt[unknown]!r} at position {unknown}"  # type: ignore
            raise InputError(f"--prompt {where}; write it in A, C, G, T and N")
    initial, start = None, f"prompt={prompt}"
    if prompt is None:
        composition = model.manifest.get("data", {}).get("composition")
        initial = None if composition is None else [composition[base] for base in "ACGT"]
        shares = composition or dict.fromkeys("ACGT", 0.25)
        origin = "training composition" if composition else "uniform, no composition in the manifest"
        start = f"first_base=drawn from {origin} " + " ".join(f"{b}:{p:.4f}" for b, p in shares.items())
    settings = f"seed={seed} temperature={temperature:g}" + "".join(
        f" {name}={value}" for name, value in (("top_k", top_k), ("top_p", top_p)) if value is not None
    )
    blocks = generate_blocks(
        model,
        length=length,
        num_samples=num_samples,
        prompt=prompt,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        initial=initial,
        batch_size=batch_size,
    )
    rows: list[list[np.ndarray]] = []
    nats: list[float] = []
    done = 0
    with nullcontext(sys.stdout) if out is None else out.open("w", encoding="ascii") as stream:
        for block in blocks:
            if block.position == 0:
                rows = [[] for _ in block.tokens]
                nats = [0.0] * len(rows)
            for i, tokens in enumerate(block.tokens.numpy()):
                rows[i].append(tokens)
                nats[i] += float(block.log_likelihood[i].sum())
            done += block.tokens.numel()
            if progress is not None:
                progress(done, num_samples * length)
            if block.position + block.tokens.shape[1] < length:
                continue
            for i, pieces in enumerate(rows):
                sequence = model.codec.decode(np.concatenate(pieces))
                stream.write(
                    f">sample_{block.row + i} length={length} {settings} {start} "
                    f"log_likelihood={nats[i]:.6g} model={run}\n"
                )
                stream.writelines(sequence[at : at + 80] + "\n" for at in range(0, length, 80))
            stream.flush()
