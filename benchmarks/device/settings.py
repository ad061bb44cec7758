"""Many ways to draw from a run of audio, all in one batch: who is inside the range of held-out recordings, clip by clip.

    python3 benchmarks/device/settings.py RUN CELL... --seconds 90 --out FOLDER

CELL is T:P, and after it, separated by commas: to=T2 (the temperature falls or rises to T2 over a clip), min=M (symbols of
less than M times the largest probability are dropped), hold=G and over=S (the temperature is multiplied by (b0 / b)^G, where
b are the clip's own bits at temperature 1, averaged over about S seconds, and b0 validation's). Every cell draws from the same
uniform numbers, rows 0 to --clips - 1 of --seed, in fp32, as `mba sample --seed` does. Where --seconds are over, pieces are as
long as was reached. With --kernel cells of T:P alone are drawn one after the other, by the fastest path.

Printed: inside of level, flatness, clicks, onsets, entropy and of all; medians; own bits of each second; then shares of the
best of two and four rows by own bits: of the whole, from validation's or from the median of the cell, and of eighths from that
median. FOLDER/RUN.csv has a row a clip: cell, row, own bits of each second, the five measures of the whole piece, and inside;
FOLDER/RUN.npz the levels of --keep cells.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mamba_bio_audio as mba
from mamba_bio_audio.inference import cpu_decoder
from mamba_bio_audio.inference.decoding import GraphSteps
from mamba_bio_audio.inference.generate import generate_blocks, inverse, tempered, truncated
from mamba_bio_audio.inference.uniforms import uniforms
from mamba_bio_audio.pipelines.audio import measures, samples
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run.described import read_config

BEGAN = time.monotonic()
BLOCK = 1024


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:.0f} s] {text}", flush=True)


def parsed(cell: str) -> dict[str, float]:
    base, *rest = cell.split(",")
    temperature, top_p = map(float, base.split(":"))
    found = {"t": temperature, "to": temperature, "p": top_p, "min": 0.0, "hold": 0.0, "over": 1.0}
    found |= {name: float(value) for name, value in (part.split("=") for part in rest)}
    if len(found) > 6:
        raise SystemExit(f"{cell}: choose of to=, min=, hold=, over=")
    return found


class Draw:
    """Draws symbols (R,) from logits (R, V), each row in its own way."""

    def __init__(self, allowed: Any, rows: list[dict[str, float]], length: int, rate: int, nats: float, device: Any):
        self.allowed, self.length = torch.tensor(allowed, device=device), length

        def column(name: str) -> Any:
            return torch.tensor([[row[name]] for row in rows], dtype=torch.float64, device=device)

        self.first, self.last, self.least, self.gain = map(column, ("t", "to", "min", "hold"))
        # Sorting takes longer than all else here.
        self.top_p = column("p") if any(row["p"] < 1 for row in rows) else None
        self.slow = 1 / (column("over") * rate)
        self.wanted, self.own = nats, torch.full_like(self.first, nats)
        self.at = torch.zeros((), dtype=torch.float64, device=device)

    def begin(self, at: int) -> None:
        self.own.fill_(self.wanted)
        self.at.fill_(at)

    def __call__(self, logits: Any, draws: Any) -> Any:
        logits = logits.index_select(1, self.allowed).double()
        log_p = logits.log_softmax(1)
        temperature = self.first + (self.last - self.first) * (self.at / self.length)
        temperature = temperature * (self.wanted / self.own).pow(self.gain).clamp(0.75, 1.3)
        p = tempered(logits, temperature)
        p = p.masked_fill(p < self.least * p.amax(1, keepdim=True), 0)
        index = inverse(truncated(p, top_p=self.top_p), draws)
        score = log_p.gather(1, index[:, None])
        self.own.copy_(torch.lerp(self.own, -score, self.slow).clamp(min=0.05))
        self.at.add_(1)
        return self.allowed[index], score[:, 0]


def made(model: Any, cells: list[dict[str, float]], clips: int, seed: int, length: int, nats: float, end: float) -> Any:
    """Levels and bits (cells, clips, n); n is `length` or what there was time for."""
    device = next(model.parameters()).device
    rate = model.codec.sample_rate_hz
    rows = [cell for cell in cells for _ in range(clips)]
    draw = Draw(model.codec.sample_ids, rows, length, rate, nats, device)
    advance: Any = GraphSteps(model, draw)
    if device.type == "cpu":
        advance = cpu_decoder.CpuDecoder(model, len(rows), draw.allowed, choose=draw)
    levels, bits = np.empty((len(rows), length), np.uint8), np.empty((len(rows), length), np.float16)

    def numbers(low: int, size: int) -> Any:
        found = torch.from_numpy(uniforms(seed, range(clips), low, size)).T.repeat(1, len(cells))
        return found.to(device).contiguous()

    model.eval()
    with torch.inference_mode():
        prefix = torch.full((len(rows), 1), model.codec.start_id, device=device)
        output = model(prefix, None, logits="last")
        symbol, score = draw(output.logits[:, -1], numbers(0, 1)[0])
        levels[:, 0], bits[:, 0] = symbol.cpu().numpy(), -score.cpu().numpy() / math.log(2)
        last, state, low = symbol[:, None], output.state, 1
        while low < length and time.monotonic() < end:
            size = min(BLOCK, length - low)
            symbols, scores, state = advance(last, state, numbers(low, size))
            if low == 1:
                # Recording the graphs has drawn, too.
                draw.begin(low + size)
            last = symbols[-1][:, None]
            levels[:, low : low + size] = symbols.T.cpu().numpy()
            bits[:, low : low + size] = -scores.T.cpu().numpy() / math.log(2)
            low += size
            if low // BLOCK in (8, 64):
                say(f"{low / rate:.1f} s of {len(rows)} clips")
    shape = (len(cells), clips, low)
    return levels[:, :low].reshape(shape), bits[:, :low].reshape(shape)


def made_one_by_one(model: Any, cells: list[dict[str, float]], clips: int, seed: int, length: int, end: float) -> Any:
    """As `made`, cell after cell by what `mba.generate` takes."""
    levels = np.empty((len(cells), clips, length), np.uint8)
    bits = np.empty((len(cells), clips, length), np.float16)
    reached = length
    for number, cell in enumerate(cells):
        how: dict[str, Any] = {"temperature": cell["t"], "top_p": cell["p"], "seed": seed, "num_samples": clips}
        # Each cell has its share of what time is left.
        until = time.monotonic() + (end - time.monotonic()) / (len(cells) - number)
        for block in generate_blocks(model, length=length, **how):
            part = slice(block.position, block.position + block.tokens.shape[1])
            levels[number, :, part] = block.tokens.numpy()
            bits[number, :, part] = block.log_likelihood.numpy() / -math.log(2)
            if part.stop < length and time.monotonic() > until:
                reached = min(reached, part.stop)
                break
        say(f"{reached / model.codec.sample_rate_hz:.1f} s of {clips} clips at {cell['t']:g}, {cell['p']:g}")
    return levels[:, :, :reached], bits[:, :, :reached]


def analysed(codec: Any, levels: Any) -> Any:
    return measures.analyse(levels, codec)


def measured(codec: Any, limit: float, levels: Any) -> dict[str, float]:
    return measures.measure(measures.analyse(levels, codec), 0, len(levels), limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("cells", nargs="+")
    parser.add_argument(
        "--data", help="prepared folder, where that is not the one of training; held-out recordings suffice"
    )
    parser.add_argument("--lock", type=Path, help="file that is held while a GPU generates, so that runs take turns")
    parser.add_argument(
        "--kernel", action="store_true", help="cells of temperature and top-p alone, by the fastest path"
    )
    parser.add_argument("--piece", type=float, default=10, help="seconds of a clip")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=int, default=2, help="cells whose levels are kept, those with most inside")
    parser.add_argument("--seconds", type=float, default=100, help="of generating, all included")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    cells = [parsed(cell) for cell in options.cells]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = mba.load(options.run).to(device)
    config = read_config(options.run)
    with (options.run / "metrics.csv").open() as file:
        nats = min(float(row["valid_nats"]) for row in csv.DictReader(file) if row.get("valid_nats"))
    codec, rate = model.codec, model.codec.sample_rate_hz
    say(f"{options.run.name}: {len(cells)} cells of {options.clips} clips; validation {nats / math.log(2):.3f} bits")
    options.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        length = round(options.piece * rate)
        with (options.lock or Path(os.devnull)).open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX) if options.lock else None
            say("begins")
            end = time.monotonic() + options.seconds
            if options.kernel:
                levels, bits = made_one_by_one(model, cells, options.clips, options.seed, length, end)
            else:
                levels, bits = made(model, cells, options.clips, options.seed, length, nats, end)
        del model
        say(f"{levels.shape[2] / rate:g} s of each generated")
        data = config.data.model_copy(update={"path": options.data}) if options.data else config.data
        corpus = domain_of(data.kind).open(data, length=config.train.length)
        recorded = list(pool.map(partial(analysed, codec), samples.held_out(corpus, levels.shape[2])))
        limit = measures.click_limit(recorded)
        ranges = samples.ranges_of(samples.measured_pieces(recorded, levels.shape[2], limit))
        theirs = samples.inside(samples.measured_pieces(recorded, levels.shape[2], limit), ranges)
        say(
            f"held out: { {name: [round(v, 2) for v in ranges[name]] for name in measures.JUDGED} }, click limit {limit:.2f}"
        )
        say(f"held-out pieces inside by all: {samples.all_judged(theirs).mean():.2f}")
        jobs = [list(pool.map(partial(measured, codec, limit), own)) for own in levels] if options.jobs == 1 else None
        flat = jobs or _grouped(
            pool.map(partial(measured, codec, limit), levels.reshape(-1, levels.shape[2])), len(cells)
        )
        (options.out / f"{options.run.name}.json").write_text(json.dumps({"ranges": ranges, "limit": limit}))
        table, totals = [], []
        say("cell: inside of level, flatness, clicks, onsets, entropy, all; medians; own bits of each second")
        for name, own, own_bits in zip(options.cells, flat, bits, strict=True):
            values = {key: np.array([one[key] for one in own]) for key in own[0]}
            within = samples.inside(values, ranges)
            every = samples.all_judged(within)
            seconds = (
                own_bits[:, : own_bits.shape[1] // rate * rate].astype(np.float32).reshape(len(own), -1, rate).mean(2)
            )
            counts = [int(within[key].sum()) for key in measures.JUDGED]
            totals.append(sum(counts))
            middle = " ".join(f"{np.median(values[key]):7.2f}" for key in measures.JUDGED)
            course = " ".join(f"{value:.2f}" for value in seconds.mean(0))
            print(
                f"{name:<34} {' '.join(f'{c:3d}' for c in counts)} {int(every.sum()):4d} | {middle} | {course}",
                flush=True,
            )
            # Eighths, as `mba sample --best-of` looks at them.
            eighths = np.stack([part.astype(np.float32).mean(1) for part in np.array_split(own_bits, 8, axis=1)], 1)
            usual = float(np.median(eighths.mean(1)))
            far = {"all, from validation's": np.abs(eighths.mean(1) - nats / math.log(2))}
            far |= {"all, from usual": np.abs(eighths.mean(1) - usual), "eighths": np.abs(eighths - usual).mean(1)}
            for what, distance in far.items():
                order = distance.argsort()
                for each in (2, 4):
                    # Of every way to group the rows, the mean.
                    kept = [
                        math.comb(len(own) - 1 - rank, each - 1) / math.comb(len(own), each) for rank in range(len(own))
                    ]
                    shares = " ".join(f"{within[key][order] @ kept:3.0%}" for key in measures.JUDGED)
                    print(f"  best of {each}, bits of {what:<23} {shares} {every[order] @ kept:4.0%}", flush=True)
            for row, one in enumerate(own):
                flags = {f"inside_{key}": int(within[key][row]) for key in measures.JUDGED}
                course = " ".join(f"{value:.3f}" for value in seconds[row])
                own_values = {key: f"{value:.5g}" for key, value in one.items()}
                table.append({"cell": name, "row": row, "bits": course, **own_values, **flags})
    with (options.out / f"{options.run.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    best = np.argsort(totals)[::-1][: options.keep]
    kept = {options.cells[at]: levels[at][:10] for at in best}
    np.savez_compressed(options.out / f"{options.run.name}.npz", **kept)
    say("done")


def _grouped(found: Any, groups: int) -> list[list[dict[str, float]]]:
    rows = list(found)
    each = len(rows) // groups
    return [rows[at : at + each] for at in range(0, len(rows), each)]


if __name__ == "__main__":
    main()
