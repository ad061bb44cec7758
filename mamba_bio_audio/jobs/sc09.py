"""Spoken digits judged: samples of a run beside training and test clips, noise, silence and the published rows."""

from __future__ import annotations

import hashlib
import json
import math
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation import audio_metrics as metrics
from mamba_bio_audio.evaluation.judge import (
    CLIP_SAMPLES,
    RATE_HZ,
    SMALL,
    Judge,
    JudgeConfig,
    Kind,
    accuracy,
    impostors,
    joined_halves,
    judge_clips,
    one_second,
    train_judge,
)
from mamba_bio_audio.evaluation.likelihood import evaluate_likelihood
from mamba_bio_audio.files import atomic_path, write_json
from mamba_bio_audio.inference.row_files import open_files_allowed
from mamba_bio_audio.jobs.evaluate import open_run, override_data
from mamba_bio_audio.jobs.sample import SampleOptions, sample
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.audio.classes import AudioClassesDataModule
from mamba_bio_audio.pipelines.audio.datamodule import AudioDataModule
from mamba_bio_audio.pipelines.audio.figures import spectrograms
from mamba_bio_audio.pipelines.audio.prepare import DIGITS, SPEECH_COMMANDS
from mamba_bio_audio.pipelines.dna.fasta_index import cache_folder
from mamba_bio_audio.pipelines.spans import Span
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.data import DataModule, open_data
from mamba_bio_audio.run.environment import environment
from mamba_bio_audio.run.saved import Which
from mamba_bio_audio.signals import Interrupted
from mamba_bio_audio.training.checkpoints import not_finite
from mamba_bio_audio.training.fit import resolve_precision

Protocol = Literal["plain", "paper"]
Clips = NDArray[np.float32]
# Version of the impostors that a recogniser learns from (`false_clips`): another one is trained anew.
_FALSE_CLIPS = 1
# Of a recognised clip: one digit is likelier than all else.
_LEAST_CONFIDENCE = 0.5
SAMPLES = {"plain": 2048, "paper": 10_240}
# A covariance, and halves of IS, need two clips; `paper_selection` leaves them of this many.
_FEWEST = {"plain": 2, "paper": 8}
# Gu & Dao 2023, table 4: NLL in bits, FID, IS, mIS, AM.
PUBLISHED = {
    "SampleRNN 35.0M": (2.042, 8.96, 1.71, 3.02, 1.76),
    "WaveNet 4.2M": (1.925, 5.08, 2.27, 5.80, 1.47),
    "SaShiMi 5.8M": (1.873, 1.99, 5.13, 42.57, 0.74),
    "WaveGAN 19.1M": (None, 2.03, 4.90, 36.10, 0.80),
    "DiffWave + SaShiMi 23.0M": (None, 1.42, 5.94, 69.17, 0.59),
    "Mamba 6.1M": (1.852, 0.94, 6.26, 88.54, 0.52),
    "Mamba 24.3M": (1.860, 0.67, 7.33, 144.9, 0.36),
    "train": (None, 0.00, 8.56, 292.5, 0.16),
    "test": (None, 0.02, 8.33, 257.6, 0.19),
}


