"""`mba demo`: a packaged model, then training, evaluation and samples, offline, on packaged genomes or a synthetic tune."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from mamba_bio_audio.jobs.contract import Device, Options, Overrides, Result
from mamba_bio_audio.jobs.evaluate_results import LikelihoodResult
from mamba_bio_audio.text import show

COMMAND = "demo"
PANEL = "Start"
# At which the tune is sampled. Of 0.05 to 0.8 the one at which no note of two trained models was held on for long; lower and
# higher ones do so in one sample of ten, and the time for the other notes is gone.
_TEMPERATURE = 0.15
# A share of its notes in order at which it is called the tune, and one that its notes in any order would reach too.
_IN_ORDER, _BY_CHANCE = 0.7, 0.3
# What the packaged model samples and, of each packaged genome slice, scores: seconds on a CPU.
_SAMPLED_BASES, _SCORED_BASES = 60, 4096


class DemoOptions(Options):
    """Options of `mba demo`."""

    out: Path | None = Field(
        None, description="Run folder, default runs/demo or runs/demo-audio; an earlier demo is replaced."
    )
    audio: bool = Field(False, description="Learn a synthetic tune instead of genomes.")
    seed: int = Field(0, ge=0, description="Random seed for training and sampling.")
    overrides: Overrides = ()
    device: Device = "auto"


class Melody(BaseModel):
    """Notes of the tune, and those that a pitch tracker hears in the sample, as MIDI numbers.

    Attributes:
        learnt: notes of the training recordings, in order.
        heard: notes of the sample, in order.
        share: longest sequence that both have in order, as a share of the tune's notes.
        shuffled: the same share for the tune's notes in random order, on average.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    learnt: list[int]
    heard: list[int]
    share: float
    shuffled: float

    def text(self) -> str:
        """The notes by their names, and what to think of them."""
        from mamba_bio_audio.pipelines.audio.pitch import note_name

        if self.share >= _IN_ORDER and self.shuffled < _BY_CHANCE:
            verdict = "the model plays the tune."
        else:
            verdict = f"not the tune, which needs {_IN_ORDER:.0%}, and below {_BY_CHANCE:.0%} in random orders."
        return "\n".join(
            [
                f"the tune's {len(self.learnt)} notes:  {' '.join(map(note_name, self.learnt))}",
                f"heard in the sample:  {' '.join(map(note_name, self.heard)) or 'none'}",
                f"In the tune's order {self.share:.0%} of its notes are heard, in random orders {self.shuffled:.0%}: {verdict}",
            ]
        )


class DemoResult(Result):
    """What the demo made; a demo that was stopped lacks the rest.

    Attributes:
        run: folder.
        stopped_by: name of the signal that stopped the demo, or None.
        packaged: what a packaged model sampled, and its perplexity on each genome slice, before anything was trained.
        evaluation: as `mba evaluate --json` gives it.
        samples: file of samples.
        picture: file.
        melody: of the tune, how much of it was heard in the sample.
        seconds: duration of the whole demo.
        closing: where to look, and what to try next.
    """

    run: str
    stopped_by: str | None
    packaged: dict[str, Any] | None = None
    evaluation: SerializeAsAny[LikelihoodResult] | None = None
    samples: str | None = None
    picture: str | None = None
    melody: Melody | None = None
    seconds: float | None = None
    closing: str = Field("", exclude=True)

    def text(self) -> str:
        """The evaluation, the samples, and what to try next."""
        parts = [part.text() for part in (self.evaluation, self.melody) if part is not None]
        return "\n\n".join([*parts, *([self.closing] if self.closing else [])])

    def notes(self) -> str:
        """Where a demo that was stopped left its files."""
        return f"stopped by {self.stopped_by}; saved in {self.run}" if self.stopped_by else ""

    @property
    def exit_code(self) -> int:
        """130 where a signal stopped the demo."""
        return 130 if self.stopped_by else 0


