"""Digits that a model generates, judged: what `mba evaluate --metrics sc09` does."""

from __future__ import annotations

import json
import math
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import unfinished, write_json
from mamba_bio_audio.jobs.common import resolve_device
from mamba_bio_audio.jobs.digits_results import DigitsResult
from mamba_bio_audio.jobs.evaluate_kept import keep
from mamba_bio_audio.pipelines.contract import Progress
from mamba_bio_audio.pipelines.scores import Digits
from mamba_bio_audio.signals import Interrupted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mamba_bio_audio.evaluation.digits import Listeners
    from mamba_bio_audio.jobs.evaluate import EvaluateOptions, Opened

# Seed of the generated digits and of their scores, and resamples of the bootstrap of these.
SEED, RESAMPLES = 0, 100


def evaluate_digits(opened: Opened, count: int, progress: Progress) -> DigitsResult:
    """Generate clips, judge them, and keep what was found in the run folder.

    Args:
        opened: the run of a language model of digits.
        count: clips at least; a model with classes makes equally many of each.
        progress: called with (what, done, in all).
    """
    import numpy as np

    from mamba_bio_audio.evaluation import digits as judging
    from mamba_bio_audio.evaluation.audio_metrics import paper_selection
    from mamba_bio_audio.evaluation.likelihood import evaluate_likelihood
    from mamba_bio_audio.models.weights import weights_hash
    from mamba_bio_audio.pipelines.audio.digits import RATE_HZ
    from mamba_bio_audio.pipelines.audio.figures import spectrograms
    from mamba_bio_audio.pipelines.audio.speech_commands import DIGITS
    from mamba_bio_audio.run import saved
    from mamba_bio_audio.run.environment import environment

    options, classes = opened.options, opened.model.classes
    each = -(-count // max(1, len(classes)))
    count = each * max(1, len(classes))
    if options.guidance is not None and not classes:
        raise InputError(f"{options.run}: this model was trained without classes (model.classes); leave --guidance out")
    names = ("temperature", "top_p", "guidance")
    draws = {name: value for name in names if (value := getattr(options, name)) is not None}
    data, clips = opened.data, opened.domain.digits(opened.data)
    heard_by = listeners(options, clips, opened.described, progress)
    bits = evaluate_likelihood(
        opened.model,
        data.evaluation_dataloader("test"),
        opened.device,
        opened.precision,
        partial(progress, "scoring test clips"),
    ).nats_per_base / math.log(2)
    made, log_likelihood = _generated(opened, count, draws, progress)
    asked = np.repeat([DIGITS.index(name) for name in classes], each) if classes else None
    chosen = np.arange(len(made)) if options.protocol == "plain" else paper_selection(log_likelihood, SEED)
    result = DigitsResult(
        run=str(options.run),
        which=saved.describe_which(opened.config, options.which),
        weights_sha256=weights_hash(opened.model),
        protocol=options.protocol,
        **draws,
        generated=len(made),
        scored=len(chosen),
        seed=SEED,
        judge=heard_by.judged_by,
        quantizer=data.codec.description,
        test_bits=bits,
        **judging.score_digits(made, chosen, clips, heard_by, seed=SEED, resamples=RESAMPLES, asked=asked),
        **opened.source(),
        comparable=False,
        not_comparable_because=clips.differences,
        environment=environment(opened.device),
    )

    def write() -> None:
        write_json(options.run / "sc09" / "metrics.json", result.to_json())
        first = [(f"sample {row}", made[row]) for row in range(min(4, len(made)))]
        picture = options.run / "sc09" / "first-samples.png"
        spectrograms([("a test clip", clips.clips["test"][0]), *first], RATE_HZ, picture)

    return keep(options.run, result, write)


def listeners(options: EvaluateOptions, clips: Digits, described: dict[str, Any], progress: Progress) -> Listeners:
    """Judge and recogniser of some clips, from the cache or trained now."""
    from mamba_bio_audio.evaluation.digits import Listeners, judge_config, load_judge
    from mamba_bio_audio.run.environment import environment

    device = resolve_device(options.device)
    found: list[Any] = []
    for name, no_digit in (("judge", False), ("recogniser", True)):
        settings = judge_config(options.judge, options.judge_epochs, device, no_digit)
        told = partial(progress, f"training the {name}")
        found += load_judge(clips, described, settings, device, environment(device), no_digit=no_digit, progress=told)
    return Listeners(*found)


def _generated(
    opened: Opened, count: int, draws: dict[str, float], progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Clips (n, 16000) of one second and their log-likelihoods; sampled into RUN/sc09 once, and continued there."""
    import numpy as np
    import soundfile

    from mamba_bio_audio.inference.row_files import open_files_allowed
    from mamba_bio_audio.jobs.sample import SampleOptions, sample
    from mamba_bio_audio.models.weights import weights_hash
    from mamba_bio_audio.pipelines.audio import digits

    folder, weights = opened.options.run / "sc09", weights_hash(opened.model)
    classes = opened.model.classes
    how = "".join(f"-{name.replace('_', '-')}-{value:g}" for name, value in draws.items())
    out = folder / f"samples-{weights[:8]}-{count}-{SEED}{how}"
    folder.mkdir(parents=True, exist_ok=True)
    if not out.exists():
        # On a GPU a step costs hardly more for many clips.
        at_once = open_files_allowed(1024 if opened.device == "cuda" else 512)
        options = SampleOptions(
            run=opened.options.run,
            out=out,
            which=opened.options.which,
            length=opened.model.codec.sample_rate_hz * digits.CLIP_SAMPLES // digits.RATE_HZ,
            class_=("all",) if classes else (),
            num_samples=count // max(1, len(classes)),
            batch_size=min(at_once, count),
            seed=SEED,
            **draws,
            resume=unfinished(out).exists(),
        )
        model = opened.model.to(opened.device)
        stopped = sample(model, options, opened.device, partial(progress, "sampling")).stopped_by
        if stopped:
            raise Interrupted(signal.Signals[stopped])
    file, clips = out / "samples.json", []
    try:
        log_likelihood = np.array(json.loads(file.read_text(encoding="utf-8"))["log_likelihood"])
        for row in range(count):
            file = out / f"sample-{row:05d}.flac"
            clips.append(digits.judged(*soundfile.read(file, dtype="float32")))
    except (OSError, ValueError, KeyError, soundfile.SoundFileError) as error:
        raise InputError(
            f"{file}: missing or damaged ({error}); delete the folder {out}, and its clips are made again"
        ) from None
    return np.stack(clips), log_likelihood
