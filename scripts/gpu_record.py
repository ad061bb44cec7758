"""The record of the last run of the GPU tests, `tests/gpu_record.json`: what CI, which has no GPU, can rely on.

On a machine with a GPU, at the root of a copy of this tree (several processes at once; `make` is not needed):

    python scripts/gpu_record.py run --out gpu_record.json --commit "$(git rev-parse HEAD)"

It ends by itself within `--minutes`, and writes the record every few seconds. What has not passed by then, another run
makes up for, on a machine of the same kind, with the same watched files and helpers of tests; tests whose own file has
changed run again:

    python scripts/gpu_record.py run --pending gpu_record.json --out more.json --commit "$(git rev-parse HEAD)"

Here, with the file that came back; lists as untested what has changed since, and names what had not ended (a few, else it is
refused):

    python scripts/gpu_record.py accept gpu_record.json

After a change of a file that the record names, until the next run:

    python scripts/gpu_record.py mark "why it was not run"

`tests/test_gpu_record.py` fails where a changed file is neither tested nor listed, and where the README keeps quiet about
the list.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "tests" / "gpu_record.json"
# What only a GPU runs as it is: kernels, the choice between them, and everything that is recorded as a CUDA graph.
WATCHED = (
    "mamba_bio_audio/kernels/**/*.py",
    "mamba_bio_audio/ops/**/*.py",
    "mamba_bio_audio/training/graphed.py",
    "mamba_bio_audio/inference/decoding.py",
)
FOLDER, NOTES = (
    "MBA_GPU_TESTS",
    "MBA_GPU_NOTES",
)  # what the pytest processes are told: where tests are claimed, and ends noted
README_SENTENCE = "Not tested on a GPU as it is now, see `tests/gpu_record.json`:"


def hashes(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file, by its path from the root."""
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def watched(root: Path) -> dict[str, str]:
    """SHA-256 of each watched file, by its path from the root."""
    return hashes(root, {path for pattern in WATCHED for path in root.glob(pattern)})


def changed(record: dict[str, Any], root: Path) -> list[str]:
    """Watched files that are not what the record's run saw."""
    return [path for path, digest in watched(root).items() if record["files"].get(path) != digest]


def complaints(record: dict[str, Any], root: Path, readme: str) -> list[str]:
    """What is wrong with the record beside this tree and this README; nothing where it can be relied on."""
    found = []
    differ, listed = changed(record, root), record["untested"]
    for path in differ:
        if not listed.get(path):
            found.append(f'{path} has changed since the last GPU run: python scripts/gpu_record.py mark "REASON"')
    for path in listed:
        if path not in differ:
            found.append(f"{path} is listed as untested, but it is what the last GPU run tested, or gone")
    lack = lacks(record)
    if lack:
        found.append(f"the recorded GPU run has {lack}")
    open_ends = listed or (record.get("pending") and not lack)
    if open_ends and README_SENTENCE not in readme:
        found.append(f"README.md must say what no GPU has run; it begins: {README_SENTENCE}")
    if not open_ends and README_SENTENCE in readme:
        found.append(f"all has run on a GPU; take out of README.md: {README_SENTENCE}")
    return found


def lacks(record: dict[str, Any]) -> str:
    """Why a record counts for nothing, otherwise empty; tests that time did not suffice for are told apart."""
    passed, failed, pending = record["passed"], record["failed"], len(record.get("pending", ()))
    few = 20 * pending > passed
    return f"{passed} passed, {failed} failed and {pending} unfinished tests" if not passed or failed or few else ""


def read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1) + "\n")


def mark(record: dict[str, Any], root: Path, reason: str) -> dict[str, Any]:
    """The record with all that differs listed; what is listed already keeps its reason."""
    listed = record["untested"]
    return record | {"untested": {path: listed.get(path) or reason for path in changed(record, root)}}


def gpu_test_files(root: Path) -> list[str]:
    """Test files in which something is marked `gpu`; collecting the others would only take time."""
    paths = sorted((root / "tests").rglob("test_*.py"))
    return [path.relative_to(root).as_posix() for path in paths if "mark.gpu" in path.read_text()]


