"""Evaluation at length: the same bases under every context, and the loss along a window."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.evaluation.context import check_contexts, position_sums, strata, summarise, target_nats
from mamba_bio_audio.evaluation.figures import context_curves
from mamba_bio_audio.evaluation.likelihood import perplexity
from mamba_bio_audio.files import write_json, write_text
from mamba_bio_audio.jobs.evaluate import open_run
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.dna.datamodule import DnaDataModule
from mamba_bio_audio.pipelines.dna.target_blocks import target_blocks
from mamba_bio_audio.run.saved import Which
from mamba_bio_audio.text import cell
from mamba_bio_audio.training.fit import resolve_precision

# A, C, G, T are consecutive ids of the codec.
_FIRST, _LAST = 7, 10
_C, _G = 8, 9


def evaluate_context(
    run: Path,
    contexts: Sequence[int],
    *,
    split: str = "test",
    which: Which = "best",
    device: str = "cpu",
    blocks: int = 256,
    overrides: Sequence[str] = (),
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Loss on the same target bases under every context, by stratum, and by position in the longest window.

    Args:
        run: run folder or an export of one; of a DNA language model with a constant state.
        contexts: bases before the first base of each target block.
        split: target bases are of this split; context may reach outside of it.
        which: weights of a run folder.
        device: "cpu" or "cuda".
        blocks: target blocks, evenly spaced; each as long as a quarter of the shortest context.
        overrides: `data.*=...` and `train.precision=...`.
        progress: called with (batches done, batches in all).
    """
    contexts = check_contexts(contexts)
    model, config, data, _ = open_run(run, split, which, device, contexts[-1], overrides, kind="dna")
    if getattr(model, "streaming", "none") != "constant":
        raise InputError(f"--context needs a model with a constant state; this one's is {model.streaming!r}")
    assert isinstance(data, DnaDataModule)
    genome = data.genome
    size = max(1, contexts[0] // 4)
    spans = data.evaluation_spans(split)
    targets = target_blocks(spans, genome, size=size, context=contexts[-1], count=blocks)
    narrow = resolve_precision(config.train.precision, device) == "bf16"
    positions = 2**14 if device == "cpu" else 2**18
    model.to(device).eval()

    ids = np.stack([genome.fetch(*block) for block in targets])
    known = (ids >= _FIRST) & (ids <= _LAST)
    lower = np.stack([genome.lower_case(*block) for block in targets])
    gc = ((ids == _C) | (ids == _G)).sum(1) / known.sum(1)
    groups = {context: _groups(len(targets), positions, context + size) for context in contexts}
    batches = sum(len(group) for group in groups.values())
    done = 0
    nats = {}
    for context in contexts:
        found = []
        for group in groups[context]:
            windows = np.stack([genome.fetch(b.record, b.start - context, b.end) for b in targets[group]])
            symbols = torch.from_numpy(windows.astype(np.int64))
            found.append(target_nats(model, symbols, size, positions=positions, device=device, narrow=narrow))
            done += 1
            if progress is not None:
                progress(done, batches)
        nats[context] = np.concatenate(found)

    # A fifth of what the matched part costs, or the whole split where that is less.
    budget = max(1, blocks // 4) * contexts[-1]
    windows_at_once = max(1, positions // contexts[-1])
    by_position = position_sums(
        model,
        data.evaluation_dataloader(split, batch_size=windows_at_once, max_tokens=budget),
        positions=positions,
        device=device,
        narrow=narrow,
    )
    inside = sum(_shared(block.record, block.start - contexts[-1], block.start, spans) for block in targets)
    return {
        "run": str(run),
        "which": which,
        "weights_sha256": weights_hash(model),
        "split": split,
        "contexts": contexts,
        "block_bases": size,
        "blocks": len(targets),
        "target_bases": int(known.sum()),
        "trained_length": config.train.length,
        "longest_context_inside_split": inside / (len(targets) * contexts[-1]),
        "overrides": list(overrides),
        "matched": summarise(nats, strata(known, lower, gc, [block.record for block in targets]), contexts),
        "by_position": [
            {
                "first": row.first,
                "last": row.last,
                "count": row.scored,
                "nats": row.nats / row.scored,
                "perplexity": perplexity(row.nats / row.scored),
            }
            for row in by_position
        ],
    }


def _groups(count: int, positions: int, length: int) -> list[slice]:
    """Blocks that go through together."""
    rows = max(1, positions // length)
    return [slice(low, min(low + rows, count)) for low in range(0, count, rows)]


def _shared(record: str, start: int, end: int, spans: Sequence[Any]) -> int:
    """Bases of [start, end) inside the spans, which are disjoint."""
    return sum(max(0, min(end, s.end) - max(start, s.start)) for s in spans if s.record == record)


def write_context(result: dict[str, Any], folder: Path) -> list[Path]:
    """`evaluate-context-<split>` as JSON, CSV (strata, positions) and PNG."""
    stem = f"evaluate-context-{result['split']}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}{suffix}" for suffix in (".json", ".csv", "-position.csv", ".png")]
    write_json(paths[0], result | {"pictures": [paths[3].name]})
    write_text(paths[1], _csv(result["matched"]))
    write_text(paths[2], _csv(result["by_position"]))
    context_curves(result, paths[3])
    return paths


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: cell(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows
    )
    return text.getvalue()


def describe_context(result: dict[str, Any]) -> str:
    """The evaluation for people."""
    lines = [
        f"{result['split']} split: the same {result['target_bases']:,} bases in {result['blocks']:,} blocks under "
        f"every context; each has the context and up to {result['block_bases'] - 1:,} bases more before it; "
        f"{result['longest_context_inside_split']:.0%} of the longest context lies in the split itself; the model was "
        f"trained at {result['trained_length']:,}",
        "",
        f"{'stratum':<28}{'bases':>10}" + "".join(f"{context:>12,}" for context in result["contexts"]),
    ]
    by_stratum: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["matched"]:
        by_stratum.setdefault((row["kind"], row["stratum"]), []).append(row)
    for (_, name), rows in by_stratum.items():
        cells = "".join(f"{row['perplexity']:>12.4f}" for row in rows)
        lines.append(f"{name[:27]:<28}{rows[0]['count']:>10,}{cells}")
    last = result["matched"][len(result["contexts"]) - 1]
    lines += [
        "",
        f"From {result['contexts'][0]:,} to {last['context']:,} bases the loss falls by {last['gain_nats']:.4f} nats, "
        f"standard error {last['gain_standard_error']:.4f}.",
        "",
        f"perplexity by bases of context within windows of {result['contexts'][-1]:,}:",
    ]
    for row in result["by_position"]:
        lines.append(f"  {row['first']:>10,} to {row['last']:>10,}{row['count']:>12,} bases{row['perplexity']:>10.4f}")
    return "\n".join(lines)
