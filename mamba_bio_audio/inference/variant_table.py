"""Scores of all alleles of a file of calls: filled contig by contig, kept on disk as they grow, written line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import atomic_path
from mamba_bio_audio.inference.streaming import Passes
from mamba_bio_audio.inference.variants import Scored, Scoring, score_record
from mamba_bio_audio.pipelines.dna import vcf
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.variants import REASONS, StrandReader, Variant, check, explain, find_record

SHORT = {"forward": "FWD", "reverse": "REV"}
CODES = ("", *REASONS)
# Alleles on which bf16 is compared with fp32.
COMPARED = 256
_FIELDS = ("ratio", "bases", "context", "why")


class VariantTable:
    """Ratio, bases, context and reason of every allele on every strand: 24 bytes an allele and strand.

    Args:
        calls: the calls.
        genome: their genome.
        strands: strands to score.
        work: folder in which finished contigs are kept, to be continued from.

    Attributes:
        messages: the first allele of each reason, for people.
    """

    def __init__(self, calls: vcf.Calls, genome: Genome, strands: Sequence[str], work: Path) -> None:
        self.calls, self.genome, self.strands, self.work = calls, genome, strands, work
        alleles = calls.first_allele[-1]
        self.ratio = {name: np.full(alleles, np.nan) for name in strands}
        self.bases = {name: np.zeros(alleles, np.int32) for name in strands}
        self.context = {name: np.zeros(alleles, np.int64) for name in strands}
        self.why = {name: np.zeros(alleles, np.uint8) for name in strands}
        self.messages: dict[str, str] = {}
        self.streamed = self.windowed = 0

    def fill(self, model: Any, scoring: Scoring, passes: Passes) -> None:
        """Score what is not yet in the folder.

        Raises:
            Stopped: `passes.stop` returned True; finished contigs are kept.
            InputError: the folder holds scores of other calls.
        """
        for number, contig in enumerate(self.calls.contigs):
            alleles, variants, why = self._contig(contig)
            good = np.flatnonzero(np.array(why) == "")
            record = find_record(self.genome, contig)
            for name in self.strands:
                path = self.work / f"scores-{number:05d}-{name}.npz"
                if path.exists():
                    self._put(name, alleles, self._load(path, len(alleles)))
                    continue
                scores = Scored.none(why)
                if record is not None and len(good):
                    strand = StrandReader(self.genome, record, reverse=name == "reverse")
                    own = score_record(model, strand, [variants[at] for at in good], scoring, passes)
                    scores = scores.filled(good, own)
                self._put(name, alleles, self._save(path, scores))
            self._note(alleles, variants)

    def summary(self) -> dict[str, Any]:
        """Counts for the result of the command."""
        found = Counter(CODES[code] for code in self._reasons() if code)
        ratios = self.mean()
        scored = ratios[np.isfinite(ratios)]
        records = sum(map(len, self.calls.contigs.values()))
        malformed = [line.what for line in self.calls.malformed[:1]]
        return {
            "records": records,
            "alleles": len(ratios),
            "scored": len(scored),
            "not_scored": {reason: found[reason] for reason in REASONS if found[reason]},
            "malformed": len(self.calls.malformed),
            "messages": [*malformed, *(self.messages[reason] for reason in REASONS if reason in self.messages)],
            "median_ratio": float(np.median(np.abs(scored))) if len(scored) else None,
            "streamed": self.streamed,
            "windowed": self.windowed,
        }

    def mean(self) -> NDArray[np.float64]:
        """Mean ratio over the strands; nan where one of them is missing."""
        return np.mean([self.ratio[name] for name in self.strands], axis=0)

    def header(self) -> list[str]:
        """Declarations of the fields."""
        of = " and ".join(self.strands)
        lines = [
            vcf.info_line(
                "MBA_LLR",
                "A",
                "Float",
                f"log p(ALT) - log p(REF) in nats, {of}: negative where the model finds ALT less likely",
            )
        ]
        for name in self.strands:
            short = SHORT[name]
            lines += [
                vcf.info_line(f"MBA_LLR_{short}", "A", "Float", f"the same on the {name} strand alone"),
                vcf.info_line(
                    f"MBA_BASES_{short}", "A", "Integer", f"bases that each allele was scored on, {name} strand"
                ),
                vcf.info_line(f"MBA_CONTEXT_{short}", "A", "Integer", f"bases read before the variant, {name} strand"),
            ]
        why = "; ".join(f"{reason}: {text}" for reason, text in REASONS.items())
        return [*lines, vcf.info_line("MBA_WHY", ".", "String", f"why an allele has no score on a strand. {why}")]

    def lines(self, added: Sequence[str]) -> Iterator[str]:
        """The whole file: header, then every line in its order."""
        yield from vcf.with_header(self.calls.header, added)
        mean, reasons = self.mean(), self._reasons()
        first = self.calls.first_allele
        for number, line in self.calls.lines():
            low, high = first[number], first[number + 1]
            yield line if low == high else vcf.annotated(line, self._info(low, high, mean, reasons))

    def grid(self) -> tuple[str, NDArray[np.float64], int]:
        """For a file of all SNVs of a region: its letters, mean ratios (4, n) of A, C, G, T, and its first position from 1."""
        (contig,) = self.calls.contigs or [""]
        variants = [alleles[0] for _, alleles in self.calls.variants(contig)]
        first, last = variants[0].start, variants[-1].start
        letters, out = ["N"] * (last - first + 1), np.full((4, last - first + 1), np.nan)
        for variant, ratio in zip(variants, self.mean(), strict=True):
            letters[variant.start - first] = variant.reference
            out["ACGT".index(variant.alternative), variant.start - first] = ratio
        return "".join(letters), out, first + 1

    def _contig(self, contig: str) -> tuple[NDArray[np.int64], list[Variant], list[str]]:
        """Numbers of its alleles in the file, the alleles, and why those cannot be scored that cannot."""
        record = find_record(self.genome, contig)
        numbers: list[int] = []
        variants: list[Variant] = []
        for line, alleles in self.calls.variants(contig):
            low = self.calls.first_allele[line]
            numbers += range(low, low + len(alleles))
            variants += alleles
        return np.array(numbers, np.int64), variants, [check(variant, self.genome, record) for variant in variants]

    def _put(self, name: str, alleles: NDArray[np.int64], arrays: dict[str, NDArray[Any]]) -> None:
        for field in _FIELDS:
            getattr(self, field)[name][alleles] = arrays[field]
        self.streamed += int(arrays["read"][0])
        self.windowed += int(arrays["read"][1])

    def _save(self, path: Path, scores: Scored) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {
            "ratio": scores.ratio,
            "bases": scores.bases,
            "context": scores.context,
            "why": np.array([CODES.index(why) for why in scores.why], np.uint8),
            "read": np.array([scores.streamed, scores.windowed]),
            "calls": np.frombuffer(bytes.fromhex(self.calls.sha256), np.uint8),
        }
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return arrays

    def _load(self, path: Path, alleles: int) -> dict[str, NDArray[Any]]:
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in (*_FIELDS, "read", "calls")}
            same = arrays["calls"].tobytes().hex() == self.calls.sha256 and len(arrays["ratio"]) == alleles
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"{path}: damaged ({error}); start again with --force") from None
        if not same:
            raise InputError(f"{path}: holds scores of other calls; the input has changed. Start again with --force")
        return arrays

    def _note(self, alleles: NDArray[np.int64], variants: Sequence[Variant]) -> None:
        """Keep the first allele of each reason."""
        reasons = self._reasons(alleles)
        for code in sorted(set(reasons.tolist()) - {0}):
            if CODES[code] not in self.messages:
                at = int(np.argmax(reasons == code))
                line = int(np.searchsorted(self.calls.first_allele, alleles[at], "right")) - 1
                where = self.calls.where(line, variants[at])
                self.messages[CODES[code]] = f"{where}: {explain(variants[at], self.genome, CODES[code])}"

    def _reasons(self, alleles: Any = slice(None)) -> NDArray[np.uint8]:
        """The first strand's reason, or the other's."""
        codes = [self.why[name][alleles] for name in self.strands]
        return np.where(codes[0] > 0, codes[0], codes[-1])

    def _info(self, low: int, high: int, mean: NDArray[np.float64], reasons: NDArray[np.uint8]) -> dict[str, str]:
        """Fields of one record, of its alleles [low, high)."""
        info: dict[str, str] = {}
        some = {name: np.isfinite(self.ratio[name][low:high]) for name in self.strands}
        if np.isfinite(mean[low:high]).any():
            info["MBA_LLR"] = ",".join(f"{value:.6g}" if np.isfinite(value) else "." for value in mean[low:high])
        for name in self.strands:
            if some[name].any():
                short = SHORT[name]
                for key, values in (("LLR", self.ratio), ("BASES", self.bases), ("CONTEXT", self.context)):
                    own = values[name][low:high]
                    shown = [f"{value:.6g}" if key == "LLR" else str(value) for value in own.tolist()]
                    known = zip(shown, some[name], strict=True)
                    info[f"MBA_{key}_{short}"] = ",".join(text if scored else "." for text, scored in known)
        if reasons[low:high].any():
            info["MBA_WHY"] = ",".join(CODES[code] or "." for code in reasons[low:high])
        return info


def bf16_change(model: Any, table: VariantTable, scoring: Scoring, passes: Passes) -> dict[str, Any]:
    """What bf16 changes, on alleles spread over the first contig that has scores; scored again in fp32.

    Returns:
        `bf16_change` and `bf16_ratio`: medians of the absolute change and of the absolute fp32 ratio, nats;
        `bf16_alleles`: of how many. Nothing where no allele has a score.
    """
    wide = replace(passes, narrow=False)
    for contig in table.calls.contigs:
        alleles, variants, _ = table._contig(contig)
        scored = np.flatnonzero(np.isfinite(table.mean()[alleles]))
        record = find_record(table.genome, contig)
        if record is None or not len(scored):
            continue
        chosen = scored[np.linspace(0, len(scored) - 1, min(len(scored), COMPARED)).astype(np.int64)]
        exact = np.mean(
            [
                score_record(
                    model,
                    StrandReader(table.genome, record, reverse=name == "reverse"),
                    [variants[at] for at in chosen],
                    scoring,
                    wide,
                ).ratio
                for name in table.strands
            ],
            axis=0,
        )
        change = np.abs(table.mean()[alleles[chosen]] - exact)
        return {
            "bf16_change": float(np.median(change)),
            "bf16_ratio": float(np.median(np.abs(exact))),
            "bf16_alleles": len(chosen),
        }
    return {}
