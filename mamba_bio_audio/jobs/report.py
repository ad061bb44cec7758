"""`mba report`: one self-contained page about a run."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import Field

from mamba_bio_audio.errors import InputError, as_written
from mamba_bio_audio.files import check_file, inside, write_text
from mamba_bio_audio.jobs.contract import Cli, Force, Options, Result, Which
from mamba_bio_audio.jobs.page import Image, Section, is_page, render
from mamba_bio_audio.pipelines.domains import domain_of

if TYPE_CHECKING:
    from mamba_bio_audio.run.config import RunConfig

COMMAND = "report"
PANEL = "Measure"


class ReportOptions(Options):
    """Options of `mba report`."""

    run: Annotated[Path, Cli(argument=True, metavar="RUN")] = Field(description="Run folder.")
    samples: Path | None = Field(
        None,
        description="Samples to show: a FASTA (default RUN/samples.fa) or, for audio, a file or folder that mba sample wrote.",
    )
    out: Path | None = Field(None, description="HTML file; default: RUN/report.html.")
    force: Force = False


class ReportResult(Result):
    """The page and the titles of its sections."""

    out: Path
    sections: list[str]

    def text(self) -> str:
        """One line."""
        return f"{self.out}: {', '.join(self.sections)}"


def run(options: ReportOptions) -> ReportResult:
    """Write one self-contained page: what was trained on what, curves, baselines, samples, provenance."""
    folder, samples = options.run, options.samples
    out = options.out or folder / "report.html"
    if str(out) == "-":
        raise InputError("--out -: the page is not written to standard output; give --out FILE.html")
    if samples is not None and not samples.exists():
        raise InputError(f"--samples {samples}: there is no such file or folder")
    if folder.is_dir():
        inputs = [folder, *([] if samples is None else [samples])]
        # The page in the run's own folder follows the run.
        check_file(out, "report", is_page, inputs, force=options.force or options.out is None)

    from mamba_bio_audio.jobs.common import counter
    from mamba_bio_audio.run.config import to_yaml
    from mamba_bio_audio.run.described import read_config, read_manifest

    config, manifest = read_config(folder), read_manifest(folder)
    weights = _Weights(folder, config)
    with as_written(folder / "manifest.json", "restore the file, or move it away"):
        about = [_training(config, manifest, weights), _data(config, manifest)]
        provenance = _provenance(manifest)
    sections = [*about, _curves(folder, _per(config)), *_evaluations(folder, weights), *_judged(folder, weights)]
    unit = domain_of(config.data.kind).unit
    with counter("comparing", f"{unit}s", options.quiet) as progress:
        sections += _samples(folder, config, manifest, samples, progress)
    sections += [provenance, Section("Configuration", pre=to_yaml(config))]
    page = render(config.name or folder.name, config.description, sections, unit)
    write_text(out, page)
    return ReportResult(out=out, sections=[section.title for section in sections])


class _Weights:
    """Whether scores are of the weights that the run holds now; a resumed run has others."""

    def __init__(self, run: Path, config: RunConfig) -> None:
        self.run, self.config = run, config
        self._hashes: dict[Which, str | None] = {}

    def remark(self, scores: dict[str, Any], which: Which = "best") -> tuple[str, bool]:
        """What to say of scores (of `which` weights, where they do not say so themselves), and whether to show them."""
        recorded = scores.get("weights_sha256")
        if recorded is None:
            return "An earlier version wrote these scores; it is unknown which weights they belong to.", True
        present = self._present(scores.get("which", which))
        if present is None:
            return "The weights that these scores belong to can no longer be read.", True
        if recorded != present:
            return (
                f"Scores of other weights than the run holds now are left out; score again: mba evaluate {self.run}",
                False,
            )
        return "", True

    def _present(self, which: str) -> str | None:
        from mamba_bio_audio.models.weights import weights_hash
        from mamba_bio_audio.run import saved

        # Judged samples give the weights in words.
        name = next((w for w in get_args(saved.Which) if which in (w, saved.describe_which(self.config, w))), None)
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
        ("model", model.outline),
        ("length", f"{train.length:,}"),
        ("steps", f"{train.steps:,} of {train.tokens_per_step:,} positions: {train.steps * train.tokens_per_step:,}"),
        ("done", "the run has not finished" if done is None else f"{done:,} steps"),
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
    from mamba_bio_audio.evaluation.figures import learning_curves

    metrics = inside(run, "metrics.csv")
    if not metrics.exists():
        return Section("Curves", "No step has been logged yet.")
    try:
        png = learning_curves(metrics, per)
    except (ValueError, KeyError, TypeError, csv.Error):
        raise InputError(f"{metrics}: not the metrics of a run; restore the file, or move it away") from None
    return Section("Curves", images=[Image("loss, rate and gradient norm against steps", png)])


def _evaluations(run: Path, weights: _Weights) -> list[Section]:
    from mamba_bio_audio.jobs.values_results import read_evaluation
    from mamba_bio_audio.run import saved

    sections = []
    others = [path for kind in ("context", "recall") for path in sorted(run.glob(f"evaluate-{kind}-*.json"))]
    pictures: list[Image] = []
    for path in [*saved.evaluation_files(run), *(inside(run, path.name) for path in others)]:
        with as_written(path, "remove it, or run mba evaluate again"):
            result = json.loads(path.read_text(encoding="utf-8"))
            text = read_evaluation(result, domain_of(weights.config.data.kind)).text()
            named = [str(name) for name in result.get("pictures", [])]
        name = path.stem.removeprefix("evaluate-")
        remark, shown = weights.remark(result)
        sections.append(Section(f"Evaluation beside baselines: {name}", remark, pre=text if shown else ""))
        if shown:
            pictures += [Image(Path(name).stem, _picture(run, name)) for name in named if (run / name).exists()]
    if not sections:
        sections.append(Section("Evaluation beside baselines", f"Not evaluated yet: mba evaluate {run}"))
    sections[-1].images += pictures
    return sections


def _judged(run: Path, weights: _Weights) -> list[Section]:
    """The section of `judged_samples`, where there are any."""
    if (judged := judged_samples(run)) is None:
        return []
    scores, text = judged
    remark, shown = weights.remark(scores)
    return [Section("Samples judged", remark, pre=text if shown else "")]


def judged_samples(run: Path) -> tuple[dict[str, Any], str] | None:
    """The judge's scores, and as `mba evaluate --metrics sc09` prints them; None where there are none."""
    from mamba_bio_audio.jobs.digits_results import DigitsResult

    path = inside(run, "sc09/metrics.json")
    if not path.exists():
        return None
    with as_written(path, "evaluate with --metrics sc09 again, or remove it"):
        scores = json.loads(path.read_text(encoding="utf-8"))
        return scores, DigitsResult.model_validate(scores).text()


