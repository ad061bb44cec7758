"""Statistics of a genome, ready for JSON."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.spans import Span

_PIECE_BASES = 1 << 22


def describe(genome: Genome) -> dict[str, Any]:
    """Files, sizes and letter shares of a genome, ready for JSON."""
    totals = dict.fromkeys(("bases", "unknown", "N", "lower"), 0)
    for statistics in genome.scan().values():
        totals["bases"] += statistics.length
        totals["unknown"] += statistics.unknown
        totals["N"] += statistics.counts["N"]
        totals["lower"] += statistics.counts["lower"]
    return {
        "files": [
            {"name": file.name, "path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
            for file in genome.fingerprint()
        ],
        "genomes": genome.genomes,
        "records": len(genome.records),
        "bases": totals["bases"],
        "unknown_percent": 100 * totals["unknown"] / totals["bases"],
        "n_percent": 100 * totals["N"] / totals["bases"],
        "other_letters_percent": 100 * (totals["unknown"] - totals["N"]) / totals["bases"],
        "lower_case_percent": 100 * totals["lower"] / totals["bases"],
    }


def describe_contigs(genome: Genome, contigs: str | list[str], spans: list[Span]) -> dict[str, Any]:
    """Records that `data.contigs` included and left out, and names found under an alias, ready for JSON."""
    used = dict.fromkeys(span.record for span in spans)
    whole = all(span.end - span.start == genome.records[span.record] for span in spans)
    return {
        "contigs": {
            "policy": contigs,
            "used": list(used) if whole else [f"{s.record}:{s.start + 1}-{s.end}" for s in spans],
            "bases": sum(span.end - span.start for span in spans),
            "left_out": [record for record in genome.records if record not in used],
        },
        "aliases": dict(genome.aliases),
    }


def composition(genome: Genome, spans: Iterable[Span]) -> dict[str, float]:
    """Shares of A, C, G, T among the known bases of spans, which sum to 1; all 0.25 if there are none."""
    counts = np.zeros(256, dtype=np.int64)
    for span in spans:
        for start in range(span.start, span.end, _PIECE_BASES):
            ids = genome.fetch(span.record, start, min(start + (_PIECE_BASES), span.end))
            counts += np.bincount(ids, minlength=256)
    known = counts[list(genome.codec.base_ids)].astype(float)
    shares = known / known.sum() if known.sum() else np.full(4, 0.25)
    return dict(zip("ACGT", shares.tolist(), strict=True))
