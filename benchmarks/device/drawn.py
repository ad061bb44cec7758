"""Pieces of one or more settings, as `mba sample` draws them, all in one batch: for a setting that a fit is about to choose.

    python3 benchmarks/device/drawn.py RUN T:TOP_P:MIN_P:HOLD... --clips 10 --best-of 8 --seed 22 --out FILE.npz
    python3 benchmarks/device/drawn.py FILE.npz --kept T:TOP_P:MIN_P:HOLD --best-of 8 --usual-bits B --run RUN --out FOLDER

The first generates and keeps levels and the log-likelihood of eighths. The second writes the clips that `mba sample --best-of`
would have kept, for `clips.py`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("cells", nargs="*")
    parser.add_argument("--kept")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--best-of", type=int, default=8)
    parser.add_argument("--usual-bits", type=float)
    parser.add_argument("--seed", type=int, default=22)
    parser.add_argument("--length", type=int, default=160_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    (choose if options.kept else draw)(options)


def draw(options: argparse.Namespace) -> None:
    import torch

    import mamba_bio_audio as mba
    from mamba_bio_audio.evaluation.sampling import Cell, pieces
    from mamba_bio_audio.inference.best import least, stray

    model = mba.load(options.source).to("cuda" if torch.cuda.is_available() else "cpu")
    cells = [Cell(*map(float, cell.split(":"))) for cell in options.cells]
    made, along = pieces(
        model,
        cells,
        length=options.length,
        each=options.clips * options.best_of,
        seed=options.seed,
        valid_nats=model.manifest["result"]["valid_nats"],
    )
    kept = {}
    for name, own, nats in zip(options.cells, made, along, strict=True):
        kept[f"{name} along"] = nats
        # Whatever of them will be asked for: those that stray least from bits within 0.06 of the median.
        usual = np.median(-nats.sum(1) / options.length)
        rows = {
            row
            for off in np.arange(-0.06, 0.065, 0.01) * math.log(2)
            for k in {options.best_of, max(1, options.best_of // 2)}
            for row in least(stray(nats[: options.clips * k], options.length, usual + off), k)
        }
        kept |= {f"{name} {row}": own[row].astype(np.uint8) for row in rows}
    np.savez_compressed(options.out, **kept)


def choose(options: argparse.Namespace) -> None:
    import soundfile

    import mamba_bio_audio as mba
    from mamba_bio_audio.inference.best import least, stray
    from mamba_bio_audio.pipelines.audio.wav import pcm

    codec = mba.load(options.run).codec
    kept = np.load(options.source)
    along = kept[f"{options.kept} along"][: options.clips * options.best_of]
    options.out.mkdir(parents=True)
    for clip, row in enumerate(least(stray(along, options.length, options.usual_bits * math.log(2)), options.best_of)):
        audio = np.frombuffer(pcm(codec.decode(kept[f"{options.kept} {row}"])), "<i2")
        soundfile.write(options.out / f"sample-{clip:05d}.flac", audio, codec.sample_rate_hz, subtype="PCM_16")
        print(clip, row)


if __name__ == "__main__":
    main()