def evaluate_sc09(
    run: Path,
    *,
    which: Which = "best",
    device: str = "cpu",
    kind: Kind | None = None,
    epochs: int | None = None,
    protocol: Protocol = "plain",
    num_samples: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    resamples: int = 100,
    overrides: Sequence[str] = (),
    progress: Callable[[str, int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Every score of a run's samples, with sanity rows, intervals and what makes them comparable (JSON-able).

    Args:
        run: a language model of audio, trained on clips in folders named zero to nine.
        which: weights of a run folder.
        device: "cpu" or "cuda".
        kind: judge; None is resnext on a GPU and small on a CPU.
        epochs: of the training of judge and recogniser; None is the published number, or 20 for the small judge, and
            twice that for the recogniser.
        protocol: "plain" scores every sample; "paper" sorts by log-likelihood and drops what the published rows drop.
        num_samples: generated clips; None is 2,048, and 10,240 for "paper".
        batch_size: clips generated at a time; None is 1,024 on a GPU, where a step costs hardly more for many clips,
            and 512 on a CPU; fewer where the machine allows fewer open files.
        seed: of samples and scores.
        resamples: of the bootstrap.
        overrides: `data.*=...`, as of `evaluate`.
        progress: called with (what, done, in all).

    Returns:
        The scores; also written to RUN/sc09/metrics.json beside the generated clips and a picture of the first ones.
    """

    def tell(what: str) -> Callable[[int, int | None], None]:
        return lambda done, total: progress(what, done, total) if progress is not None else None

    count = num_samples or SAMPLES[protocol]
    if count < _FEWEST[protocol]:
        left = len(metrics.paper_selection(np.zeros(count))) if protocol == "paper" else count
        raise InputError(
            f"--num-samples {count}: protocol {protocol} leaves {left} of these to score, and the scores need at least "
            f"2; give --num-samples {_FEWEST[protocol]} or more"
        )
    model, config, data, described = open_run(run, "test", which, device, None, overrides)
    data, clips, labels = _digits(run, data)
    settings = _judge_config(kind, epochs, device)
    judge, judged_by = load_judge(clips, labels, described, settings, device, tell("training the judge"))
    settings = _judge_config(kind, epochs, device, no_digit=True)
    recogniser, recognised_by = load_judge(
        clips, labels, described, settings, device, tell("training the recogniser"), no_digit=True
    )

    bits = evaluate_likelihood(
        model,
        data.evaluation_dataloader("test"),
        device,
        resolve_precision(config.train.precision, device),
        tell("scoring test clips"),
    ).nats_per_base / math.log(2)
    folder = run / "sc09"
    made, log_likelihood = _generated(
        model,
        run,
        folder,
        which,
        device,
        count,
        batch_size or open_files_allowed(1024 if device == "cuda" else 512),
        seed,
        tell("sampling"),
    )
    chosen = np.arange(len(made))
    if protocol == "paper":
        chosen = metrics.paper_selection(log_likelihood, seed)

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
    rows = {name: judge_clips(judge, heard) for name, heard in sets.items()}
    generated, train, test = rows["generated"], rows["train"], rows["test"]
    # Of the digits: the recogniser's last class is none.
    digit = {name: judge_clips(recogniser, heard).probabilities[:, :-1] for name, heard in sets.items()}
    limits = {name: metrics.confidence_limit(digit[name]) for name in false}
    threshold = max(_LEAST_CONFIDENCE, *limits.values())
    reference = metrics.Reference(train, seed)
    table = {name: {"n": len(row.features)} | reference.scores(row) for name, row in rows.items()}
    n = min(len(generated.features), len(test.features))
    result: dict[str, Any] = {
        "run": str(run),
        "which": saved.describe_which(config, which),
        "weights_sha256": weights_hash(model),
        "protocol": protocol,
        "generated": len(made),
        "scored": len(chosen),
        "seed": seed,
        "judge": judged_by,
        "quantizer": data.codec.description,
        "test_bits": bits,
        "rows": table,
        "intervals": reference.intervals(generated, resamples=resamples),
        "FID_at_equal_n": {
            "n": n,
            "generated": reference.frechet_distance(_any(generated.features, n, seed)),
            "test": reference.frechet_distance(_any(test.features, n, seed)),
        },
        "recognised": {
            "recogniser": recognised_by,
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
        "files": described["files"],
        "split_source": described["split_source"],
        "comparable": False,
        "not_comparable_because": _differences(described, data),
        "environment": environment(device),
    }
    write_json(folder / "metrics.json", result)
    first = [(f"sample {row}", made[row]) for row in range(min(4, len(made)))]
    spectrograms([("a test clip", clips["test"][0]), *first], RATE_HZ, folder / "first-samples.png")
    return result


def _any(features: NDArray[np.floating], n: int, seed: int) -> NDArray[np.floating]:
    """Some n of them: the first are those of a few digits, or the unlikeliest."""
    return features[np.random.default_rng(seed).permutation(len(features))[:n]]


def _agreement(digit: metrics.Array, judged: metrics.Array, threshold: float) -> float | None:
    """Share of the recognised clips of which the judge names the same digit; None where none is recognised."""
    sure = digit.max(1) > threshold
    return float((digit.argmax(1) == judged.argmax(1))[sure].mean()) if sure.any() else None


def prepare_judge(
    run: Path,
    *,
    device: str = "cpu",
    kind: Kind | None = None,
    epochs: int | None = None,
    overrides: Sequence[str] = (),
    progress: Callable[[str, int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Judge and recogniser of a run's recordings alone, trained now or earlier; the run need have no weights (JSON-able).

    Args:
        run: folder of a run, as soon as it has a `config.yaml`.
        device, kind, epochs, overrides, progress: as of `evaluate_sc09`, which then finds both.

    Returns:
        What is kept of the `judge` and of the `recogniser`.
    """
    config = override_data(saved.read_config(run), overrides, run)
    data = open_data(config, device)
    data.setup()
    data, clips, labels = _digits(run, data)

    def load(name: str) -> dict[str, Any]:
        def tell(done: int, total: int | None) -> None:
            if progress is not None:
                progress(f"training the {name}", done, total)

        no_digit = name == "recogniser"
        settings = _judge_config(kind, epochs, device, no_digit)
        return load_judge(clips, labels, data.summary(), settings, device, tell, no_digit=no_digit)[1]

    return {name: load(name) for name in ("judge", "recogniser")}


def describe_judge(notes: dict[str, Any]) -> str:
    """Judge and recogniser for people."""
    lines = []
    for name, note in notes.items():
        right = ", ".join(
            f"{split} {share:.1%} of {note['clips'][split]:,}" for split, share in note["accuracy"].items()
        )
        lines += [
            f"{name}: {note['kind']}, {note['parameters']:,} parameters, {note['epochs']} epochs; clips right: {right}",
            *([f"{name}: called no digit: {_shares(note['refused'])} of test clips"] if "refused" in note else []),
            f"{name}: kept in {note['cached']}; mba predict {note['cached']} FILE... asks it",
        ]
    return "\n".join(lines)


def _shares(values: dict[str, float | None]) -> str:
    return ", ".join(f"{name} -" if share is None else f"{name} {share:.1%}" for name, share in values.items())


def _digits(run: Path, data: DataModule) -> tuple[AudioDataModule, dict[str, Clips], dict[str, NDArray[np.int64]]]:
    """Clips and labels of every split, where the run is of spoken digits."""
    if not isinstance(data, AudioDataModule) or isinstance(data, AudioClassesDataModule):
        raise InputError(f"{run}: --metrics sc09 judges generated digits, and this run is no language model of audio")
    if data.codec.sample_rate_hz != RATE_HZ:
        raise InputError(f"{run}: the judge hears {RATE_HZ:,} Hz, and this run is at another rate")
    found = {split: labelled_clips(data, split) for split in ("train", "valid", "test")}
    return (
        data,
        {split: clips for split, (clips, _) in found.items()},
        {split: labels for split, (_, labels) in found.items()},
    )


def _judge_config(kind: Kind | None, epochs: int | None, device: str, no_digit: bool = False) -> JudgeConfig:
    config = JudgeConfig() if (kind or ("resnext" if device == "cuda" else "small")) == "resnext" else SMALL
    # Half of what a recogniser hears are impostors.
    return config._replace(epochs=epochs or config.epochs * (2 if no_digit else 1))


def labelled_clips(data: AudioDataModule, split: str) -> tuple[Clips, NDArray[np.int64]]:
    """The clips of a split as (n, 16000), and which digit each is, by the name of its folder."""
    clips, labels = [], []
    for span in data.evaluation_spans(split):
        name = span.record
        word = name.split("/")[-2] if "/" in name else ""
        if word not in DIGITS:
            raise InputError(f"{name}: --metrics sc09 needs clips in folders named {', '.join(DIGITS)}")
        end = min(span.end, span.start + CLIP_SAMPLES)
        clips.append(one_second(data.recordings.audio(Span(span.record, span.start, end))))
        labels.append(DIGITS.index(word))
    if not clips:
        raise InputError(f"the {split} split has no clip; the judge needs train, valid and test")
    return np.stack(clips), np.array(labels, np.int64)


def load_judge(
    clips: dict[str, Clips],
    labels: dict[str, NDArray[np.int64]],
    described: dict[str, Any],
    config: JudgeConfig,
    device: str,
    progress: Callable[[int, int | None], None] | None = None,
    *,
    no_digit: bool = False,
) -> tuple[Judge, dict[str, Any]]:
    """The judge of a data set from the user's cache, or trained now and kept there; and how well it does.

    With `no_digit` the recogniser, and also the share of impostors of test clips, by kind, that it refuses.
    """
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
        "environment": environment(device),
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


def _generated(
    model: Any,
    run: Path,
    folder: Path,
    which: Which,
    device: str,
    count: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int, int | None], None],
) -> tuple[Clips, NDArray[np.float64]]:
    """Clips (n, 16000) of one second and their log-likelihoods; sampled into RUN/sc09 once, and continued there."""
    weights = weights_hash(model)
    out = folder / f"samples-{weights[:8]}-{count}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        options = SampleOptions(
            run=run,
            out=out,
            which=which,
            length=CLIP_SAMPLES,
            num_samples=count,
            batch_size=min(batch_size, count),
            seed=seed,
            resume=out.with_name(f"{out.name}.part").exists(),
        )
        stopped = sample(model.to(device), options, device, progress).stopped_by
        if stopped:
            raise Interrupted(signal.Signals[stopped])
    file, clips = out / "samples.json", []
    try:
        log_likelihood = np.array(json.loads(file.read_text(encoding="utf-8"))["log_likelihood"])
        for row in range(count):
            file = out / f"sample-{row:05d}.flac"
            clips.append(one_second(soundfile.read(file, dtype="float32")[0]))
    except (OSError, ValueError, KeyError, soundfile.SoundFileError) as error:
        raise InputError(
            f"{file}: missing or damaged ({error}); delete the folder {out}, and its clips are made again"
        ) from None
    return np.stack(clips), log_likelihood


