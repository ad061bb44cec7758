"""`mba predict` of a model that predicts every base or bin: BED, bigWig, bedGraph or TSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mamba_bio_audio.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mamba_bio_audio.jobs.predict import PredictOptions
    from mamba_bio_audio.pipelines.contract import Symbols


def write_along(
    options: PredictOptions, model: Any, out: Path | None, device: str, progress: Callable[[str, int, int | None], None]
) -> dict[str, Any]:
    """Write what the model says along every record; returns what the result says.

    All records are held until they are written, four bytes for each output of each base or bin.

    Raises:
        InputError: an option that is for whole sequences, no output file, or records of one name.
    """
    import signal

    from mamba_bio_audio.files import atomic_path, check_file, locked
    from mamba_bio_audio.inference.position_files import Along, ours_or_along, paths_of, write_form
    from mamba_bio_audio.inference.positions import Layout, predict_positions
    from mamba_bio_audio.inference.streaming import Passes, Stopped
    from mamba_bio_audio.models.weights import weights_hash
    from mamba_bio_audio.pipelines.domains import domain_of
    from mamba_bio_audio.signals import StopSignal
    from mamba_bio_audio.training.config import resolve_precision

    config = model.config
    domain = domain_of(config.data.kind)
    symbols = domain.symbols(config.data, config.train.length)
    _refuse(options, config.train.length)
    if out is None:
        raise InputError(
            "a model of bases or tracks writes files: give --out NAME.bed, NAME.bw, NAME.bedgraph or NAME.tsv"
        )
    strand = options.strand or symbols.strands[0]
    if strand not in symbols.strands:
        raise InputError(
            f"--strand {strand}: labels of this model belong to a strand; give {' or '.join(symbols.strands)}"
        )
    paths = paths_of(out, model.outputs.name, model.labels)
    for path in paths:
        check_file(path, "predict", ours_or_along, [options.run, *options.files], force=options.force)
    layout = Layout(config.train.length, symbols.bin, symbols.margin, strand)
    model.to(device)
    read = records = 0
    reasons: dict[str, int] = {}
    found: dict[str, Any] = {}
    lengths: dict[str, int] = {}

    strands = 2 if strand == "both" else 1

    def count(bases: int) -> None:
        nonlocal read
        read += bases // strands
        progress(f"{symbols.unit}s", read, None)

    with locked(out), StopSignal() as stop:
        narrow = resolve_precision(config.train.precision, device) == "bf16"
        passes = Passes(device, narrow, None, lambda: stop.number is not None, count)
        try:
            for item in domain.records(options.files, config.data):
                records += 1
                ids = item.symbols
                reason = ids if isinstance(ids, str) else _not_scored(ids, symbols)
                if reason or isinstance(ids, str):
                    reasons[reason] = reasons.get(reason, 0) + 1
                    continue
                if not item.name:
                    raise InputError(f"{item.file}: record {records:,} has no name; a file along records needs one")
                if item.name in lengths:
                    raise InputError(
                        f"{item.file}: record {item.name!r} occurs twice; a file along records needs one of each name"
                    )
                lengths[item.name] = item.length
                found[item.name] = predict_positions(model, ids, layout, symbols, passes)
        except Stopped:
            pass
        if stop.number is None:
            # bigWig lists records in the order of their names.
            sort = out.suffix.lower() in (".bw", ".bigwig")
            ordered = sorted(found, key=lambda name: name.encode("utf-8", "replace")) if sort else list(found)
            for at, path in enumerate(paths):
                own = slice(at, at + 1) if len(paths) > 1 else slice(None)
                along = [Along(name, found[name][:, own]) for name in ordered]
                with atomic_path(path) as temporary:
                    write_form(temporary, out.suffix.lower(), along, lengths, model.labels, symbols.bin)
    return {
        "weights": weights_hash(model),
        "mode": "windows",
        "length": layout.length,
        "trained_length": layout.length,
        "strand": strand,
        "files": list(options.files),
        "run": str(options.run),
        "which": options.which,
        "records": records,
        "used": read,
        "unit": symbols.unit,
        "scored": len(found),
        "not_scored": reasons,
        "stopped_by": None if stop.number is None else signal.Signals(stop.number).name,
        "record": domain.record,
        "written": [str(path) for path in paths] if stop.number is None else [],
    }


def _not_scored(ids: Any, symbols: Symbols) -> str:
    """Why a record has no predictions; empty where it has some."""
    if not len(ids):
        return "empty"
    if len(ids) < symbols.bin:
        return f"shorter than a bin of {symbols.bin:,}"
    return "" if symbols.known(ids).any() else "contains no known symbol (A, C, G, T)"


def _refuse(options: PredictOptions, length: int) -> None:
    """Refuse what is for predictions of whole sequences."""
    given = {
        "--mode": options.mode != "windows",
        "--length": options.length not in (None, length),
        "--max-unknown": options.max_unknown is not None,
        "--paired": options.paired,
        "--min-length": options.min_length > 1,
        "--threshold": options.threshold is not None,
        "--summary": options.summary is not None,
        "--resume": options.resume,
    }
    wrong = next((name for name, there in given.items() if there), None)
    if wrong is not None:
        raise InputError(f"{wrong}: this model predicts every base or bin, in one go; leave it out")
