"""Generated digits judged: features, classes and recognition of samples beside those of recordings, impostors and silence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation import audio_metrics as metrics
from mamba_bio_audio.evaluation.judge import (
    SMALL,
    Judge,
    JudgeConfig,
    Kind,
    accuracy,
    impostors,
    joined_halves,
    judge_clips,
    train_judge,
)
from mamba_bio_audio.files import atomic_path, write_json
from mamba_bio_audio.files.cache import cache_folder
from mamba_bio_audio.files.tensors import not_finite
from mamba_bio_audio.pipelines.audio.digits import one_second
from mamba_bio_audio.pipelines.audio.speech_commands import DIGITS
from mamba_bio_audio.pipelines.scores import Digits

Protocol = Literal["plain", "paper"]
Clips = NDArray[np.float32]
# Version of the impostors that a recogniser learns from (`false_clips`): with another version it is trained anew.
_FALSE_CLIPS = 1
# A recognised clip is more likely to be one digit than anything else.
_LEAST_CONFIDENCE = 0.5
SAMPLES = {"plain": 2048, "paper": 10_240}
# A covariance, and the halves of IS, need two clips; this is how many `paper_selection` must choose from.
FEWEST = {"plain": 2, "paper": 8}


def samples_wanted(given: int | None, protocol: Protocol) -> int:
    """How many clips to generate; None is 2,048, and 10,240 for "paper".

    Raises:
        InputError: the protocol would leave fewer than two to score.
    """
    count = given or SAMPLES[protocol]
    if count < FEWEST[protocol]:
        left = len(metrics.paper_selection(np.zeros(count))) if protocol == "paper" else count
        raise InputError(
            f"--num-samples {count}: protocol {protocol} leaves {left} of these to score, and the scores need at least "
            f"2; give --num-samples {FEWEST[protocol]} or more"
        )
    return count


class Listeners(NamedTuple):
    """The judge, the recogniser, and what is kept of each (`load_judge`)."""

    judge: Judge
    judged_by: dict[str, Any]
    recogniser: Judge
    recognised_by: dict[str, Any]


def judge_config(kind: Kind | None, epochs: int | None, device: str, no_digit: bool = False) -> JudgeConfig:
    """How a judge, or with `no_digit` a recogniser, is trained where the user leaves it open (None)."""
    config = JudgeConfig() if (kind or ("resnext" if device == "cuda" else "small")) == "resnext" else SMALL
    # Half of what a recogniser hears are impostors.
    return config._replace(epochs=epochs or config.epochs * (2 if no_digit else 1))


def score_digits(
    made: Clips,
    chosen: NDArray[np.int64],
    digits: Digits,
    heard_by: Listeners,
    *,
    seed: int,
    resamples: int,
    asked: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Every score of generated clips, with rows that show what the scores are worth, and intervals (JSON-able).

    Args:
        made: generated clips (n, 16000).
        chosen: which of them are scored.
        digits: recorded clips.
        heard_by: trained on these.
        seed: random seed for impostors and scores.
        resamples: number of bootstrap draws.
        asked: the digit that each generated clip should be; None where none was asked for.
    """
    clips, labels = digits.clips, digits.labels
    false = impostors(clips["test"], seed)
    sets = {
        "generated": made[chosen],
        "train": clips["train"],
        "test": clips["test"],
        **false,
        "joined halves": joined_halves(clips["test"], labels["test"], seed),
        "silence": np.stack([one_second(np.zeros(0))] * 64),
        "one class": clips["train"][labels["train"] == labels["train"].min()],
    }
    rows = {name: judge_clips(heard_by.judge, heard) for name, heard in sets.items()}
    generated, train, test = rows["generated"], rows["train"], rows["test"]
    # Probabilities of the digits: the recogniser's last class is none of them.
    digit = {name: judge_clips(heard_by.recogniser, heard).probabilities[:, :-1] for name, heard in sets.items()}
    limits = {name: metrics.confidence_limit(digit[name]) for name in false}
    threshold = max(_LEAST_CONFIDENCE, *limits.values())
    reference = metrics.Reference(train, seed)
    n = min(len(generated.features), len(test.features))
    wanted = {} if asked is None else {"generated": asked[chosen], "test": labels["test"]}
    by_class = {name: asked_for(own, rows[name].probabilities, digit[name], threshold) for name, own in wanted.items()}
    return {
        **({"by_class": by_class} if by_class else {}),
        "rows": {name: {"n": len(row.features)} | reference.scores(row) for name, row in rows.items()},
        "intervals": reference.intervals(generated, resamples=resamples),
        "FID_at_equal_n": {
            "n": n,
            "generated": reference.frechet_distance(_any(generated.features, n, seed)),
            "test": reference.frechet_distance(_any(test.features, n, seed)),
        },
        "recognised": {
            "recogniser": heard_by.recognised_by,
            "limits": limits,
            "threshold": threshold,
            "shares": {name: metrics.recognised(p, threshold) for name, p in digit.items()},
            "judge_agrees": {
                name: _agreement(digit[name], rows[name].probabilities, threshold)
                for name in ("generated", "train", "test")
            },
        },
        "nearest_training_clip": {
            "generated_median": float(np.median(metrics.nearest_distances(generated.features, train.features))),
            "test_median": float(np.median(metrics.nearest_distances(test.features, train.features))),
        },
    }


