"""Makes a packaged model from a run: `python scripts/package_model.py RUN scripts/packaged/NAME.yaml [--data FOLDER]`.

Writes `mamba_bio_audio/packaged/NAME` (or --out) anew: the weights in bf16, `config.json`, tokenizer, and a card with what the
YAML file says (`About` of run/packaged.py). The rounded weights are evaluated on both held-out splits, once: if the packaged
folder holds their scores already, as after a change of the YAML file alone, these are kept. RUN may be a packaged folder
itself. What simple models reach is taken from the table that the YAML file names under `yardsticks` (benchmarks/yardsticks.py;
for audio `FILE#DATA`, benchmarks/lpc_orders.py), else from the run's own evaluations of these splits, else measured.

Ten million bases take 16 layers x 256 an hour of a CPU core and a GPU half a minute: on a GPU machine, where the run is, or
for weights that are packaged already

    python3 scripts/package_model.py mamba_bio_audio/packaged/NAME scripts/packaged/NAME.yaml --data FOLDER --out $OUT/NAME

With --unscored they are not, and the card says so until it is made again. The weights of all packaged models together may
take 31 MB (tests/run/test_packaged.py), of which a wheel has four fifths.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
from pathlib import Path
from typing import Any

from mamba_bio_audio.files import Maker, new_folder, write_json
from mamba_bio_audio.jobs.evaluate import EvaluateOptions, evaluate
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.plain_yaml import parse
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.export import export
from mamba_bio_audio.run.packaged import CHECK_BASES, CHECK_DATA, CHECK_LENGTH, FOLDER, About

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
# Of the manifest, what tells of the machine and the commands rather than of the model.
LEFT_OUT = ("sessions", "command", "platform", "python", "numpy", "evaluations")


def main(run: Path, facts: Path, data: Path | None, out: Path | None, scored: bool = True) -> Path:
    """Make the folder; returns it."""
    said = parse(facts.read_text(encoding="utf-8"), str(facts))
    bars = _bars(said.pop("yardsticks", None))
    out = out or FOLDER / said["name"]
    model = saved.load(run)
    manifest = {key: value for key, value in model.manifest.items() if key not in LEFT_OUT}
    if str(manifest.get("commit")).endswith("-dirty"):
        # It would name code that did not run.
        del manifest["commit"]
    # Paths are those of the machine that trained it.
    place = Path(model.config.data.path).name
    named = model.config.data.model_copy(update={"path": place})
    described = manifest.get("data", {})
    for file in described.get("files", []):
        file["path"] = f"{place}/{file['name']}"
    if "split_source" in described:
        described["split_source"] = described["split_source"].replace(str(model.config.data.path), place)
    # The validation of a training is that of the weights before they were rounded.
    manifest["result"] = {"step": manifest.get("result", {}).get("step")}
    with tempfile.TemporaryDirectory() as folder:
        rounded = Path(folder) / said["name"]
        model.manifest = manifest
        export(model, rounded, precision="bf16")
        model = saved.load(rounded)
        weights = weights_hash(model)
        scores = _scores_in(out, weights)
        if not scores and scored:
            scores = _evaluate(rounded, saved.read_evaluations(run), data, bars)
        check = _check(rounded)
    model.config = model.config.model_copy(update={"data": named})
    model.manifest = manifest | {
        "about": About(**said, weights_sha256=weights, check_nats=check).model_dump(mode="json")
    }
    with new_folder(out, Maker("export"), force=True) as work:
        doubts = export(model, work, evaluations=scores, precision="bf16")
    assert not doubts, doubts
    return out


def _scores_in(folder: Path, weights: str) -> dict | None:
    if not (folder / "config.json").exists():
        return None
    scores = saved.load(folder).manifest.get("evaluations", {})
    return scores if scores and all(found["weights_sha256"] == weights for found in scores.values()) else None


def _bars(table: str | None) -> dict[str, dict[str, Any]]:
    """By split, the Markov model that validation chose and copies within the longest context, or linear prediction."""
    bars: dict[str, dict[str, Any]] = {"valid": {}, "test": {}}
    if table is None:
        return bars
    table, _, data = table.partition("#")
    if data:
        with (RESULTS / table).open(newline="") as file:
            for row in csv.DictReader(file):
                if (row["data"], row["what"]) == (data, "tuned") and row["split"] in bars:
                    score = {"nats": float(row["bits"]) * math.log(2), "bits": float(row["bits"])}
                    bars[row["split"]] = {f"linear prediction of order {row['order']}": score}
        return bars
    with (RESULTS / table).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["locus"] == "all"]
    for row in rows:
        score = {name: float(row[name]) for name in ("nats", "bits", "perplexity")}
        if row["chosen"] == "True":
            bars[row["split"]][f"Markov order {row['size']}"] = score
    for split, found in bars.items():
        copies = [row for row in rows if (row["yardstick"], row["split"]) == ("copies", split)]
        if copies:
            row = max(copies, key=lambda row: int(row["size"]))
            score = {name: float(row[name]) for name in ("nats", "bits", "perplexity")}
            found[f"copies within {int(row['size']):,}"] = score
    return bars


def _evaluate(folder: Path, before: dict, data: Path | None, bars: dict[str, dict[str, Any]]) -> dict:
    overrides = () if data is None else (f"data.path={data}",)
    for split in ("valid", "test"):
        simple = split not in before and not bars[split]
        found = evaluate(EvaluateOptions(run=folder, split=split, overrides=overrides, baselines=simple))
        print(found.text(), flush=True)
        write_json(folder / f"evaluate-{split}.json", found.to_json())
    return {
        split: before.get(split, {}) | found | bars[split] for split, found in saved.read_evaluations(folder).items()
    }


def _check(folder: Path) -> float | None:
    """What `CHECK` gives."""
    return evaluate(
        EvaluateOptions(
            run=folder,
            baselines=False,
            length=CHECK_LENGTH,
            max_bases=CHECK_BASES,
            overrides=CHECK_DATA,
            device="cpu",
        )
    ).model.nats


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the run's data, where it is not where it was")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--unscored", action="store_true", help="do not evaluate the splits")
    given = parser.parse_args()
    print(main(given.run, given.facts, given.data, given.out, not given.unscored))
