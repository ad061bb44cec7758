"""Generated digits judged by networks that are trained once and kept.

    python benchmarks/digits_judged.py DATA OUT.csv NAME=CLIPS.npz...

DATA is the folder of recordings (benchmarks/device/audio_kit.sh digits, unpacked), CLIPS.npz has the levels of clips and the
digit that each was asked to be, as benchmarks/device/sound_runs.py draws them. Judges and recognisers with seeds 0 to 2
(`small`: they train in minutes on a CPU) come from the cache, MAMBA_BIO_AUDIO_CACHE, by the hash of recordings, splits and
settings, or are trained and kept there.

OUT.csv has for each set of clips and each judge, as rows (set, judge, measure, value):

    recognised, right   shares that the recogniser takes for a digit, and for the digit that was asked for while the judge says
                        so too; also of recorded clips, of impostors, and of halves of two digits joined, of the speakers that
                        were trained on (validation clips) and of another (test clips)
    FID                 to the validation clips, of speakers that were trained on, from as many clips (mean of nine draws)
    nearest             median distance to the nearest training clip, in the judge's features
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np

from mamba_bio_audio.evaluation import audio_metrics as metrics
from mamba_bio_audio.evaluation.digits import Listeners, asked_for, judge_config, load_judge
from mamba_bio_audio.evaluation.judge import impostors, joined_halves, judge_clips
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig
from mamba_bio_audio.pipelines.audio.digits import RATE_HZ, digits, judged
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.frechet import distance_of_moments, moments
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.data import open_data
from mamba_bio_audio.run.environment import environment

SEEDS, DRAWS = (0, 1, 2), 9


def recorded(folder: Path) -> tuple[Any, Any]:
    """The data module of the recordings as a judge hears them, and their clips."""
    data = open_data(load_config("audio/digits", [f"data.path={folder}", f"train.tokens_per_step={RATE_HZ}"]), "cpu")
    data.setup()
    return data, digits(data)


def generated(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Clips (n, 16000) and the digits that they should be, of levels at 8 kHz."""
    codec = AudioCodec.of(AudioDataConfig(sample_rate_hz=8000, start="token"))
    with np.load(path) as found:
        clips = [judged(codec.decode(row.astype(np.int64)), codec.sample_rate_hz) for row in found["levels"]]
        return np.stack(clips), found["asked"].astype(np.int64)


def frechet(ours: np.ndarray, theirs: np.ndarray) -> float:
    """FID to `theirs` of as many of ours, the mean of draws that are disjoint as long as there are enough."""
    order, size = np.random.default_rng(0).permutation(len(ours)), len(theirs)
    reference = moments(theirs)
    found = []
    for draw in range(DRAWS):
        at = np.arange(draw * size, (draw + 1) * size) % len(order)
        found.append(distance_of_moments(*reference, *moments(ours[order[at]])))
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("clips", nargs="+", metavar="NAME=CLIPS.npz")
    options = parser.parse_args()
    data, clips = recorded(options.data)
    sets = {f"recorded, {split}": (clips.clips[split], clips.labels[split]) for split in ("train", "valid", "test")}
    for given in options.clips:
        name, _, path = given.partition("=")
        sets[name] = generated(Path(path))
    for split, who in (("valid", "seen speakers"), ("test", "another speaker")):
        halves = joined_halves(clips.clips[split], clips.labels[split], 0)
        sets[f"joined halves, {who}"] = halves, np.zeros(0, np.int64)
    false = {f"impostors, {name}": heard for name, heard in impostors(clips.clips["test"], 0).items()}
    sets |= {name: (heard, np.zeros(0, np.int64)) for name, heard in false.items()}

    def listener(seed: int, no_digit: bool) -> tuple[Any, dict[str, Any]]:
        config = judge_config("small", None, "cpu", no_digit)._replace(seed=seed)
        return load_judge(clips, data.summary(), config, "cpu", environment("cpu"), no_digit=no_digit)

    rows: list[tuple[str, int, str, str]] = []
    for seed in SEEDS:
        ears = Listeners(*listener(seed, False), *listener(seed, True))
        heard_as = {name: judge_clips(ears.judge, heard) for name, (heard, _) in sets.items()}
        digit = {name: judge_clips(ears.recogniser, heard).probabilities[:, :-1] for name, (heard, _) in sets.items()}
        threshold = max(0.5, *(metrics.confidence_limit(digit[name]) for name in false))
        for who, note in (("judge", ears.judged_by), ("recogniser", ears.recognised_by)):
            rows += [(who, seed, f"accuracy, {split}", f"{share:.4f}") for split, share in note["accuracy"].items()]
        rows.append(("recogniser", seed, "threshold", f"{threshold:.4f}"))
        train, valid = heard_as["recorded, train"].features, heard_as["recorded, valid"].features
        for name, (heard, asked) in sets.items():
            own = heard_as[name]
            if seed == SEEDS[0]:
                rows.append((name, seed, "clips", str(len(heard))))
            rows.append((name, seed, "recognised", f"{metrics.recognised(digit[name], threshold):.4f}"))
            if len(asked):
                by_class = asked_for(asked, own.probabilities, digit[name], threshold)
                right = sum(row["both"] * row["n"] for row in by_class) / len(heard)
                rows.append((name, seed, "right", f"{right:.4f}"))
                if seed == SEEDS[0] and name in (
                    "recorded, test",
                    *(given.partition("=")[0] for given in options.clips),
                ):
                    rows += [(name, seed, f"right, {row['digit']}", f"{row['both']:.4f}") for row in by_class]
            if name != "recorded, valid" and len(heard) >= len(valid):
                rows.append((name, seed, "FID", f"{frechet(own.features, valid):.3f}"))
            if name != "recorded, train":
                near = np.median(metrics.nearest_distances(own.features, train))
                rows.append((name, seed, "nearest", f"{near:.4f}"))
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("set", "judge", "measure", "value"))
        writer.writerows(rows)
    for name, seed, measure, value in rows:
        print(f"{name:<32} {seed} {measure:<18} {value}")


if __name__ == "__main__":
    main()
