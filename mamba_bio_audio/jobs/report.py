"""One self-contained page about a run: `mba report`."""

from __future__ import annotations

import base64
import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from mamba_bio_audio import __version__
from mamba_bio_audio.errors import InputError, as_written
from mamba_bio_audio.evaluation.figures import learning_curves
from mamba_bio_audio.files import inside, write_text
from mamba_bio_audio.jobs.context import describe_context
from mamba_bio_audio.jobs.evaluate import describe_evaluation
from mamba_bio_audio.jobs.evaluate_classes import describe as describe_classes
from mamba_bio_audio.jobs.report_audio import Clip, clips_of, find_samples, judged_samples
from mamba_bio_audio.jobs.sample_report import report_on_samples, report_path
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.dna.samples import describe_samples, kmer_spectra
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import RunConfig, to_yaml
from mamba_bio_audio.run.saved import Which
from mamba_bio_audio.text import printable

SAMPLES_NAME = "samples.fa"


@dataclass
class Image:
    """A picture in the page."""

    alt: str
    data: str  # base64 of a PNG


@dataclass
class Section:
    """A part of the page; what is empty is not shown."""

    title: str
    text: str = ""
    rows: Sequence[tuple[str, str]] = ()
    pre: str = ""
    images: list[Image] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)


def report(
    run: Path,
    out: Path,
    *,
    samples: Path | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> list[str]:
    """Write a page with what was trained on what, curves, baselines, samples and provenance.

    Args:
        run: run folder.
        out: HTML file, replaced where it exists.
        samples: FASTA of samples; None takes `samples.fa` of the run folder if it is there. Measured, unless its report
            is there already. For audio a folder or file that `mba sample` wrote.
        progress: called with (bases read, None) while samples are measured.

    Returns:
        Titles of the page's sections.
    """
    from jinja2 import Environment, StrictUndefined

    config, manifest = saved.read_config(run), saved.read_manifest(run)
    weights = _Weights(run, config)
    with as_written(run / "manifest.json", "restore the file, or move it away"):
        about = [_training(config, manifest, weights), _data(config, manifest)]
        provenance = _provenance(manifest)
    sections = [*about, _curves(run, _per(config)), *_evaluations(run, weights)]
    if config.data.kind == "audio":
        sections += _audio(run, samples or find_samples(run), weights)
        samples = None
    elif samples is None and inside(run, SAMPLES_NAME).exists():
        samples = run / SAMPLES_NAME
    if samples is not None:
        sections.append(_samples(run, samples, progress))
    elif config.data.kind == "dna":
        sections.append(Section("Samples", f"None yet: mba sample {run} --length 1000 --out {run / SAMPLES_NAME}"))
    sections += [provenance, Section("Configuration", pre=to_yaml(config))]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=_shown)
    template = environment.from_string((files("mamba_bio_audio.jobs") / "report.html").read_text(encoding="utf-8"))
    page = template.render(
        title=config.name or run.name, lead=config.description, sections=sections, version=__version__
    )
    write_text(out, page)
    return [section.title for section in sections]


class _Weights:
    """Whether scores are of the weights that the run holds now; a resumed run has others."""

    def __init__(self, run: Path, config: RunConfig) -> None:
        self.run, self.config = run, config
        self._hashes: dict[Which, str | None] = {}

    def remark(self, scores: dict[str, Any], which: Which = "best") -> tuple[str, bool]:
        """What to say of scores (of `which` weights, where they do not say so themselves), and whether to show them."""
        recorded = scores.get("weights_sha256")
        if recorded is None:
            return "An earlier version wrote these scores; which weights they are of is unknown.", True
        present = self._present(scores.get("which", which))
        if present is None:
            return "The weights that these scores are of cannot be read any more.", True
        if recorded != present:
            return f"Scores of other weights than the run holds now, left out: mba evaluate {self.run}", False
        return "", True

    def _present(self, which: str) -> str | None:
        # Judged samples give the weights in words.
        name = next((w for w in get_args(Which) if which in (w, saved.describe_which(self.config, w))), None)
        if name is None:
            return None
        if name not in self._hashes:
            try:
                self._hashes[name] = weights_hash(saved.load(self.run, name))
            except InputError:
                self._hashes[name] = None
        return self._hashes[name]


def _training(config: RunConfig, manifest: dict[str, Any], weights: _Weights) -> Section:
    train, model = config.train, config.model
    result = manifest.get("result", {})
    done = result.get("step")
    rows = [
        ("model", f"{model.mixer}, {model.num_layers} layers x {model.d_model}"),
        ("length", f"{train.length:,}"),
        ("steps", f"{train.steps:,} of {train.tokens_per_step:,} positions: {train.steps * train.tokens_per_step:,}"),
        ("done", "the run has not come to an end" if done is None else f"{done:,} steps"),
        ("rate", f"{train.lr:g}, {train.warmup:.0%} warm-up, cosine to {min(train.lr, train.lr_min):g}"),
        ("AdamW", f"betas {train.betas[0]:g} and {train.betas[1]:g}, decay {train.weight_decay:g}, clip {train.clip}"),
        ("seed", f"{config.seed}"),
    ]
    for stage in manifest.get("length_stages", [])[:-1]:
        rows.append((f"at length {stage['length']:,}", f"steps {stage['start'] + 1:,} to {stage['stop']:,}"))
    if result.get("valid_nats") is not None:
        nats = result["valid_nats"]
        remark, shown = weights.remark(result)
        text = (
            f"{nats:.4f} nats, {nats / math.log(2):.4f} bits per {_per(config)}, step {result['best_step']:,}"
            if shown
            else ""
        )
        rows.append(("best validation", f"{text} {remark}".strip()))
    return Section("What was trained", rows=rows)