def _samples(
    run: Path,
    config: RunConfig,
    manifest: dict[str, Any],
    given: Path | None,
    progress: Callable[[int, int | None], None],
) -> list[Section]:
    """Samples of the model, measured unless their measurements are there already."""
    from mamba_bio_audio.jobs.sample_report import data_of, measure

    domain = domain_of(config.data.kind)
    samples = given or domain.find_samples(run)
    if samples is None:
        return [Section("Samples", f"None yet: {domain.sample_command(run)}")] if config.first_sample else []
    measured: Any = None
    corpus = None
    if (kept := domain.measures(samples)) is not None:
        path = inside(samples.parent, kept.name)
        if path.exists() and path.stat().st_mtime_ns >= samples.stat().st_mtime_ns:
            with as_written(path, "remove it"):
                measured = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(measured, dict) or "own" not in measured:
            measured, corpus = measure(run, samples, config, manifest, progress=progress)
        elif domain.rate_hz(config.data) is not None:
            # For a recording to listen to.
            corpus, _ = data_of(run, config, manifest)
    with as_written(kept or samples, "remove it"):
        view = domain.show_samples(samples, measured, corpus)
        text = view.text
        if measured and measured.get("note"):
            text += f". Not compared with the training data: {measured['note']}"
        images = [Image(alt, png) for alt, png in view.pictures]
        return [Section("Samples", text, pre=view.table, images=images, clips=view.clips)]


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
    """Unit that a loss is per."""
    if config.head is not None:
        return "sequence"
    return domain_of(config.data.kind).unit
