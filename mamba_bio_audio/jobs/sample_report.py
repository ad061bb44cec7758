"""What `mba sample` measures of its samples, and the files that tell it: OUT.report.json, and OUT.report.html with players."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import begins_with, check_file, write_json, write_text
from mamba_bio_audio.jobs.page import Image, Section, is_page, render
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run.packaged import read_about

if TYPE_CHECKING:
    from mamba_bio_audio.pipelines.contract import Domain
    from mamba_bio_audio.pipelines.corpus import Corpus
    from mamba_bio_audio.run.config import RunConfig


# Of measurements.
_BEGINNING = '{\n  "run": '


def measure(
    run: Path,
    samples: Path,
    config: RunConfig,
    manifest: Mapping[str, Any],
    *,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[dict[str, Any], Corpus | None]:
    """Measure samples beside the data of a run, and write the measurements where its domain keeps them (returned).

    If the run's data are missing, or are no longer those that it was trained on, the comparisons are left out and
    `note` says why.

    Args:
        run: run folder or an export of one.
        samples: file that its domain measures.
        config: the run's configuration.
        manifest: the run's manifest.
        progress: called with (symbols read, None).

    Returns:
        The measurements, and the data that they were compared with.
    """
    domain = domain_of(config.data.kind)
    path = domain.measures(samples)
    if path is None:
        raise InputError(f"{samples}: samples of {domain.name} are not measured")
    check_report(path)
    corpus, note = data_of(run, config, manifest)
    result = {"run": str(run), domain.samples_key: str(samples), "note": note}
    result |= domain.measure(samples, config.data, corpus, progress)
    write_json(path, result)
    return result, corpus


def data_of(run: Path, config: RunConfig, manifest: Mapping[str, Any]) -> tuple[Corpus | None, str | None]:
    """The data that a run was trained on; or None, and why they cannot be had."""
    from mamba_bio_audio.run.data import check_same_data

    try:
        if config.data.labelled:
            raise InputError(f"the run was trained on data of kind {config.data.kind}")
        # Not by the data module, which imports all of Lightning.
        opened = domain_of(config.data.kind).open(config.data, length=config.train.length)
        if config.model.classes is not None:
            opened.condition(config.model.classes)
        check_same_data(manifest.get("data", {}), opened.summary(), run)
    except InputError as error:
        packaged = read_about(manifest)
        return None, str(error) if packaged is None else f"{packaged.name} comes without its training data"
    return opened, None


def write_page(samples: Path, measured: Mapping[str, Any], domain: Domain, corpus: Corpus | None) -> Path | None:
    """Write OUT.report.html where samples can be listened to; returns its path."""
    view = domain.show_samples(samples, measured, corpus)
    if not view.clips:
        return None
    out = samples.with_name(f"{samples.name}.report.html")
    images = [Image(alt, png) for alt, png in view.pictures]
    section = Section("Beside held-out data", view.text, pre=view.table, images=images, clips=view.clips)
    write_text(out, render(samples.name, f"Samples of {measured['run']}", [section], domain.unit))
    return out


def discard_report(path: Path) -> list[Path]:
    """Remove measurements of samples that are no longer there, and their page; returns what was removed.

    What is not ours stays.
    """
    ours = {path: begins_with(_BEGINNING), path.with_suffix(".html"): is_page}
    found = [place for place, is_ours in ours.items() if place.is_file() and is_ours(place)]
    for place in found:
        place.unlink()
    return found


def check_report(path: Path) -> None:
    """Refuse to replace anything but measurements of samples, and their page.

    Raises:
        InputError: something else is there.
    """
    check_file(path, "sample", begins_with(_BEGINNING), force=True)
    check_file(path.with_suffix(".html"), "sample", is_page, force=True)
