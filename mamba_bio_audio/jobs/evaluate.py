"""Held-out likelihood beside baselines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.likelihood import Likelihood, evaluate_likelihood, perplexity
from mamba_bio_audio.inference.classify import Strand
from mamba_bio_audio.jobs.evaluate_classes import evaluate_classes
from mamba_bio_audio.models.heads import Classifier
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.audio.classes import AudioClassesDataModule
from mamba_bio_audio.pipelines.audio.datamodule import AudioDataModule
from mamba_bio_audio.pipelines.audio.yardsticks import left_out, yardsticks
from mamba_bio_audio.pipelines.dna.classes import DnaClassesDataModule
from mamba_bio_audio.pipelines.dna.datamodule import DnaDataModule
from mamba_bio_audio.pipelines.dna.markov import MarkovTable, markov_table
from mamba_bio_audio.pipelines.spans import Span, merge
from mamba_bio_audio.pipelines.split_names import SPLITS
from mamba_bio_audio.pipelines.stream import loader
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import RunConfig, override, validate
from mamba_bio_audio.run.data import DataModule, check_same_data, open_data
from mamba_bio_audio.run.saved import Which
from mamba_bio_audio.training.fit import resolve_precision


def evaluate(
    run: Path,
    *,
    split: str = "test",
    which: Which = "best",
    device: str = "cpu",
    baselines: bool = True,
    length: int | None = None,
    strand: Strand = "both",
    overrides: Sequence[str] = (),
    max_bases: int | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Likelihood of a split under a run's model, beside Markov baselines on the same positions (JSON-able).

    Each base of the union of the split's intervals is scored once; everything before it in its window is context. A
    classifier is scored on the fixed windows of the split instead, beside a k-mer baseline (`evaluate_classes`).

    Args:
        run: run folder or an export of one.
        split: train, valid or test.
        which: weights of a run folder.
        device: "cpu" or "cuda".
        baselines: also fit Markov models of orders 0 to 12 on the training split, order chosen on validation;
            for each genome file too where it holds all three splits.
        length: window; None is the training length.
        strand: which strands a classifier reads.
        overrides: `data.*=...` and `train.precision=...`, to evaluate on other data than the run's own.
        max_bases: score no more than so many bases (of audio: samples): whole windows, evenly spread over the split and the
            same every time, for the model and for the baselines. The result says so under `part`.
        progress: called with (what, done, in all), for example ("batches", 3, 10).
    """
    model, config, data, described = open_run(run, split, which, device, length, overrides, progress=progress)
    length = data.length
    if max_bases is not None and isinstance(model, Classifier):
        raise InputError(
            "--max-bases is for language models; a classifier's windows are set by data.evaluation_windows"
        )
    if max_bases is not None and max_bases < length:
        raise InputError(
            f"--max-bases {max_bases:,} is less than one window of {length:,} {data.codec.unit}s; give more, or a shorter "
            "--length"
        )

    def told(what: str) -> Callable[[int, int | None], None] | None:
        return None if progress is None else lambda done, total: progress(what, done, total)

    if isinstance(model, Classifier):
        assert isinstance(data, DnaClassesDataModule | AudioClassesDataModule)
        found = evaluate_classes(
            model,
            data,
            split=split,
            device=device,
            narrow=resolve_precision(config.train.precision, device) == "bf16",
            chunk=config.train.chunk,
            strand=strand,
            baselines=baselines,
            progress=told("sequences"),
        )
        source = {key: described[key] for key in ("files", "split_source")}
        asked = {"run": str(run), "which": which, "weights_sha256": weights_hash(model), "overrides": list(overrides)}
        return asked | source | found
    assert not isinstance(data, DnaClassesDataModule)
    spans: dict[str, list[Span]] = {}
    if isinstance(data, DnaDataModule):
        spans = {name: data.evaluation_spans(name) for name in SPLITS}
    if spans and baselines and not (spans["train"] and spans["valid"]):
        raise InputError(
            "the Markov baselines are fitted on the training split and chosen on the validation split, and one of them "
            "is empty; give intervals for both, or --no-baselines"
        )
    likelihood = evaluate_likelihood(
        model,
        data.evaluation_dataloader(split, max_tokens=max_bases),
        device,
        resolve_precision(config.train.precision, device),
        told("batches"),
    )
    result: dict[str, Any] = {
        "run": str(run),
        "which": which,
        "weights": saved.describe_which(config, which),
        "weights_sha256": weights_hash(model),
        "split": split,
        "length": length,
        "overrides": list(overrides),
        "files": described["files"],
        "split_source": described["split_source"],
        "scored": likelihood.count,
        "model": _scores(likelihood),
    }
    if isinstance(data, AudioDataModule):
        result |= {"quantizer": data.codec.description, "sample_rate_hz": data.codec.sample_rate_hz}
        listened = data.evaluation_dataset(split, max_bases).windows
        laid_out = data.evaluation_windows(split)
        part = None
        if len(listened) < len(laid_out.windows):
            part = [listened[at] for at in range(len(listened))]
            result["part"] = {
                "max_bases": max_bases,
                "windows": len(listened),
                "of_windows": len(laid_out.windows),
                "of_bases": laid_out.symbols,
            }
        names = data.group_names
        if len(names) > 1:
            result["recordings"] = {
                names[int(group)]: {"model": _scores(score)} | {"scored": score.count}
                for group, score in likelihood.groups.items()
            }
        if baselines:
            result["yardsticks"], count = yardsticks(data, split, part)
            assert count == likelihood.count
            if reason := left_out(data.codec):
                result["yardsticks_left_out"] = reason
        return result
    windows = data.evaluation_windows(split)
    genomes = data.genome.genomes
    counts = {"bases": windows.symbols, "unknown": windows.unknown, "first_of_record": windows.first_of_record}
    dataset = data.evaluation_dataset(split, max_bases)
    spans_of_part: list[Span] | None = None
    if len(dataset) < len(windows.windows):
        # What the windows score: all but their first base, which is context.
        spans_of_part = merge(Span(span.record, span.start + 1, span.end) for span in dataset.windows)
        bases = sum(span.end - span.start for span in spans_of_part)
        counts = {"bases": bases, "unknown": bases - likelihood.count, "first_of_record": 0}
        result["part"] = {
            "max_bases": max_bases,
            "windows": len(dataset),
            "of_windows": len(windows.windows),
            "of_bases": windows.symbols,
        }
    # Published window rules let training read bases of other splits; both figures are given then.
    unread = data.unread_dataset(split, config.train.length, spans_of_part) if split != "train" else None
    if unread is not None:
        clean = evaluate_likelihood(
            model,
            loader(unread, data.batch_size, config.data.num_workers),
            device,
            resolve_precision(config.train.precision, device),
            told("batches of what training never read"),
        )
        result["unread"] = {"model": _scores(clean), "scored": clean.count}
    result |= counts | {
        "genomes": {
            genomes[int(group)]: {"model": _scores(score)} | {"scored": score.count}
            for group, score in likelihood.groups.items()
        }
        if len(genomes) > 1
        else {},
    }
    if baselines:
        scored = spans[split] if spans_of_part is None else spans_of_part
        fitted = markov_table(
            data.genome, spans["train"], spans["valid"], scored, progress=told("Markov baselines, bases")
        )
        result["markov"] = _markov(fitted)
        assert result["markov"]["count"] == likelihood.count
        by_genome = {
            key: _by_genome(data, value) for key, value in (spans | {"scored": scored}).items() if result["genomes"]
        }
        for done, (name, row) in enumerate(result["genomes"].items(), start=1):
            own = {key: found.get(name, []) for key, found in by_genome.items()}
            if all(own.values()):
                row["markov"] = _markov(markov_table(data.genome, own["train"], own["valid"], own["scored"]))
                assert row["markov"]["count"] == row["scored"]
            if progress is not None:
                progress("Markov baselines, genomes", done, len(result["genomes"]))
    return result


