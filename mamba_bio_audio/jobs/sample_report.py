"""The report on sampled DNA: what is in a FASTA beside what the model was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import begins_with, check_file, write_json
from mamba_bio_audio.pipelines.dna.datamodule import DnaDataModule
from mamba_bio_audio.pipelines.dna.records import read_records
from mamba_bio_audio.pipelines.dna.samples import sample_report
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import RunConfig
from mamba_bio_audio.run.data import check_same_data, open_data


def report_on_samples(
    run: Path,
    fasta: Path,
    *,
    reference_bases: int | None = 1 << 26,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Measure the sequences of `fasta` beside the data of `run`, and write `<fasta>.report.json` (returned).

    Where the run's data are not at hand, or no longer those that it was trained on, the comparisons are left out and
    `note` says why.

    Args:
        run: run folder or an export of one.
        fasta: samples.
        reference_bases: training bases to compare with, at most; None is all.
        progress: called with (bases read, None).
    """
    check_report(fasta)
    codec = DnaTokenizer()
    samples = [codec.encode(record.sequence) for record in read_records(fasta)]
    data, note = _data(run)
    result: dict[str, Any] = {"run": str(run), "fasta": str(fasta), "note": note}
    if data is None:
        result |= sample_report(samples)
    else:
        train, valid = (data.evaluation_spans(split) for split in ("train", "valid"))
        result |= sample_report(samples, data.genome, train, valid, reference_bases=reference_bases, progress=progress)
    write_json(report_path(fasta), result)
    return result


def check_report(fasta: Path) -> None:
    """Refuse to replace anything but a report where the report on a FASTA will be.

    Raises:
        InputError: something else is there.
    """
    check_file(report_path(fasta), "sample", begins_with('{\n  "run": '), force=True)


def report_path(fasta: Path) -> Path:
    """Where the report on a FASTA of samples is."""
    return fasta.with_name(f"{fasta.name}.report.json")


def _data(run: Path) -> tuple[DnaDataModule | None, str | None]:
    try:
        if (run / "config.yaml").exists():
            config, manifest = saved.read_config(run), saved.read_manifest(run)
        else:
            model = saved.load(run)
            config, manifest = model.config, dict(model.manifest)
        if not isinstance(config, RunConfig):
            return None, "the weights come without the configuration of a run"
        data = open_data(config, "cpu")
        if not isinstance(data, DnaDataModule):
            return None, f"the run was trained on data of kind {config.data.kind}"
        data.setup()
        check_same_data(manifest.get("data", {}), data.summary(), run)
        return data, None
    except InputError as error:
        return None, str(error)