@dataclass
class _Genomes:
    """The demo on DNA."""

    out: Path
    recipe: ClassVar[str] = "dna/demo"
    steps: ClassVar[tuple[str, ...]] = (
        "pretraining on five packaged genome slices",
        "evaluating held-out blocks beside Markov baselines",
        "sampling three sequences of 600 bases",
        "drawing the curves",
    )
    sample_name: ClassVar[str] = "samples.fa"
    draws: ClassVar[Mapping[str, Any]] = {"length": 600, "num_samples": 3}
    picture: ClassVar[str] = "curve.png"

    def show_packaged(self, device: str) -> dict[str, Any] | None:
        """What the first packaged model of DNA samples, and its perplexity on the start of each packaged genome slice."""
        import gzip
        from importlib.resources import files

        from mamba_bio_audio.inference.generate import generate
        from mamba_bio_audio.inference.score import log_likelihood
        from mamba_bio_audio.pipelines.scores import perplexity
        from mamba_bio_audio.run import packaged, saved
        from mamba_bio_audio.run.config import load_config

        name = next(iter(packaged.packaged_models(load_config(self.recipe).data.kind)))
        model: Any = saved.load_language_model(name).to(device)
        found = packaged.about(model)
        assert found is not None
        sample = model.codec.decode(generate(model, length=_SAMPLED_BASES)[0].cpu().numpy())
        slices = {}
        for path in sorted(Path(str(files("mamba_bio_audio") / "pipelines" / "dna" / "demo")).glob("*.fa.gz")):
            _, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
            slices[path.name.removesuffix(".fa.gz")] = "".join(lines)[:_SCORED_BASES]
        scored = log_likelihood(model, list(slices.values()))
        nats = -scored.total / scored.scored
        shown = {species: perplexity(float(value)) for species, value in zip(slices, nats, strict=True)}
        for line in (
            f"{name}, a packaged model, needs no training:",
            f"  it saw {found.saw}; {found.use}",
            f"  a sample: {sample}",
            f"  perplexity on {_SCORED_BASES:,} bases of each genome (4 is chance; the human ones it saw in training): "
            + ", ".join(f"{species} {value:.2f}" for species, value in shown.items()),
        ):
            show(line, file=sys.stderr, flush=True)
        return {"model": name, "sample": sample, "perplexity": shown}

    def make_data(self) -> list[str]:
        """Overrides that name the data: none, the recipe names the packaged slices."""
        return []

    def look(self, evaluation: Mapping[str, Any]) -> Melody | None:
        """Draw loss against step, beside the baselines."""
        from mamba_bio_audio.evaluation.figures import training_curve

        training_curve(self.out, dict(evaluation), self.out / self.picture)
        return None

    def closing(self, seconds: float) -> str:
        """Where to look, and what to try next."""
        file = self.out / self.sample_name
        records = [record.splitlines() for record in file.read_text().split(">")[1:]]
        return "\n".join(
            [
                f"samples ({file}), the first 60 bases of each:",
                *(f"  {record[0].split()[0]}  {record[1][:60]}" for record in records),
                "",
                f"picture: {self.out / self.picture}    finished in {seconds:.0f} s",
                "",
                "Try next:",
                "  mba prepare genome YOUR.fa --out data/yours        any FASTA, plain or BGZF",
                "  mba pretrain dna/tiny --set data.path=data/yours   minutes on a CPU",
                "  mba configs                                        the paper's seven sizes",
                f"  mba sample {self.out} --length 1000 --prompt ACGTACGT",
                f"  mba report {self.out}    one page about this run",
            ]
        )


@dataclass
class _Tune:
    """The demo on audio."""

    out: Path
    recipe: ClassVar[str] = "audio/demo"
    sample_name: ClassVar[str] = "sample.wav"
    steps: ClassVar[tuple[str, ...]] = (
        "writing performances of a synthetic tune and pretraining on them",
        "evaluating held-out performances beside yardsticks",
        "sampling what follows the tune's first note, one sample at a time",
        "listening for its notes and drawing them",
    )
    picture: ClassVar[str] = "spectrogram.png"

    def show_packaged(self, device: str) -> dict[str, Any] | None:
        """None: what a packaged model of audio makes takes minutes on a CPU."""
        return None

    @property
    def data(self) -> Path:
        """Folder of the recordings."""
        return self.out.with_name(f"{self.out.name}-synthetic-tune")

    @property
    def draws(self) -> Mapping[str, Any]:
        """The rest of the tune, after the first note of a performance that was held out."""
        from mamba_bio_audio.pipelines.synthetic.tones import FIRST_NOTE, samples_after_first_note

        length = samples_after_first_note()
        return {"length": length, "prompt": str(self.data / FIRST_NOTE), "temperature": _TEMPERATURE}

    def make_data(self) -> list[str]:
        """Write the recordings; overrides that name them."""
        from mamba_bio_audio.files import Maker, new_folder
        from mamba_bio_audio.pipelines.synthetic.tones import write_performances

        with new_folder(self.data, Maker("demo --audio"), force=True) as folder:
            write_performances(folder)
        return [f"data.path={self.data}"]

    def look(self, evaluation: Mapping[str, Any]) -> Melody:
        """Draw the spectrograms of a held-out performance and of the sample, and listen for the notes."""
        import soundfile

        from mamba_bio_audio.pipelines.audio.figures import spectrograms
        from mamba_bio_audio.pipelines.audio.pitch import by_chance, in_order, notes
        from mamba_bio_audio.pipelines.synthetic.tones import MELODY

        audio, rate = soundfile.read(self.out / self.sample_name)
        real, _ = soundfile.read(sorted(self.data.glob("synthetic-*.wav"))[-1])
        named = [("synthetic tune, held out", real), ("sampled by the model", audio)]
        spectrograms(named, rate, self.out / self.picture)
        heard = [note.midi for note in notes(audio, rate)]
        return Melody(
            learnt=list(MELODY), heard=heard, share=in_order(MELODY, heard), shuffled=by_chance(MELODY, heard)
        )

    def closing(self, seconds: float) -> str:
        """Where to listen and look, and what to try next."""
        file = self.out / self.sample_name
        return "\n".join(
            [
                f"listen: {file}    look: {self.out / self.picture}    finished in {seconds:.0f} s",
                f"The training data ({self.data}) are one synthetic tune, played at varying tempo and level: this shows that "
                "everything works, not what a model of music can do.",
                "",
                "Try next:",
                "  mba prepare audio RECORDINGS --out data/yours        any WAV, FLAC, OGG or MP3 files",
                "  mba pretrain audio/tiny --set data.path=data/yours   minutes on a CPU",
                f"  mba sample {self.out} --seconds 4 --prompt CLIP.wav --out next.wav",
                f"  mba report {self.out}    one page about this run",
            ]
        )