def open_run(
    run: Path,
    split: str,
    which: Which,
    device: str,
    length: int | None,
    overrides: Sequence[str],
    *,
    kind: str | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> tuple[Any, RunConfig, DataModule, dict[str, Any]]:
    """Model, configuration, data in windows of `length` (None: as trained) and their summary, all checked.

    With `kind` the run must be of that kind of data; `progress` is that of `evaluate`.
    """
    if split not in SPLITS:
        raise InputError(f"--split {split}: choose one of {', '.join(SPLITS)}")
    model = saved.load(run, which)
    if not isinstance(model.config, RunConfig):
        raise InputError(f"{run}: weights without a run configuration; mba evaluate needs a run or an export of one")
    if kind is not None and model.config.data.kind != kind:
        raise InputError(f"{run} is a run of kind {model.config.data.kind}, and this needs one of kind {kind}")
    config = override_data(model.config, overrides, run)
    length = length or config.train.length
    batch = max(1, (2**14 if device == "cpu" else 2**18) // length)
    data = open_data(config, device, length=length, batch_size=batch, progress=progress)
    data.setup()
    described = data.summary()
    if not overrides and model.manifest:
        check_same_data(model.manifest.get("data", {}), described, run)
    return model, config, data, described


def override_data(config: RunConfig, overrides: Sequence[str], run: Path) -> RunConfig:
    """A run's configuration with other data, or another precision."""
    for text in overrides:
        if not text.startswith(("data.", "train.precision=")):
            raise InputError(
                f"--set {text}: evaluation takes data.* and train.precision; the model is as it was trained"
            )
    return validate(override(config.model_dump(mode="json"), overrides), str(run), check_files=True)


def _by_genome(data: DnaDataModule, spans: Sequence[Span]) -> dict[str, list[Span]]:
    """Spans of each genome file."""
    found: dict[str, list[Span]] = {}
    for span in spans:
        found.setdefault(data.genome.genomes[data.genome.genome_of(span.record)], []).append(span)
    return found


def _scores(likelihood: Likelihood) -> dict[str, float]:
    nats = likelihood.nats_per_base
    return {"nats": nats, "bits": nats / math.log(2), "perplexity": perplexity(nats)}


def _markov(fitted: MarkovTable) -> dict[str, Any]:
    orders = [
        {"nats": float(nats), "bits": float(nats) / math.log(2), "perplexity": perplexity(nats)}
        for nats in fitted.test.nats_per_base
    ]
    return {
        "count": fitted.test.count,
        "chosen_order": fitted.order,
        "smoothing": fitted.smoothing,
        "best": orders[fitted.order],
        "orders": orders,
    }


def describe_evaluation(result: dict[str, Any]) -> str:
    """The evaluation for people."""
    if "quantizer" in result:
        return _describe_audio(result)
    lines = [
        f"{result['split']} split: {result['scored']:,} of {result['bases']:,} bases scored "
        f"({result['unknown']:,} unknown, {result['first_of_record']:,} first of their record), "
        f"windows of {result['length']:,} (a window's first base has one base of context, Markov models always all)",
        *_part(result),
        "",
        f"{'':<28}{'nats':>9}{'bits':>9}{'perplexity':>12}",
        _row(f"model ({result['weights']})", result["model"]),
    ]
    if "unread" in result:
        lines.append(_row("  where training never read", result["unread"]["model"]))
        lines.append(f"  ({result['unread']['scored']:,} of the bases; training windows hold the others)")
    markov = result.get("markov")
    if markov:
        for order, row in enumerate(markov["orders"]):
            mark = " (best on valid)" if order == markov["chosen_order"] else ""
            lines.append(_row(f"Markov order {order}{mark}", row))
        ratio = result["model"]["perplexity"] / markov["best"]["perplexity"] - 1
        lines.append("")
        lines.append(
            f"The model's perplexity is {abs(ratio):.2%} {'below' if ratio < 0 else 'above'} the best Markov baseline"
            + ("." if ratio < 0 else ": it has learnt less than a table of k-mers.")
        )
    if result["genomes"]:
        lines += ["", f"{'perplexity by genome':<40}{'model':>9}{'order 1':>10}{'order 3':>10}{'best':>10}"]
        for name, row in result["genomes"].items():
            own = row.get("markov")
            columns = [own["orders"][1], own["orders"][3], own["best"]] if own else []
            cells = "".join(f"{column['perplexity']:>10.4f}" for column in columns)
            lines.append(f"{name:<40}{row['model']['perplexity']:>9.4f}{cells}")
    return "\n".join(lines)


def _part(result: dict[str, Any]) -> list[str]:
    """A line on what was left unscored because of `max_bases`."""
    if "part" not in result:
        return []
    part = result["part"]
    return [
        f"A part of the split, evenly spread (--max-bases {part['max_bases']:,}): {part['windows']:,} of "
        f"{part['of_windows']:,} windows, {result.get('bases', result['scored']):,} of {part['of_bases']:,} "
        + ("bases; baselines on the same bases" if "bases" in result else "samples; yardsticks on the same samples")
    ]


def _describe_audio(result: dict[str, Any]) -> str:
    rows = {f"model ({result['weights']})": result["model"]["bits"], **result.get("yardsticks", {})}
    lines = [
        f"{result['split']} split: {result['scored']:,} samples at {result['sample_rate_hz']:,} Hz scored once, "
        f"windows of {result['length']:,} (each begins without context; the yardsticks' do not)",
        *_part(result),
        "",
        f"{'bits per sample':<28}{result['quantizer']}",
        *(f"{name:<28}{bits:>9.4f}" for name, bits in rows.items()),
    ]
    if "yardsticks_left_out" in result:
        lines.append(result["yardsticks_left_out"])
    best = min(result.get("yardsticks", {}).items(), key=lambda row: row[1], default=None)
    if best is not None:
        gain = best[1] - result["model"]["bits"]
        verdict = "." if gain > 0 else ": it has learnt less than that."
        lines += ["", f"The model is {abs(gain):.4f} bits {'below' if gain > 0 else 'above'} {best[0]}{verdict}"]
    if "recordings" in result:
        lines += ["", *(f"{name:<40}{row['model']['bits']:>9.4f}" for name, row in result["recordings"].items())]
    return "\n".join(lines)


def _row(name: str, scores: dict[str, float]) -> str:
    return f"{name:<28}{scores['nats']:>9.4f}{scores['bits']:>9.4f}{scores['perplexity']:>12.4f}"
