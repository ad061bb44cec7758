"""Tables of what audio_runs.sh brought back, in Markdown, with each bar of issue 7 and whether it was met.

python scripts/audio_results.py FOLDER          the folder of *.tgz; unpack them to keep audio and curves
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path
from typing import Any


def read(archive: Path) -> dict[str, Any]:
    """The JSON files of a run's archive, by name without suffix."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar.getmembers() if member.name.endswith(".json")]
        return {Path(m.name).with_suffix("").as_posix(): json.load(tar.extractfile(m)) for m in members}  # type: ignore


def bits(run: dict[str, Any], split: str) -> str:
    """Bits of the model beside linear prediction."""
    found = run.get(f"evaluate-{split}")
    if found is None:
        return "-"
    return f"{found['model']['bits']:.4f} (LPC-32 {found['yardsticks']['LPC-32']:.4f}, {found['scored']:,} samples)"


def bar(text: str, met: bool) -> str:
    """One line of what was asked for."""
    return f"- {'met' if met else '**not met**'}: {text}"


def likelihoods(runs: dict[str, dict[str, Any]]) -> list[str]:
    """A row per run, and the bars of the piano."""
    lines = [
        "| run | length | steps | samples/s | best validation bits | valid | test |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        result, data = run["manifest"]["result"], run["manifest"]["data"]
        stopped = "" if result["stopped_by"] is None else f", stopped at {result['step']:,}"
        valid = "-" if result["valid_bits"] is None else f"{result['valid_bits']:.4f} at {result['best_step']:,}"
        speed = f"{result['tokens_per_second']:,.0f}"
        cells = [name, f"{data['length']:,}", f"{result['steps']:,}{stopped}", speed, valid]
        lines.append(f"| {' | '.join([*cells, bits(run, 'valid'), bits(run, 'test')])} |")
    lines.append("")
    for name, run in runs.items():
        found = run.get("evaluate-test")
        if name.startswith("piano") and found is not None:
            gain = found["yardsticks"]["LPC-32"] - found["model"]["bits"]
            lines.append(bar(f"{name}: {gain:+.4f} bits below LPC-32 on test", gain > 0))
    lengths = [run for name, run in runs.items() if name[6:].isdigit() and "evaluate-test" in run]
    if len(lengths) > 1:
        same = {(run["manifest"]["result"]["step"], run["evaluate-test"]["scored"]) for run in lengths}
        lines.append(
            bar(f"lengths: equal steps, the same {lengths[0]['evaluate-test']['scored']:,} samples", len(same) == 1)
        )
    return lines


def digits(scores: dict[str, Any]) -> list[str]:
    """The judge's table, and the bars of the digits."""
    columns = ("FID", "IS", "mIS", "AM", "NDB")
    shares, rows = scores["recognised"]["shares"], scores["rows"]
    judge, right = scores["judge"], scores["judge"]["accuracy"]
    recogniser, limits = scores["recognised"]["recogniser"], scores["recognised"]["limits"]
    lines = [
        f"Judge: {judge['kind']}, {judge['epochs']} epochs, right on {right['valid']:.1%} of validation clips and "
        f"{right['test']:.1%} of an unseen speaker's. Weights: {scores['which']}, {scores['test_bits']:.4f} bits "
        f"({scores['quantizer']}). Not SC09: band-limited to 4 kHz, five speakers. Recognised: one digit above "
        f"{scores['recognised']['threshold']:.3f} by a recogniser with a class of no digit, right on "
        f"{recogniser['accuracy']['test']:.1%} of the unseen speaker's.",
        "",
        f"| clips | n | {' | '.join(columns)} | recognised |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for name, row in rows.items():
        cells = " | ".join(f"{row[column]:.4g}" for column in columns)
        lines.append(f"| {name} | {row['n']:,} | {cells} | {shares[name]:.1%} |")
    theirs = max(shares[name] for name in limits)
    near, noise = scores["nearest_training_clip"], rows["noise"]["FID"]
    return [
        *lines,
        "",
        bar(f"2,048 generated clips: {scores['generated']:,}", scores["generated"] >= 2048),
        bar(
            f"recognised {shares['generated']:.1%}, three times theirs is {3 * theirs:.1%}",
            shares["generated"] >= 3 * theirs,
        ),
        bar(
            f"FID {rows['generated']['FID']:.4g}, half of noise's is {noise / 2:.4g}",
            rows["generated"]["FID"] < noise / 2,
        ),
        f"- nearest training clip: generated {near['generated_median']:.4g}, test {near['test_median']:.4g} (medians)",
    ]


def main(folder: Path) -> None:
    """Print everything that is there."""
    archives = [path for path in sorted(folder.glob("*.tgz")) if path.stem != "logs"]
    runs = {path.stem: found for path in archives if "result" in (found := read(path)).get("manifest", {})}
    if not runs:
        raise SystemExit(f"{folder}: no archive of a finished run")
    made = next(iter(runs.values()))["manifest"]
    print(f"{made['device']}, torch {made['torch']}, {made['precision']}, commit {made['commit']}, {made['started']}\n")
    print("\n".join(likelihoods(runs)))
    for run in runs.values():
        if "sc09/metrics" in run:
            print("\n" + "\n".join(digits(run["sc09/metrics"])))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
