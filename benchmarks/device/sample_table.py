"""The table of generation on one GPU: rows of `mba bench sample`, prefill of 2^20 bases, and whole commands of 2^17 bases.

    PYTHONPATH=. python benchmarks/device/sample_table.py [--seconds 0.5] [--budget 140] [--jobs 16] [--out sample.csv]
    PYTHONPATH=. python benchmarks/device/sample_table.py --plan left --seconds 3 --budget 220   # in the order of LEFT
    PYTHONPATH=. taskset -c 28-31 python benchmarks/device/sample_table.py --plan real-time --real-time 600

First all kernels compile, in several processes at once; the rows' time to record is therefore that of a second command. A
row that fails prints one line and the next one follows; none begins after the budget. Rows of graphs stand behind those of the
path that users get, where that is another. What is measured for long says how far it has come, every minute and when it is
ended by a signal. `--only 12x128,64,bf16` runs
the rows of a model, batch and precision alone; the last of these can be left out.
"""

import argparse
import contextlib
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from mamba_bio_audio.inference import decoding
from mamba_bio_audio.inference.generate import generate_blocks
from mamba_bio_audio.jobs.bench import sample_line
from mamba_bio_audio.run.sample_speed import SAMPLE_CASES, SampleCase, copy_rate, make_model, sample_row
from mamba_bio_audio.run.saved import load_language_model
from mamba_bio_audio.run.timing import few_rounds, write_rows

# By name, the most valuable first; rows of `mba bench sample` as MODEL,BATCH,PRECISION.
LEFT = [
    "bf16 beside fp32",
    "audio/piano,1,fp32",
    "audio/piano,1024,bf16",
    *(f"12x128,{batch},bf16" for batch in (1, 64, 512)),
    *(f"16x256,{batch},bf16" for batch in (1, 64, 2048)),
    *(f"24x768,{batch},bf16" for batch in (1, 512, 64)),
    "24x768,1,fp32",
    *(f"{model},64,fp32" for model in ("12x128", "16x256")),
    "audio/piano,1024,fp32",
    "audio/sc09@small,1024,fp32",
]
PRECISIONS: tuple[Literal["fp32"], Literal["bf16"]] = ("fp32", "bf16")
LAST = ("24x768", 2048)  # takes longest, and nothing is promised of it


def _same(piece: int, device: str) -> int:
    return piece


def prefill(model: str, length: int, device: str) -> Iterator[str]:
    """The state after a prompt, by precision and length of a piece: the median of three, and memory."""
    network = make_model(model)[0].to(device).eval()
    prompt = torch.randint(7, 11, (1, length), device=device)
    for dtype in (torch.bfloat16, torch.float32):
        for piece in (1 << 16, 1 << 18, 1 << 20):
            decoding.positions = partial(_same, piece)
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
                took, memory = few_rounds(lambda: decoding.prefill(network, prompt, None), device)
            name = str(dtype).removeprefix("torch.")
            yield f"prefill {model} {length} bases {name} pieces of {piece}: {took:.4f} s, peak {memory:.2f} GiB"


def real_time(model: str, seconds: float, device: str) -> Iterator[str]:
    """How long blocks of 1,024 samples of one stream take, the first left out; real time at 16 kHz is 64 ms."""
    network, allowed = make_model(model)
    network = network.to(device).eval()
    precision: Literal["bf16", "fp32"] = "bf16" if device == "cuda" else "fp32"
    blocks = generate_blocks(network, length=None, prompt=torch.tensor([128]), allowed=allowed, precision=precision)
    next(blocks)
    took: list[float] = []
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: ended.append(number))
    start = last = told = time.perf_counter()
    while last - start < seconds and not ended:
        next(blocks)
        now = time.perf_counter()
        took.append(1e3 * (now - last))
        last = now
        if last - told > 60 or last - start >= seconds or ended:
            told = last
            at = torch.quantile(torch.tensor(took), torch.tensor([0.5, 0.99, 0.999])).tolist()
            yield (
                f"real time {model} {precision}: {len(took)} blocks of 1024 samples in {last - start:.0f} s, median "
                f"{at[0]:.1f} ms, 99 % {at[1]:.1f}, 99.9 % {at[2]:.1f}, longest {max(took):.1f}, "
                f"{sum(t > 64 for t in took)} above 64 ms; behind 16 kHz by at most {behind(took):.1f} ms"
            )


