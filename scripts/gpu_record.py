"""The record of the last run of the GPU tests, `tests/gpu_record.json`: what CI, which has no GPU, can rely on.

On a machine with a GPU, at the root of a copy of this tree (N processes at once; `make` is not needed):

    python scripts/gpu_record.py run --out gpu_record.json --commit "$(git rev-parse HEAD)"

Here, with the file that came back; lists as untested what has changed since:

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
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
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
# Few, so that no process has much left when the others are done; not one, since each imports PyTorch.
TESTS_A_PROCESS = 6
README_SENTENCE = "Changed since the last run on a GPU, see `tests/gpu_record.json`:"


def watched(root: Path) -> dict[str, str]:
    """SHA-256 of each watched file, by its path from the root."""
    paths = sorted({path for pattern in WATCHED for path in root.glob(pattern)})
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


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
    if record["failed"] or not record["passed"]:
        found.append(f"the recorded GPU run has {record['passed']} passed and {record['failed']} failed tests")
    if listed and README_SENTENCE not in readme:
        found.append(f"README.md must say what no GPU has run; it begins: {README_SENTENCE}")
    if not listed and README_SENTENCE in readme:
        found.append(f"all has run on a GPU; take out of README.md: {README_SENTENCE}")
    return found


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


class Counts(NamedTuple):
    """Ends of tests, and which of them failed."""

    passed: int
    skipped: int
    failed: int
    failures: list[str]


def run_tests(root: Path, names: list[str], jobs: int, minutes: float) -> Counts:
    """Runs tests in `jobs` processes at once, a few in each; what has not ended in time has failed."""
    deadline = time.monotonic() + 60 * minutes
    counts, failures = {"passed": 0, "skipped": 0, "failed": 0}, []
    seconds: list[tuple[float, str]] = []
    shares = max(min(jobs, len(names)), math.ceil(len(names) / TESTS_A_PROCESS))

    with tempfile.TemporaryDirectory() as temporary:

        def process(i: int) -> tuple[Path, Path, list[str]]:
            report, log, given = Path(temporary, f"{i}.xml"), Path(temporary, f"{i}.log"), names[i::shares]
            log.touch()
            if time.monotonic() < deadline:
                command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
                with log.open("w") as out, contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run(
                        [*command, f"--junitxml={report}", *given],
                        cwd=root,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        env=os.environ | {"OMP_NUM_THREADS": "1"},
                        timeout=max(deadline - time.monotonic(), 0.1),
                    )
            return report, log, given

        with ThreadPoolExecutor(jobs) as pool:
            for report, log, given in pool.map(process, range(shares)):
                cases = list(ET.parse(report).getroot().iter("testcase")) if report.exists() else []
                failed = []
                for case in cases:
                    kinds = {child.tag for child in case}
                    kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
                    counts[kind] += 1
                    name = f"{case.get('classname')}::{case.get('name')}"
                    seconds.append((float(case.get("time", 0)), name))
                    if kind == "failed":
                        failed.append(name)
                if len(cases) < len(given):
                    counts["failed"] += len(given) - len(cases)
                    failed.append(f"{len(given) - len(cases)} that did not end, of {' '.join(given)}")
                if failed:
                    print(log.read_text()[-6000:])
                failures += failed
    print("slowest:", *(f"{time:.0f} s {name}" for time, name in sorted(seconds, reverse=True)[:12]), sep="\n  ")
    return Counts(**counts, failures=failures)


def run(root: Path, jobs: int, minutes: float) -> dict[str, Any]:
    """Runs all GPU tests and returns the record."""
    import torch
    import triton

    if not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    before = watched(root)
    counts = run_tests(root, gpu_tests(root, gpu_test_files(root)), jobs, minutes)
    if watched(root) != before:
        sys.exit("files changed during the run")
    return {
        "commit": None,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        **counts._asdict(),
        "files": before,
        "untested": {},
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
    of_run.add_argument("--minutes", type=float, default=9, help="tests that have not ended by then have failed")
    of_accept = commands.add_parser("accept", help="make a record that was written elsewhere that of this tree")
    of_accept.add_argument("file", type=Path)
    of_mark = commands.add_parser("mark", help="list what has changed since the recorded run as untested")
    of_mark.add_argument("reason")
    options = parser.parse_args()

    if options.command == "run":
        record = run(ROOT, options.jobs, options.minutes) | {"commit": options.commit or head(ROOT)}
        write(options.out, record)
        print(json.dumps({key: record[key] for key in record if key != "files"}, indent=1))
        sys.exit(1 if record["failed"] else 0)
    record = read(options.file if options.command == "accept" else RECORD)
    if options.command == "accept":
        if record["failed"] or not record["passed"]:
            sys.exit(f"{record['passed']} passed and {record['failed']} failed; a record needs a run without failures")
        record = mark(record, ROOT, f"changed after {record['commit'][:12]}")
    else:
        record = mark(record, ROOT, options.reason)
    write(RECORD, record)
    for path, reason in record["untested"].items():
        print(f"untested: {path} ({reason})")
    for complaint in complaints(record, ROOT, (ROOT / "README.md").read_text()):
        print(complaint)


if __name__ == "__main__":
    main()
