"""Makes a packaged model from a run: `python scripts/package_model.py RUN scripts/packaged/NAME.yaml [--data FOLDER]`.

Writes `mamba_bio_audio/packaged/NAME` (or --out) anew: the weights in bf16, `config.json`, tokenizer, and a card with what the
YAML file says (`About` of run/packaged.py). The rounded weights are evaluated on both held-out splits, once: if the packaged
folder holds their scores already, as after a change of the YAML file alone, these are kept. What Markov models reach is taken
from the run's own evaluations of these splits, where there are any.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from mamba_bio_audio.files import Maker, new_folder, write_json
from mamba_bio_audio.jobs.evaluate import EvaluateOptions, evaluate
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.plain_yaml import parse
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.export import export
from mamba_bio_audio.run.packaged import CHECK_BASES, CHECK_DATA, FOLDER, About

# Of the manifest, what tells of the machine and the commands rather than of the model.
LEFT_OUT = ("sessions", "command", "platform", "python", "numpy", "evaluations")


def main(run: Path, facts: Path, data: Path | None, out: Path | None) -> Path:
    """Make the folder; returns it."""
    said = parse(facts.read_text(encoding="utf-8"), str(facts))
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
        scores = _scores_in(out, weights) or _evaluate(rounded, saved.read_evaluations(run), data)
        check = _check(rounded) if model.config.data.kind == "dna" else None
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


def _evaluate(folder: Path, before: dict, data: Path | None) -> dict:
    overrides = () if data is None else (f"data.path={data}",)
    for split in ("valid", "test"):
        found = evaluate(EvaluateOptions(run=folder, split=split, overrides=overrides, baselines=split not in before))
        print(found.text(), flush=True)
        write_json(folder / f"evaluate-{split}.json", found.to_json())
    return {split: before.get(split, {}) | found for split, found in saved.read_evaluations(folder).items()}


def _check(folder: Path) -> float | None:
    """What `CHECK` gives."""
    how = EvaluateOptions(run=folder, baselines=False, max_bases=CHECK_BASES, overrides=CHECK_DATA, device="cpu")
    return evaluate(how).model.nats


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("facts", type=Path)
    parser.add_argument("--data", type=Path, help="folder of the run's data, where it is not where it was")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    print(main(given.run, given.facts, given.data, given.out))
