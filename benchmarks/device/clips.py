"""Clips that `mba sample` wrote, beside held-out recordings: how many are inside, by each measure, clip by clip.

    python3 benchmarks/device/clips.py RUN CLIPS --data FOLDER --first 10 --csv FILE

As `mba report`, for where the data of the run are not, but held-out recordings are. Counted are the first clips by number;
FILE has a row a clip.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from mamba_bio_audio.pipelines.audio.measures import JUDGED
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run.described import read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("clips", type=Path, help="folder that mba sample wrote")
    parser.add_argument("--data", help="prepared folder; default: that of the run")
    parser.add_argument("--first", type=int, default=10, help="clips that are counted")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    config = read_config(options.run)
    data = config.data.model_copy(update={"path": options.data}) if options.data else config.data
    domain = domain_of(data.kind)
    report = domain.measure(
        options.clips, data, domain.open(data, length=config.train.length), lambda done, total: None
    )
    print(domain.show_measured(report), flush=True)
    rows = []
    for clip in report["rows"]:
        whole = clip["pieces"][-1]
        values = {name: whole["values"][name][0] for name in JUDGED}
        inside = {f"inside_{name}": int(name not in whole["outside"][0]) for name in JUDGED}
        rows.append({"file": clip["file"], "seconds": whole["seconds"], **values, **inside})
    for count in {options.first, len(rows)}:
        own = {name: sum(row[f"inside_{name}"] for row in rows[:count]) for name in JUDGED}
        print(f"of the first {min(count, len(rows))}: {own}", flush=True)
    if options.csv:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