def _differences(described: dict[str, Any], data: AudioDataModule) -> list[str]:
    """Why the scores are not those of the published table."""
    reasons = ["the judge was trained here, not the published one"]
    counts = {split: described["splits"][split]["files"] for split in ("train", "valid", "test")}
    if counts not in [release.clips for release in SPEECH_COMMANDS.values()]:
        reasons.append(
            f"the clips are not SC09: {counts['train']:,} train, {counts['valid']:,} valid, {counts['test']:,} test"
        )
    if data.codec.variant != "sashimi":
        reasons.append(f"the bits are those of {data.codec.description}, the published ones of sashimi")
    return reasons


def describe_sc09(result: dict[str, Any]) -> str:
    """The scores for people."""
    right = result["judge"]["accuracy"]
    columns = ("FID", "IS", "mIS", "AM", "NDB")
    lines = [
        f"{result['scored']:,} of {result['generated']:,} samples, protocol {result['protocol']}, {result['which']} "
        f"weights; test {result['test_bits']:.4f} bits per sample ({result['quantizer']})",
        f"judge: {result['judge']['kind']}, {right['valid']:.1%} right on validation, {right['test']:.1%} on test "
        f"clips ({result['split_source']})",
        "",
        f"{'':<28}{'n':>8}" + "".join(f"{name:>11}" for name in columns) + f"{'recognised':>12}",
    ]
    for name, row in result["rows"].items():
        share = result["recognised"]["shares"][name]
        lines.append(f"{name:<28}{row['n']:>8,}" + "".join(f"{row[c]:>11.4g}" for c in columns) + f"{share:>12.1%}")
    spans = result["intervals"]
    shown = ", ".join(f"{name} {spans[name][0]:.4g} to {spans[name][1]:.4g}" for name in columns if name in spans)
    equal, near = result["FID_at_equal_n"], result["nearest_training_clip"]
    recognised = result["recognised"]
    recogniser = recognised["recogniser"]
    lines += [
        "",
        f"generated, 95 % intervals: {shown}",
        f"FID at n = {equal['n']:,}: generated {equal['generated']:.4g}, test {equal['test']:.4g}",
        f"median distance to the nearest training clip: generated {near['generated_median']:.4g}, "
        f"test {near['test_median']:.4g} (far smaller: copies)",
        f"recognised: one digit above {recognised['threshold']:.3f}, at least one half and so that at most 5 % of each "
        f"kind of impostors of test clips pass ({', '.join(recognised['limits'])})",
        f"of these the judge names the same digit for {_shares(recognised['judge_agrees'])}",
        f"recogniser: the judge's network with a class of no digit, {recogniser['accuracy']['valid']:.1%} right on "
        f"validation, {recogniser['accuracy']['test']:.1%} on test clips; refused {_shares(recogniser['refused'])}",
        "",
        "published (Gu & Dao 2023, table 4), not comparable: " + "; ".join(result["not_comparable_because"]),
        f"{'':<28}{'bits':>8}" + "".join(f"{name:>10}" for name in columns[:4]),
    ]
    for name, values in PUBLISHED.items():
        cells = "".join(
            "-".rjust(8 if i == 0 else 10) if v is None else f"{v:>{8 if i == 0 else 10}.4g}"
            for i, v in enumerate(values)
        )
        lines.append(f"{name:<28}{cells}")
    return "\n".join(lines)
