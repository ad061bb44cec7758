"""What `mba evaluate --metrics unknown` does: which sequences the run's classifier should call unknown."""

from __future__ import annotations

import datetime
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import write_json
from mamba_bio_audio.jobs.evaluate_kept import keep
from mamba_bio_audio.jobs.evaluate_results import Kept
from mamba_bio_audio.run.unknown import UNKNOWN_NAME

if TYPE_CHECKING:
    from mamba_bio_audio.jobs.evaluate import EvaluateOptions, Opened
    from mamba_bio_audio.pipelines.contract import Progress

# Windows that are read of each file of foreign sequence.
MOST_FOREIGN = 2000


class UnknownResult(Kept):
    """Fitted temperature and threshold, and what they call unknown.

    Attributes:
        keep: share of validation that was to stay known.
        unknown: share that is called unknown, by where the sequences are from.
        sequences: how many those are.
        auroc: of validation against each other kind of sequence, by the chosen rule.
        separation: the same against shuffled sequences, by rule.
        valid_nats: at temperature 1 and at the fitted one.
        accuracy: of validation sequences, all and those that stay known.
    """

    run: str
    which: str
    weights_sha256: str
    length: int
    strand: str | None = None
    temperature: float
    rule: str
    threshold: float
    keep: float
    unknown: dict[str, float]
    sequences: dict[str, int]
    auroc: dict[str, float]
    separation: dict[str, float]
    valid_nats: tuple[float, float]
    accuracy: tuple[float, float | None]
    made: str
    unit: str = Field("base", exclude=True)

    def text(self) -> str:
        """The choice, and a table of what is called unknown."""
        from mamba_bio_audio.evaluation.unknown import HIGHEST

        what = "largest probability" if self.rule == "probability" else "energy"
        areas = ", ".join(f"{rule} {area:.3f}" for rule, area in self.separation.items())
        kept = "" if self.accuracy[1] is None else f", {self.accuracy[1]:.1%} of those that stay known"
        lines = [
            f"temperature {self.temperature:.3g}: {self.valid_nats[1]:.4f} nats on validation, {self.valid_nats[0]:.4f} at 1"
            + (", at the edge of what was tried" if abs(abs(math.log(self.temperature)) - HIGHEST) < 0.01 else ""),
            f"unknown: {what} below {self.threshold:.4g}, so that at least {self.keep:.1%} of validation stay known (AUROC "
            f"against shuffled: {areas})",
            f"validation accuracy {self.accuracy[0]:.1%}{kept}",
            "",
            f"{'sequences of ' + format(self.length, ',') + ' ' + self.unit + 's':<40}{'count':>9}{'unknown':>10}{'AUROC':>8}",
        ]
        for name, share in self.unknown.items():
            area = f"{self.auroc[name]:>8.3f}" if name in self.auroc else ""
            lines.append(f"{name:<40}{self.sequences[name]:>9,}{share:>10.1%}{area}")
        if len(self.unknown) == 2:
            lines += [
                "",
                "Shuffled sequence is easy. --foreign FILE says what becomes of what your samples may hold besides.",
            ]
        if not self.not_kept:
            lines += [
                "",
                f"kept as {Path(self.run) / UNKNOWN_NAME}: mba predict {self.run} FILE --threshold calibrated",
            ]
        return "\n".join(lines)


def fit_unknown(opened: Opened, options: EvaluateOptions, progress: Progress) -> UnknownResult:
    """Fit on validation, count on shuffled and foreign sequence, and keep it in the run.

    Raises:
        InputError: the run is no classifier of classes, or a foreign file has no sequence long enough.
    """
    import numpy as np

    from mamba_bio_audio.evaluation.resampling import auroc
    from mamba_bio_audio.evaluation.unknown import fit, probabilities, scores, shuffle
    from mamba_bio_audio.inference.classify import last_logits
    from mamba_bio_audio.inference.predict import tile
    from mamba_bio_audio.inference.streaming import Passes, positions
    from mamba_bio_audio.pipelines.scores import labelled_sequences

    config, data, domain = opened.config, opened.data, opened.domain
    if config.head is None:
        raise InputError(f"--metrics unknown needs a classifier, got a language model ({options.run}); leave it out")
    if config.head.task != "classes":
        raise InputError(
            f"--metrics unknown needs a classifier of classes, and {options.run} has head.task={config.head.task}; leave it out"
        )
    symbols = domain.symbols(config.data, data.length)
    passes = Passes(opened.device, opened.precision == "bf16", config.train.chunk)
    at_once = max(1, positions(opened.device) // data.length)
    opened.model.to(opened.device)
    strand = symbols.strands[0] if options.strand == "both" else options.strand

    def logits(rows: list[Any], what: str) -> Any:
        found = []
        for at in range(0, len(rows), at_once):
            part = rows[at : at + at_once]
            turned = [] if symbols.reverse is None or strand == "forward" else [[symbols.reverse(row) for row in part]]
            readings = ([] if strand == "reverse" else [part]) + turned
            found.append(
                np.stack(
                    [
                        last_logits(opened.model, read, symbols.pad_id, passes).double().cpu().numpy()
                        for read in readings
                    ]
                )
            )
            progress(what, min(len(rows), at + at_once), len(rows))
        return np.concatenate(found, 1)

    def foreign(file: str) -> list[Any]:
        windows = (
            item.symbols[low:high]
            for item in domain.records([file], config.data)
            if not isinstance(item.symbols, str) and len(item.symbols)
            for low, high in tile(len(item.symbols), longest)
        )
        good = (ids for ids in windows if len(ids) >= shortest and symbols.known(ids).mean() >= 1 - symbols.max_unknown)
        rows = list(itertools.islice(good, MOST_FOREIGN))
        if not rows:
            raise InputError(f"--foreign {file}: no stretch of {shortest:,} known {symbols.unit}s; give other sequence")
        return rows

    rows, y = labelled_sequences(data.evaluation_dataset("valid"))
    longest, shortest = max(map(len, rows)), min(map(len, rows))
    valid = logits(rows, "validation")
    mixed = logits(shuffle(rows), "shuffled")
    found = fit(valid, y, mixed, options.keep)
    sets = {"validation": valid, "validation, shuffled": mixed}
    sets |= {file: logits(foreign(file), file) for file in options.foreign}

    def against(other: Any) -> float:
        known = np.repeat([True, False], [valid.shape[1], other.shape[1]])
        both = np.concatenate([scores(one, found.temperature, found.rule) for one in (valid, other)])
        return float(auroc(both, known)(np.ones((1, len(both))))[0])

    right = probabilities(valid, found.temperature).argmax(1) == y
    stays = scores(valid, found.temperature, found.rule) >= found.threshold
    result = UnknownResult(
        run=str(options.run),
        which=options.which,
        weights_sha256=opened.asked()["weights_sha256"],
        length=data.length,
        strand=strand,
        temperature=found.temperature,
        rule=found.rule,
        threshold=found.threshold,
        keep=options.keep,
        unknown={name: found.unknown(one) for name, one in sets.items()},
        sequences={name: one.shape[1] for name, one in sets.items()},
        auroc={name: against(one) for name, one in sets.items() if name != "validation"},
        separation=found.separation,
        valid_nats=found.nats,
        accuracy=(float(right.mean()), float(right[stays].mean()) if stays.any() else None),
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        unit=symbols.unit,
    )
    if not (options.run / "config.yaml").exists():
        return result.model_copy(update={"not_kept": f"not kept: {options.run} is no run folder"})
    return keep(options.run, result, lambda: write_json(options.run / UNKNOWN_NAME, result.to_json()))