def run(options: DemoOptions) -> DemoResult:
    """Show a packaged model, then pretrain, evaluate and sample on five packaged genome slices; offline, minutes on two cores.

    With --audio: the same on a synthetic tune, ending in a playable file, its notes and a spectrogram.
    """
    from mamba_bio_audio.files import check_out, write_json
    from mamba_bio_audio.jobs import sample
    from mamba_bio_audio.jobs.common import counters, resolve_device
    from mamba_bio_audio.jobs.evaluate import EvaluateOptions, evaluate
    from mamba_bio_audio.jobs.evaluate_kept import keep
    from mamba_bio_audio.run.begin import Session
    from mamba_bio_audio.run.config import load_config
    from mamba_bio_audio.run.folder import run_maker
    from mamba_bio_audio.run.train import train

    device, start = resolve_device(options.device), time.perf_counter()
    out = options.out or Path("runs/demo-audio" if options.audio else "runs/demo")
    demo = _Tune(out) if options.audio else _Genomes(out)

    def begin(step: int) -> None:
        show(f"{step + 1}/{len(demo.steps)}  {demo.steps[step]}", file=sys.stderr, flush=True)

    # Only an earlier demo is replaced.
    check_out(out, run_maker("demo"), [], force=True)
    config = load_config(demo.recipe, [*demo.make_data(), f"seed={options.seed}", *options.overrides])
    packaged = demo.show_packaged(device)
    begin(0)
    arguments = ("demo", "--audio") if options.audio else ("demo",)
    trained = train(config, out, Session(device, force=True, quiet=options.quiet, command="demo", arguments=arguments))
    if trained.stopped_by:
        return DemoResult(run=str(out), stopped_by=trained.stopped_by, packaged=packaged)
    begin(1)
    with counters(options.quiet) as progress:
        evaluation = evaluate(EvaluateOptions(run=out, device=options.device), progress)
    assert isinstance(evaluation, LikelihoodResult)
    told = evaluation.to_json() | {"pictures": [demo.picture]}
    keep(out, evaluation, lambda: write_json(out / "evaluate-test.json", told))
    begin(2)
    samples = out / demo.sample_name
    drawn = sample.SampleOptions(
        run=out,
        out=samples,
        **demo.draws,
        seed=options.seed,
        device=options.device,
        force=True,
        report=False,
        quiet=options.quiet,
    )
    if stopped := sample.run(drawn).stopped_by:
        return DemoResult(run=str(out), stopped_by=stopped, packaged=packaged, evaluation=evaluation)
    begin(3)
    melody = demo.look(evaluation.to_json())
    seconds = time.perf_counter() - start
    return DemoResult(
        run=str(out),
        stopped_by=None,
        packaged=packaged,
        evaluation=evaluation,
        samples=str(samples),
        picture=str(out / demo.picture),
        **({} if melody is None else {"melody": melody}),
        seconds=seconds,
        closing=demo.closing(seconds),
    )