def gpu_tests(root: Path, files: list[str]) -> list[str]:
    """Names of the tests of these files that are marked `gpu`."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    names = [line for line in done.stdout.splitlines() if "::" in line and not line.startswith(("ERROR", " "))]
    if done.returncode or not names:
        sys.exit(f"the GPU tests could not be collected:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
    return names


class Ends(NamedTuple):
    """Tests by how they ended, with their seconds."""

    passed: dict[str, float]
    skipped: dict[str, float]
    failed: dict[str, float]


def pytest_runtestloop(session: Any) -> bool:
    """In the pytest processes, of which this file is a plugin: runs the next test that no other process has begun.

    After a failure the process ends: a fault of the GPU would let all later tests fail.
    """
    folder, items = Path(os.environ[FOLDER]), {item.nodeid: item for item in session.items}
    for number, name in enumerate(json.loads((folder / "names").read_text())):
        with contextlib.suppress(FileExistsError):
            (folder / str(number)).touch(exist_ok=False)
            session.config.hook.pytest_runtest_protocol(item=items[name], nextitem=None)
            if session.testsfailed:
                break
    return True


def pytest_runtest_logreport(report: Any) -> None:
    """Notes each part of a test (setup, call, teardown) as it ends."""
    with open(os.environ[NOTES], "a") as notes:
        notes.write(json.dumps([report.nodeid, report.when, report.outcome, report.duration]) + "\n")


def noted(files: Iterable[Path]) -> Ends:
    """Tests that ended, by what their processes noted."""
    found = Ends({}, {}, {})
    for file in files:
        outcomes: set[str] = set()
        seconds = 0.0
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                name, when, outcome, duration = json.loads(line)
            except ValueError:  # half a line, at which its process was ended
                break
            if when == "setup":
                outcomes, seconds = set(), 0.0
            outcomes.add(outcome)
            seconds += duration
            if when == "teardown":
                kind = "failed" if "failed" in outcomes else "skipped" if "skipped" in outcomes else "passed"
                getattr(found, kind)[name] = round(seconds, 2)
    return found


def run_tests(
    root: Path, names: Sequence[str], jobs: int, minutes: float, tell: Callable[[Ends], None] = lambda ends: None
) -> Ends:
    """Runs tests in `jobs` processes at once, until all ended, the time is over, or SIGTERM or SIGINT comes.

    Args:
        root: where they stand.
        names: as pytest has them, in the order in which they begin.
        jobs: processes at once.
        minutes: after which what still runs is killed.
        tell: is given the tests that ended, every few seconds.

    Returns:
        The tests that ended.
    """
    start = last = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-p",
        Path(__file__).stem,
    ]
    command += dict.fromkeys(name.split("::")[0] for name in names)
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    running: dict[Path, subprocess.Popen[bytes]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "names").write_text(json.dumps(names))
        every: list[Path] = []

        def begin() -> None:
            every.append(folder / f"{len(every)}.notes")
            environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, FOLDER: temporary, NOTES: str(every[-1])}
            with every[-1].with_suffix(".log").open("wb") as log:
                running[every[-1]] = subprocess.Popen(
                    command, cwd=root, stdout=log, stderr=log, env=os.environ | environment, start_new_session=True
                )

        try:
            for _ in range(min(jobs, len(names))):
                begin()
            while running and time.monotonic() - start < 60 * minutes:
                time.sleep(0.2)
                for notes in [notes for notes, process in running.items() if process.poll() is not None]:
                    if running.pop(notes).returncode:
                        print(notes.with_suffix(".log").read_text(errors="replace")[-6000:], flush=True)
                    # Not if it could not even begin.
                    if notes.exists() and not (folder / str(len(names) - 1)).exists():
                        begin()
                if time.monotonic() - last > 10:
                    last, ends = time.monotonic(), noted(every)
                    print(
                        f"{last - start:4.0f} s:",
                        *(f"{len(e)} {kind}" for kind, e in ends._asdict().items()),
                        flush=True,
                    )
                    tell(ends)
        except (SystemExit, KeyboardInterrupt):
            print("told to end", flush=True)
        finally:
            for process in running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                process.wait()
            signal.signal(signal.SIGTERM, before)
        found = noted(every)
    slowest = sorted(((took, name) for end in found for name, took in end.items()), reverse=True)
    print("slowest:", *(f"{took:.0f} s {name}" for took, name in slowest[:12]), sep="\n  ")
    print(
        f"{time.monotonic() - start:.0f} s, {jobs} processes at once, {sum(took for took, _ in slowest):.0f} s of tests"
    )
    return found


def done_before(before: dict[str, Any], now: dict[str, Any]) -> Ends:
    """The tests that need not run again after a run before; exits where that was of other files or another machine.

    Args:
        before: its record.
        now: `files`, `test_files`, `gpu`, `torch` and `triton` of the run that goes on.
    """
    differ = [key for key in ("gpu", "torch", "triton") if before[key] != now[key]]
    if "ended" not in before:
        sys.exit("the record to go on from does not name the tests that passed; run all, without --pending")
    for key in ("files", "test_files"):
        a, b = before[key], now[key]
        other = {path for path in {*a, *b} if a.get(path) != b.get(path)}
        differ += sorted(path for path in other if not Path(path).name.startswith("test_"))
    if differ:
        sys.exit(f"the record to go on from had another {', '.join(differ)}; run all, without --pending")
    same = {path for path, digest in now["test_files"].items() if before["test_files"].get(path) == digest}
    passed, skipped = (
        {name: took for name, took in before["ended"][kind].items() if name.split("::")[0] in same}
        for kind in ("passed", "skipped")
    )
    return Ends(passed, skipped, {})


def run(
    root: Path, out: Path, machine: dict[str, str], jobs: int, minutes: float, before: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Runs the GPU tests, all or those that the record of a run before lacks, and writes the record as they end.

    Args:
        root: of the tree.
        out: where to write.
        machine: commit, date, gpu, torch, triton.
        jobs, minutes: as of `run_tests`.
        before: the record to go on from.
    """
    start = time.monotonic()
    names, files = gpu_tests(root, gpu_test_files(root)), watched(root)
    helpers = [path for path in (root / "tests").rglob("*.py") if not path.name.startswith("test_")]
    test_files = hashes(root, [*helpers, *(root / file for file in gpu_test_files(root))])
    now = machine | {"files": files, "test_files": test_files}
    old = Ends({}, {}, {}) if before is None else done_before(before, now)
    old = Ends(*({name: took for name, took in end.items() if name in set(names)} for end in old))
    left = [name for name in names if not any(name in end for end in old)]
    print(f"{len(left)} of {len(names)} tests to run", flush=True)

    def record(found: Ends) -> dict[str, Any]:
        passed, skipped = old.passed | found.passed, old.skipped | found.skipped
        own = machine | {kind: len(end) for kind, end in found._asdict().items()} | {"failures": sorted(found.failed)}
        return machine | {
            "passed": len(passed),
            "skipped": len(skipped),
            "failed": len(found.failed),
            "failures": sorted(found.failed),
            "pending": [name for name in left if not any(name in end for end in found)],
            "runs": [*(before or {}).get("runs", []), own],
            "files": files,
            "test_files": test_files,
            "ended": {"passed": passed, "skipped": skipped},
            "untested": {},
        }

    # The slowest begin first, so that all processes end together; before them what was never timed, of each file one by turns.
    seconds: dict[str, float] = {}
    for known in (read(RECORD) if RECORD.exists() else {}, before or {}):
        for end in known.get("ended", {}).values():
            seconds |= end
    files_of = [name.split("::")[0] for name in left]
    turns = {name: files_of[:number].count(files_of[number]) for number, name in enumerate(left)}
    ordered = sorted(left, key=lambda name: (-seconds.get(name, math.inf), turns[name]))
    spent = (time.monotonic() - start) / 60
    found = run_tests(root, ordered, jobs, minutes - spent, lambda ends: write(out, record(ends)))
    if watched(root) != files:
        out.unlink(missing_ok=True)
        sys.exit("files changed during the run")
    write(out, record(found))
    return record(found)