def _data(config: RunConfig, manifest: dict[str, Any]) -> Section:
    described = manifest.get("data")
    if not described:
        return Section("On what", "The manifest does not say.")
    rows = [*domain_of(config.data.kind).describe(described)]
    rows += [(file["name"], f"SHA-256 {file['sha256']}") for file in described["files"][:40]]
    more = len(described["files"]) - 40
    return Section("On what", rows=[*rows, *([("and", f"{more:,} more files")] if more > 0 else [])])


def _curves(run: Path, per: str) -> Section:
    metrics = inside(run, "metrics.csv")
    if not metrics.exists():
        return Section("Curves", "No step has been logged yet.")
    try:
        png = learning_curves(metrics, per)
    except (ValueError, KeyError, TypeError, csv.Error):
        raise InputError(f"{metrics}: not the metrics of a run; restore the file, or move it away") from None
    return Section("Curves", images=[_image("loss, rate and gradient norm against steps", png)])


def _evaluations(run: Path, weights: _Weights) -> list[Section]:
    sections = []
    contexts = [inside(run, path.name) for path in sorted(run.glob("evaluate-context-*.json"))]
    pictures: list[Image] = []
    for path in [*saved.evaluation_files(run), *contexts]:
        with as_written(path, "remove it, or run mba evaluate again"):
            result = json.loads(path.read_text(encoding="utf-8"))
            if path in contexts:
                text = describe_context(result)
            elif result.get("task") == "classification":
                text = describe_classes(result)
            else:
                text = describe_evaluation(result)
            named = [str(name) for name in result.get("pictures", [])]
        name = path.stem.removeprefix("evaluate-")
        remark, shown = weights.remark(result)
        sections.append(Section(f"Evaluation beside baselines: {name}", remark, pre=text if shown else ""))
        if shown:
            pictures += [_image(Path(name).stem, _picture(run, name)) for name in named if (run / name).exists()]
    if not sections:
        sections.append(Section("Evaluation beside baselines", f"Not evaluated yet: mba evaluate {run}"))
    sections[-1].images += pictures
    return sections


def _samples(run: Path, samples: Path, progress: Callable[[int, int | None], None] | None) -> Section:
    path = inside(samples.parent, report_path(samples).name)
    measured: Any = None
    if path.exists() and path.stat().st_mtime_ns >= samples.stat().st_mtime_ns:
        with as_written(path, "remove it"):
            measured = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(measured, dict) or "own" not in measured:
        measured = report_on_samples(run, samples, progress=progress)
    with as_written(path, "remove it"):
        section = Section("Samples", f"{samples}", pre=describe_samples(measured))
        if measured.get("note"):
            section.text += f". Not compared with the training data: {measured['note']}"
        if "spectra" in measured:
            section.images.append(
                _image("6-mer spectra of samples and validation beside the genome's", kmer_spectra(measured))
            )
    return section


def _audio(run: Path, samples: Path | None, weights: _Weights) -> list[Section]:
    sections = []
    if (judged := judged_samples(run)) is not None:
        scores, text = judged
        remark, shown = weights.remark(scores)
        sections.append(Section("Samples judged", remark, pre=text if shown else ""))
    if samples is None:
        return [*sections, Section("Samples", f"None yet: mba sample {run} --length 80000 --out {run / 'sample.wav'}")]
    text, clips = clips_of(samples)
    return [*sections, Section("Samples", f"{samples}. {text}", clips=clips)]


def _provenance(manifest: dict[str, Any]) -> Section:
    names = ("mamba_bio_audio", "commit", "python", "torch", "numpy", "platform", "device", "precision", "started")
    rows = [(name, f"{manifest[name]}") for name in names if manifest.get(name) is not None]
    sessions = manifest.get("sessions", [])
    for session in sessions:
        command = " ".join(session.get("command", []))
        rows.append((f"from step {session.get('from_step', 0):,}", f"{session.get('started', '')}  mba {command}"))
    return Section("Provenance", rows=rows)


def _picture(run: Path, name: str) -> bytes:
    """A PNG that an evaluation in the run folder says it drew, and nothing else that may lie there by that name."""
    path = inside(run, name)
    if path.is_symlink():
        raise InputError(f"{path}: a link, which no evaluation makes; it is not put into the page. Remove it")
    png = path.read_bytes()
    if not png.startswith(b"\x89PNG\r\n\x1a\n") or png[12:16] != b"IHDR":
        raise InputError(f"{path}: not a PNG; it is not put into the page. Remove it, or run mba evaluate again")
    return png


def _per(config: RunConfig) -> str:
    """What a loss is per."""
    if config.head is not None:
        return "sequence"
    return domain_of(config.data.kind).unit


def _shown(value: Any) -> Any:
    return printable(value, lines=True) if isinstance(value, str) else value


def _image(alt: str, png: bytes) -> Image:
    return Image(alt, base64.b64encode(png).decode("ascii"))
