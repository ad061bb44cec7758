"""Mutation trial: single faults put into critical files, one at a time, in copies of the tree; which do the tests find?

    python scripts/mutate.py --minutes 60 --jobs 2 --json /tmp/mutants.json
    python scripts/mutate.py --files mamba_bio_audio/training/schedule.py --minutes 5

By hand, not in CI. A fault is one small change of the syntax tree: a comparison or operator exchanged, a condition
negated, a number moved by one, a default or an argument left out, a statement dropped, True for False. Faults are drawn by
`--seed` alike from all files, so that a longer budget only adds some. First the tests of each file must pass as it is;
a fault survives where they still do, and is killed where they fail or take several times as long. Printed are the score,
killed over all, and every survivor. Survivors that change nothing that anyone could see are to be judged by a reader.
The budget counts from the start and includes the tests of the files as they are. When it is spent, and on Ctrl-C or
SIGTERM, the tests that still run are killed and do not count; the score of the rest is printed and written.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent

KERNELS = "mamba_bio_audio/kernels/"
SCAN = KERNELS + "scan/"
# Critical files, and the tests that are there to guard them.
CRITICAL: dict[str, list[str]] = {
    KERNELS + "conv/cpu.py": ["tests/kernels/conv/test_cpu.py"],
    KERNELS + "conv/gpu.py": ["tests/kernels/conv/test_gpu.py"],
    KERNELS + "conv/reference.py": ["tests/kernels/conv/test_cpu.py"],
    KERNELS + "conv/tail.py": ["tests/kernels/conv/test_cpu.py"],
    KERNELS + "norm/cpu.py": ["tests/kernels/norm/test_cpu.py"],
    KERNELS + "norm/gpu.py": ["tests/kernels/norm/test_gpu.py"],
    KERNELS + "loss/cpu.py": ["tests/kernels/loss/test_cpu.py"],
    KERNELS + "loss/gpu.py": ["tests/kernels/loss/test_gpu.py"],
    KERNELS + "loss/gradients.py": ["tests/kernels/loss"],
    KERNELS + "mixer/recompute.py": ["tests/kernels/mixer/test_recompute.py"],
    SCAN + "inputs.py": ["tests/kernels/scan/test_launch_plans.py", "tests/kernels/scan/test_cpu.py"],
    SCAN + "reference.py": ["tests/kernels/scan/test_cpu.py"],
    SCAN + "cpu.py": ["tests/kernels/scan/test_cpu.py"],
    SCAN + "cpu_blocks.py": ["tests/kernels/scan/test_cpu.py"],
    SCAN + "cpu_backward.py": ["tests/kernels/scan/test_cpu.py"],
    SCAN + "forward.py": ["tests/kernels/scan/test_plain.py", "tests/kernels/scan/test_cases.py"],
    SCAN + "backward.py": [
        "tests/kernels/scan/test_plain.py",
        "tests/kernels/scan/test_cases.py",
        "tests/kernels/mixer/test_recompute.py",
    ],
    SCAN + "chunks.py": ["tests/kernels/scan/test_plain.py", "tests/kernels/scan/test_cases.py"],
    SCAN + "parts.py": ["tests/kernels/scan/test_cases.py"],
    SCAN + "launch.py": ["tests/kernels/scan/test_launch_plans.py", "tests/kernels/scan/test_plain.py"],
    SCAN + "split_bc.py": ["tests/kernels/mixer/test_recompute.py"],
    SCAN + "sums.py": ["tests/kernels/scan/test_sums.py"],
    "mamba_bio_audio/ops/calls.py": ["tests/ops/test_calls.py"],
    "mamba_bio_audio/ops/mamba_mixer.py": ["tests/ops/test_mamba_mixer.py"],
    "mamba_bio_audio/ops/operators.py": ["tests/ops/test_operators.py"],
    "mamba_bio_audio/ops/selective_scan.py": ["tests/ops", "tests/kernels/scan/test_cpu.py"],
    "mamba_bio_audio/layers/mamba.py": ["tests/layers", "tests/models/test_isotropic.py", "tests/test_laws.py"],
    "mamba_bio_audio/models/heads.py": ["tests/models/test_heads.py"],
    "mamba_bio_audio/models/unet.py": ["tests/models/test_unet.py", "tests/test_laws.py"],
    "mamba_bio_audio/models/streamed.py": ["tests/models/test_streamed.py"],
    "mamba_bio_audio/training/graphed.py": ["tests/training/test_graphed.py"],
    "mamba_bio_audio/training/lengths.py": ["tests/training/test_lengths.py"],
    "mamba_bio_audio/training/schedule.py": ["tests/training/test_training.py"],
    "mamba_bio_audio/training/optim.py": ["tests/training/test_training.py"],
    "mamba_bio_audio/training/config.py": ["tests/training/test_training.py", "tests/training/test_lengths.py"],
    "mamba_bio_audio/training/steps.py": [
        "tests/training/test_training.py",
        "tests/training/test_ema.py",
        "tests/training/test_listening.py",
    ],
    "mamba_bio_audio/inference/cpu_decoder.py": ["tests/inference/test_cpu_decoder.py"],
    "mamba_bio_audio/inference/decoding.py": ["tests/inference/test_decoding.py"],
    "mamba_bio_audio/inference/generate.py": ["tests/inference/test_generate.py"],
    "mamba_bio_audio/inference/predict.py": ["tests/inference/test_predict.py"],
    "mamba_bio_audio/inference/streaming.py": ["tests/inference/test_streaming.py"],
    "mamba_bio_audio/inference/score.py": ["tests/inference/test_score.py"],
    "mamba_bio_audio/inference/embed.py": ["tests/inference/test_embed.py"],
    "mamba_bio_audio/inference/embedding_file.py": ["tests/inference/test_embedding_file.py"],
    "mamba_bio_audio/inference/tracks.py": ["tests/inference/test_tracks.py"],
    "mamba_bio_audio/inference/track_files.py": ["tests/inference/test_track_files.py"],
    "mamba_bio_audio/evaluation/classification.py": ["tests/evaluation/test_classification.py"],
    "mamba_bio_audio/evaluation/likelihood.py": ["tests/evaluation/test_likelihood.py"],
    "mamba_bio_audio/pipelines/dna/markov.py": ["tests/pipelines/dna/test_markov.py"],
    "mamba_bio_audio/pipelines/dna/words.py": ["tests/pipelines/dna/test_markov.py"],
    "mamba_bio_audio/pipelines/dna/copies.py": ["tests/pipelines/dna/test_copies.py"],
    "mamba_bio_audio/evaluation/audio_metrics.py": ["tests/evaluation/test_audio_metrics.py"],
    "mamba_bio_audio/evaluation/context.py": ["tests/evaluation/test_context.py"],
    "mamba_bio_audio/run/saved.py": ["tests/run/test_saved.py", "tests/training/test_ema.py"],
    "mamba_bio_audio/pipelines/stream.py": ["tests/pipelines/test_stream.py"],
    "mamba_bio_audio/pipelines/download.py": ["tests/pipelines/test_download.py"],
    "mamba_bio_audio/pipelines/dna/fasta_index.py": [
        "tests/pipelines/dna/test_fasta_index.py",
        "tests/pipelines/dna/test_fasta_scan.py",
    ],
    "mamba_bio_audio/pipelines/dna/fasta_parser.py": ["tests/pipelines/dna/test_fasta_scan.py"],
    "mamba_bio_audio/pipelines/dna/fasta_scan.py": ["tests/pipelines/dna/test_fasta_scan.py"],
    "mamba_bio_audio/pipelines/dna/genome.py": ["tests/pipelines/dna/test_genome.py"],
    "mamba_bio_audio/pipelines/dna/twobit.py": ["tests/pipelines/dna/test_twobit.py"],
    "mamba_bio_audio/pipelines/dna/tokenizer.py": ["tests/pipelines/dna/test_tokenizer.py"],
    "mamba_bio_audio/pipelines/dna/intervals.py": ["tests/pipelines/dna/test_intervals.py"],
    "mamba_bio_audio/pipelines/windows.py": ["tests/pipelines/test_windows.py", "tests/pipelines/dna/test_corpus.py"],
    "mamba_bio_audio/pipelines/spans.py": ["tests/pipelines/test_spans.py"],
    "mamba_bio_audio/pipelines/dna/class_windows.py": ["tests/pipelines/dna/test_classes.py"],
    "mamba_bio_audio/pipelines/dna/policies.py": ["tests/pipelines/dna/test_policies.py"],
    "mamba_bio_audio/pipelines/coverage.py": ["tests/pipelines/test_coverage.py"],
    "mamba_bio_audio/pipelines/dna/duplicates.py": ["tests/pipelines/dna/test_duplicates.py"],
    "mamba_bio_audio/pipelines/dna/homology.py": ["tests/pipelines/dna/test_apes.py"],
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip


class Mutant(NamedTuple):
    """One fault: `written` in the place of bytes `begin` to `end` of the file."""

    file: str
    line: int
    what: str
    begin: int
    end: int
    written: str

    def of(self, source: bytes) -> bytes:
        """The file with the fault; raises SyntaxError, never to be taken for a fault that the tests found."""
        text = source[: self.begin] + self.written.encode() + source[self.end :]
        compile(text, self.file, "exec")
        return text


class Outcome(NamedTuple):
    """What the tests said of a fault."""

    mutant: Mutant
    end: str  # killed, timeout or survived
    seconds: float


def changes(node: ast.AST) -> Iterator[tuple[str, ast.expr | ast.stmt, ast.expr | ast.stmt]]:
    """(kind, node to be replaced, what takes its place) of every fault that this node offers."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        yield "comparison", node, ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield "operator", node, ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in OPERATORS:
        yield "operator", node, ast.AugAssign(node.target, OPERATORS[type(node.op)](), node.value)
    elif isinstance(node, ast.BoolOp):
        yield "and, or", node, ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        yield "part of a condition", node, ast.BoolOp(node.op, node.values[:-1]) if node.values[2:] else node.values[0]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield "sign or not", node, node.operand
    elif isinstance(node, ast.IfExp):
        yield "branches", node, ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.If):
        yield "condition", node.test, ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "constant", node, ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield "constant", node, ast.Constant(node.value + 1)
        if node.value not in (0, 1):
            yield "constant", node, ast.Constant(node.value // 2 if isinstance(node.value, int) else node.value / 2)
    elif isinstance(node, ast.Call) and node.keywords:
        yield "argument left out", node, ast.Call(node.func, node.args, node.keywords[:-1])
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call left out", node, ast.Pass()
    elif isinstance(node, ast.Break | ast.Continue):
        yield "jump", node, ast.Pass()


def changeable(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those of types, decorators, messages, assertions and descriptions of settings."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.Assert | ast.JoinedStr):
                continue
            if not (isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id == "Field"):
                yield from changeable(child)


def mutants_of(file: str, source: bytes) -> list[Mutant]:
    """Every fault of a file; all else stays as it is, to the byte."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in changeable(ast.parse(source)):
        for kind, old, new in changes(node):
            assert old.end_lineno is not None
            assert old.end_col_offset is not None
            begin = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            written = ast.unparse(new)
            if isinstance(new, ast.expr):
                written = f"({written})"
            before = " ".join(source[begin:end].decode().split())
            what = f"{kind}: {before[:90]} -> {written[:90]}"
            found.append(Mutant(file, old.lineno, what, begin, end, written))
    return found


def drawn(files: list[str], seed: int) -> list[Mutant]:
    """All faults of all files in the order of the trial: one of each file, then a second one of each, and so on."""
    generator = random.Random(seed)
    piles = []
    for file in files:
        pile = mutants_of(file, (ROOT / file).read_bytes())
        generator.shuffle(pile)
        piles.append(pile)
    order = []
    for number in range(max(map(len, piles))):
        turn = [pile[number] for pile in piles if number < len(pile)]
        generator.shuffle(turn)
        order += turn
    return order


class Stopped(Exception):
    """The time is up, or someone asked for the end."""


class Tests:
    """Runs pytest for several threads, until `stop`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(self, tree: Path, names: list[str], limit: float | None = None) -> tuple[str, float]:
        """(killed, timeout or survived, seconds taken); raises `Stopped`."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *names]
        data = os.environ.get("MBA_SHARED_DATA", str(ROOT.parent / "shared" / "data"))
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]),
            # A fault and its mending may fall into one second, and old bytecode would then be taken for new.
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            # Kernels that cannot be interpreted here would let every fault live: then their tests fail and do not count.
            "CI": "true",
            "MBA_SHARED_DATA": data,
        }
        start = time.monotonic()
        with self.lock:
            if self.stopped:
                raise Stopped
            # In a session of its own, so that what the tests start ends with them, and Ctrl-C does not reach it. Without
            # pipes: whatever outlives the tests would keep them open.
            process = subprocess.Popen(
                command, cwd=tree, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            self.running.add(process)
        try:
            end = "survived" if process.wait(limit) == 0 else "killed"
        except subprocess.TimeoutExpired:
            end = "timeout"
            _kill(process)
        with self.lock:
            self.running.remove(process)
            # Then it was perhaps killed by `stop`, and not by the fault.
            if self.stopped:
                raise Stopped
        return end, time.monotonic() - start

    def stop(self) -> None:
        """Kill what runs; nothing starts any more."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Trial:
    """Takes faults from one list into as many copies of the tree as there are jobs, until the time is up.

    Args:
        order: the faults.
        tests: of each file.
        jobs: copies, each with its own process.
        deadline: on the clock of `time.monotonic`; what is not decided by then does not count.
    """

    def __init__(self, order: list[Mutant], tests: dict[str, list[str]], jobs: int, deadline: float) -> None:
        self.left: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
        for mutant in order:
            self.left.put(mutant)
        self.names, self.jobs, self.deadline = tests, jobs, deadline
        self.tests = Tests()
        # A worker's error, or None: it ended, or a signal asks for the end. The one queue that a signal may put into.
        self.ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self.outcomes: list[Outcome] = []
        self.broken: list[str] = []
        # Seconds of the tests of a file as it is; None where they fail.
        self.usual: dict[tuple[str, ...], float | None] = {}
        self.locks = {tuple(names): threading.Lock() for names in tests.values()}

    def run(self) -> None:
        """Until the time or the list is at its end, or `stop`; no process and no copy is left."""
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            threads = [
                threading.Thread(target=self._work, args=(Path(folder, str(number)),)) for number in range(self.jobs)
            ]
            try:
                for thread in threads:
                    thread.start()
                error = self._wait(threads)
            finally:
                self.tests.stop()
                for thread in threads:
                    thread.join()
        if error is not None:
            raise error

    def stop(self, *signal: object) -> None:
        """Ask for the end; a handler of signals."""
        self.deadline = 0
        self.ends.put(None)

    def _wait(self, threads: list[threading.Thread]) -> BaseException | None:
        """Until all threads are through, one of them fails, or the deadline passes."""
        for _ in threads:
            try:
                error = self.ends.get(timeout=max(0, self.deadline - time.monotonic()))
            except queue.Empty:
                return None
            if error is not None or not self.deadline:
                return error
        return None

    def _work(self, tree: Path) -> None:
        try:
            ignore = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__")
            shutil.copytree(ROOT, tree, symlinks=True, ignore=ignore)
            while True:
                self._try(tree, self.left.get_nowait())
        except (queue.Empty, Stopped):
            self.ends.put(None)
        except BaseException as error:
            self.ends.put(error)

    def _try(self, tree: Path, mutant: Mutant) -> None:
        usual = self._usual(tree, mutant.file)
        if usual is None:
            return
        path = tree / mutant.file
        whole = path.read_bytes()
        path.write_bytes(mutant.of(whole))
        try:
            end, seconds = self.tests.run(tree, self.names[mutant.file], 3 * usual + 30)
        finally:
            path.write_bytes(whole)
        self.outcomes.append(Outcome(mutant, end, seconds))
        print(f"{end:8} {seconds:5.0f} s  {mutant.file}:{mutant.line}  {mutant.what}", flush=True)

    def _usual(self, tree: Path, file: str) -> float | None:
        names = tuple(self.names[file])
        with self.locks[names]:
            if names not in self.usual:
                end, seconds = self.tests.run(tree, list(names))
                self.usual[names] = seconds if end == "survived" else None
                if end == "killed":
                    self.broken.append(f"the tests of {file} fail as they are: {' '.join(names)}")
                    print(self.broken[-1], flush=True)
            return self.usual[names]


def report(outcomes: list[Outcome]) -> dict[str, Any]:
    """Score, score of each file, and survivors."""
    files: dict[str, list[int]] = {}
    for outcome in outcomes:
        of_file = files.setdefault(outcome.mutant.file, [0, 0])
        of_file[0] += outcome.end != "survived"
        of_file[1] += 1
    killed, tried = sum(k for k, _ in files.values()), sum(n for _, n in files.values())
    survivors = [o.mutant for o in outcomes if o.end == "survived"]
    return {
        "killed": killed,
        "tried": tried,
        "score": round(killed / tried, 3) if tried else None,
        "files": {file: {"killed": k, "tried": n} for file, (k, n) in sorted(files.items())},
        "survivors": [f"{m.file}:{m.line} {m.what}" for m in sorted(survivors)],
    }


def main() -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="budget of time, from the start on")
    parser.add_argument(
        "--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="copies of the tree at once"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--files", nargs="+", metavar="FILE", help="instead of all critical files")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="of all FILEs, instead of those of the list")
    parser.add_argument("--json", type=Path, help="where to write score and survivors too")
    parser.add_argument("--list", action="store_true", help="count the faults of each file and stop")
    options = parser.parse_args()
    files = options.files or [file for file in CRITICAL if (ROOT / file).exists()]
    unknown = [file for file in files if file not in CRITICAL and not options.tests]
    if unknown:
        parser.error(f"no tests are listed for {', '.join(unknown)}: give --tests")
    order = drawn(files, options.seed)
    if options.list:
        for file in files:
            print(f"{sum(m.file == file for m in order):6} {file}")
        return
    tests = {file: options.tests or CRITICAL[file] for file in files}
    trial = Trial(order, tests, options.jobs, start + 60 * options.minutes)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, trial.stop)
    trial.run()
    found = report(trial.outcomes) | {"seed": options.seed, "possible": len(order), "broken": trial.broken}
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if trial.broken else 0)


if __name__ == "__main__":
    main()