def this_machine() -> dict[str, str]:
    """What a record says of the machine and the day."""
    import torch
    import triton

    if not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def head(root: Path) -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
    return done.stdout.strip() if not done.returncode else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_run = commands.add_parser("run", help="run the GPU tests of this tree and write a record")
    of_run.add_argument("--out", type=Path, required=True, help="where to write the record")
    of_run.add_argument("--commit", help="of this tree, where it travels without its .git")
    of_run.add_argument("--jobs", type=int, default=min(16, os.cpu_count() or 1), help="processes at once")
    of_run.add_argument("--minutes", type=float, default=9, help="after which it ends")
    of_run.add_argument("--pending", type=Path, help="a record of the same files: only what it lacks runs")
    of_accept = commands.add_parser("accept", help="make a record that was written elsewhere that of this tree")
    of_accept.add_argument("file", type=Path)
    of_mark = commands.add_parser("mark", help="list what has changed since the recorded run as untested")
    of_mark.add_argument("reason")
    options = parser.parse_args()

    if options.command == "run":
        machine = {"commit": options.commit or head(ROOT)} | this_machine()
        before = read(options.pending) if options.pending else None
        record = run(ROOT, options.out, machine, options.jobs, options.minutes, before)
        print(json.dumps({key: record[key] for key in record if key not in ("files", "test_files", "ended")}, indent=1))
        sys.exit(1 if lacks(record) or record["pending"] else 0)
    record = read(options.file if options.command == "accept" else RECORD)
    if options.command == "accept":
        if lack := lacks(record):
            sys.exit(f"{lack}; none may fail, and one in twenty at most be unfinished: run --pending {options.file}")
        record = mark(record, ROOT, f"changed after {record['commit'][:12]}")
    else:
        record = mark(record, ROOT, options.reason)
    write(RECORD, record)
    for path, reason in record["untested"].items():
        print(f"untested: {path} ({reason})")
    for name in record.get("pending", ()):
        print(f"had not ended: {name}")
    for complaint in complaints(record, ROOT, (ROOT / "README.md").read_text()):
        print(complaint)


if __name__ == "__main__":
    main()