def behind(took: list[float]) -> float:
    """How far a player that begins with the first block would have to wait in all, ms: what must be held back for it."""
    waited = ahead = 0.0
    for block in took:
        ahead += 64 - block
        waited = max(waited, -ahead)
    return waited


def command(length: int, device: str, precisions: Sequence[str] = ("bf16", "fp32")) -> Iterator[str]:
    """`mba sample` with the packaged 12 x 128, from start to end of the process."""
    for precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            call = ["sample", "human42mb-1m4", f"--length={length}", f"--out={folder}/s.fa", f"--precision={precision}"]
            done = subprocess.run(
                [sys.executable, "-m", "mamba_bio_audio", *call, f"--device={device}"], capture_output=True, text=True
            )
            took = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        yield f"mba sample, {length} bases with 12x128 {precision}: {took:.2f} s, {done.stdout.splitlines()[0]}"


def beside_fp32(rows: int, length: int, device: str) -> Iterator[str]:
    """The packaged 12 x 128 in bf16: log-probabilities up to where a row's symbols part from those in fp32, and mean bits."""
    model = load_language_model(Path("human42mb-1m4"), "best").to(device)
    blocks = []
    for precision in PRECISIONS:
        drawn = generate_blocks(model, length=length, num_samples=rows, seed=1, precision=precision)
        parts = [(block.tokens, block.log_likelihood) for block in drawn]
        blocks.append([torch.cat(part, 1) for part in zip(*parts, strict=True)])
    (tokens, nats), (narrow_tokens, narrow_nats) = blocks
    together = (tokens == narrow_tokens).int().cumprod(1).bool()
    off = (nats - narrow_nats)[together].abs()
    at = [off.quantile(share).item() for share in (0.5, 0.99)] if len(off) < 1 << 24 else [math.nan] * 2
    bits = [-part.mean().item() / math.log(2) for part in (nats, narrow_nats)]
    yield (
        f"bf16 beside fp32, {rows} x {length} bases of 12x128: log-probabilities of {len(off)} symbols before rows part are "
        f"{at[0]:.1e} (median), {at[1]:.1e} (99 %), {off.max():.1e} (largest) nats off; bits per base {bits[0]:.4f} in fp32, "
        f"{bits[1]:.4f} in bf16 ({100 * (bits[1] / bits[0] - 1):+.2f} %)"
    )


def _text(case: SampleCase) -> str:
    return ",".join(map(str, case))