def _any(features: NDArray[np.floating], n: int, seed: int) -> NDArray[np.floating]:
    """Some n of them: the first ones are those of a few digits, or the least likely."""
    return features[np.random.default_rng(seed).permutation(len(features))[:n]]


def asked_for(
    asked: NDArray[np.int64], judged: metrics.Array, digit: metrics.Array, threshold: float
) -> list[dict[str, Any]]:
    """How often clips are the digit that was asked for, by digit (JSON-able).

    Args:
        asked: the digit of each clip (n,).
        judged: the judge's probabilities (n, 10).
        digit: the recogniser's probabilities of the digits (n, 10).
        threshold: above which the recogniser accepts a clip.

    Returns:
        For each digit: its clips `n`; the shares that the judge `named` so, that were `recognised` as it, and `both`; and
        how many the judge `heard` as each digit.
    """
    named, known = judged.argmax(1), (digit.argmax(1) == asked) & (digit.max(1) > threshold)
    found = []
    for number, word in enumerate(DIGITS):
        own = asked == number
        if own.any():
            right = named[own] == number
            found.append(
                {
                    "digit": word,
                    "n": int(own.sum()),
                    "named": float(right.mean()),
                    "recognised": float(known[own].mean()),
                    "both": float((right & known[own]).mean()),
                    "heard": np.bincount(named[own], minlength=len(DIGITS)).tolist(),
                }
            )
    return found


def _agreement(digit: metrics.Array, judged: metrics.Array, threshold: float) -> float | None:
    """Share of the recognised clips for which the judge names the same digit; None where none is recognised."""
    sure = digit.max(1) > threshold
    return float((digit.argmax(1) == judged.argmax(1))[sure].mean()) if sure.any() else None


def load_judge(
    digits: Digits,
    described: dict[str, Any],
    config: JudgeConfig,
    device: str,
    environment: dict[str, Any],
    *,
    no_digit: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[Judge, dict[str, Any]]:
    """The judge of a data set from the user's cache, or trained now and kept there; and how well it does.

    Args:
        digits: recorded clips.
        described: `summary()` of their data module.
        config: training settings.
        device: "cpu" or "cuda".
        environment: versions and machine, kept with the judge.
        no_digit: load the recogniser; then also the share of impostors of test clips, by kind, that it refuses.
        progress: called with (epochs done, epochs in all).
    """
    clips, labels = digits.clips, digits.labels
    recipe = {
        "data": [file["sha256"] for file in described["files"]],
        "splits": described["splits_sha256"],
        **config._asdict(),
        **({"false_clips": _FALSE_CLIPS} if no_digit else {}),
    }
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "judges" / key
    if (folder / "judge.json").exists():
        return open_judge(folder, device)
    judge, history = train_judge(
        clips["train"],
        labels["train"],
        clips["valid"],
        labels["valid"],
        config,
        no_digit=no_digit,
        device=device,
        progress=progress,
    )
    note = recipe | {
        "parameters": judge.num_parameters(),
        "accuracy": {split: accuracy(judge, clips[split], labels[split]) for split in clips},
        "clips": {split: len(rows) for split, rows in clips.items()},
        **({"refused": _refusals(judge, clips["test"])} if no_digit else {}),
        "history": history,
        "cached": str(folder),
        "environment": environment,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "judge.safetensors") as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in judge.state_dict().items()}, temporary)
    # Last: its presence says that the weights are whole.
    write_json(folder / "judge.json", note)
    return judge, note


def _refusals(recogniser: Judge, clips: Clips) -> dict[str, float]:
    """Shares of impostors of some clips whose likeliest class is the last, no digit."""
    last = recogniser.head.out_features - 1
    return {name: accuracy(recogniser, made, np.full(len(made), last)) for name, made in impostors(clips).items()}


def open_judge(folder: Path, device: str = "cpu") -> tuple[Judge, dict[str, Any]]:
    """A judge that `load_judge` kept, and what it wrote of it.

    Raises:
        InputError: it is damaged.
    """
    try:
        note = json.loads((folder / "judge.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "judge.safetensors")
        judge = Judge(note["kind"], len(weights["head.bias"]))
        # The filters of the spectrum are computed, and may be called otherwise by another torchaudio.
        left = judge.load_state_dict(weights, strict=False)
        if any(not name.startswith("spectrum.") for name in (*left.missing_keys, *left.unexpected_keys)):
            raise ValueError(f"missing {left.missing_keys[:3]}, unexpected {left.unexpected_keys[:3]}")
        if (wrong := not_finite(weights)) is not None:
            raise ValueError(f"{wrong} holds what is not a number")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: a damaged judge ({error}); delete the folder, and it is trained anew") from None
    return judge.to(device).eval(), note