def compile_all(cases: Sequence[SampleCase], device: str, jobs: int, *, commands: bool) -> None:
    """Run the shortest form of rows in other processes, which leave what they compile on disk."""
    # Rows left out take the same kernels, or would need much memory at once.
    chosen = [case for case in cases if case.batch in (1, 64) or (case.batch > 512 and case.model != "24x768")]
    # U-Nets take longest, and longest of these the many rows.
    chosen.sort(key=lambda case: ("/" not in case.model, -case.batch))

    def run(case: SampleCase) -> None:
        call = [sys.executable, __file__, f"--only={_text(case)}", "--seconds=0", "--jobs=0", f"--device={device}"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(call, capture_output=True, timeout=90)

    began = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        if commands:
            pool.submit(guarded, "first mba sample", partial(command, 64, device))
        list(pool.map(run, chosen))
    print(f"compiled in {time.perf_counter() - began:.0f} s, {jobs} processes at once", flush=True)


def guarded(name: str, lines: Callable[[], Iterator[str]]) -> None:
    """Print lines as they come; of an error, one."""
    try:
        for line in lines():
            print(line, flush=True)
    except Exception as error:
        print(f"{name} FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}", flush=True)


def rank(case: SampleCase) -> int:
    """How late a row comes."""
    if case[:2] == LAST:
        return 6
    if case.precision == "bf16":
        return 1 if "/" in case.model else 0
    return 3 if case.batch == 1 else 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="of the timed batches of a row")
    parser.add_argument("--budget", type=float, default=140, help="seconds after which nothing begins")
    parser.add_argument(
        "--real-time", type=float, default=6, help="seconds of one stream of audio; the promise is of 600"
    )
    parser.add_argument("--jobs", type=int, default=16, help="processes that compile; 0 leaves that out")
    parser.add_argument("--plan", default="all", choices=("all", "left", "real-time"))
    parser.add_argument("--only", help="MODEL[,BATCH[,PRECISION]]")
    parser.add_argument("--out", type=Path, help="CSV file of the rows")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    arguments = parser.parse_args()
    device, began = arguments.device, time.perf_counter()
    rate = copy_rate(device)
    name = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"{name}, torch {torch.__version__}, copy {rate / 1e12:.2f} TB/s", flush=True)
    rows = []
    measured: set[tuple[SampleCase, str | None]] = set()

    def row(case: SampleCase, path: str | None = None) -> Iterator[str]:
        if (case, path) in measured:
            return
        rows.append(sample_row(case, device, seconds=arguments.seconds, rate=rate, path=path))
        measured.add((case, rows[-1]["path"]))
        if arguments.out is not None:
            write_rows(arguments.out, rows)
        yield sample_line(rows[-1])

    def by_operations(case: SampleCase) -> Iterator[str]:
        """Graphs without the kernels of a mixer's step."""
        most, step.MAX_STATES = step.MAX_STATES, 0
        try:
            found = sample_row(case, device, seconds=arguments.seconds, rate=rate, path="graph")
        finally:
            step.MAX_STATES = most
        yield f"{sample_line(found)}  (by operations)"

    cases = SAMPLE_CASES[device]
    if arguments.only:
        cases = [case for case in cases if f"{_text(case)},".startswith(f"{arguments.only},")]
    if arguments.plan == "left":
        cases = [case for case in cases if _text(case) in LEFT]
    if arguments.jobs and arguments.plan != "real-time":
        compile_all(cases, device, arguments.jobs, commands=not arguments.only)
    # What matters most comes first: (importance, name, what to run).
    ranked: list[tuple[int, str, partial[Iterator[str]]]]
    ranked = [(rank(case), _text(case), partial(row, case)) for case in cases]
    long, whole = (1 << 20, 1 << 17) if device == "cuda" else (1 << 10, 1 << 8)
    if not arguments.only:
        audio = "audio/sc09@small" if device == "cuda" else "audio/tiny"
        ranked.append((1, "real time", partial(real_time, audio, arguments.real_time, device)))
        rows, length = (256, 4096) if device == "cuda" else (2, 64)
        ranked.append((2, "bf16 beside fp32", partial(beside_fp32, rows, length, device)))
        ranked.append((2, "mba sample", partial(command, whole, device)))
        ranked.append((2, "prefill", partial(prefill, "16x256", long, device)))
    if device == "cuda":
        from mamba_bio_audio.kernels.mixer import step

        # Graphs beside what users get, for the rule that chooses.
        for case in cases:
            if case.model == LAST[0]:
                continue
            many = "/" not in case.model and case.batch >= 512 and case.precision == "bf16"
            ranked.append((0 if many else 5, f"{_text(case)}, graph", partial(row, case, path="graph")))
        for case in cases:
            if "/" not in case.model and case.batch == 512 and case.precision == "bf16":
                ranked.append((4, f"{_text(case)}, operations", partial(by_operations, case)))
    todo = [one[1:] for one in sorted(ranked, key=lambda one: one[0])]
    if arguments.plan != "all":
        names = LEFT if arguments.plan == "left" else ["real time"]
        todo = sorted((one for one in todo if one[0] in names), key=lambda one: names.index(one[0]))
    for name, lines in todo:
        if time.perf_counter() - began > arguments.budget:
            print(f"{name} left out: {arguments.budget:.0f} s are over", flush=True)
            continue
        guarded(name, lines)
        if device == "cuda":
            torch.cuda.empty_cache()
    print(f"{math.ceil(time.perf_counter() - began)} s in all", flush=True)


if __name__ == "__main__":
    main()
