"""Tests whether the class can be predicted without biology: from length, case, N or names, each tried alone.

A decision tree gets one trivial feature of each sequence and predicts the class of sequences that it was not fitted on
(cross-validation); its balanced accuracy is compared with chance. A feature that the model sees (N; the length, if whole
sequences are examples) makes the task easier than it looks: the model may learn that instead. A feature that it never
sees (case and names, which do not reach the tokens; the length, if windows of one length are drawn) cannot be learnt, but
shows that the classes come from different sources, which may differ in visible ways too: assembly quality, masking,
trimming.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from mamba_bio_audio.pipelines.dna.labelled import Labelled
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

MAX_SEQUENCES = 20_000
FOLDS = 5
MARGIN = 0.1
LUCK = 0.005  # Below this probability, as many right guesses are not luck.


@dataclass(frozen=True)
class LabelLeak:
    """Result for one trivial feature: how well it alone predicts the class.

    Attributes:
        feature: name of the feature.
        seen: whether the model can see it.
        accuracy: balanced accuracy on sequences not fitted on; None if a class has too few sequences to try.
        chance: 1 / number of classes.
        count: number of sequences.
    """

    feature: str
    seen: bool
    accuracy: float | None
    chance: float
    count: int

    @property
    def above_chance(self) -> bool:
        """Whether the accuracy is clearly above chance, whether by luck or not."""
        return self.accuracy is not None and self.accuracy > self.chance + MARGIN

    @property
    def predictive(self) -> bool:
        """Whether the feature predicts the class: above chance, and not by luck."""
        return self.above_chance and binom.sf(round(self.count * self.accuracy) - 1, self.count, self.chance) < LUCK  # type: ignore

    @property
    def text(self) -> str:
        """The finding as text for people."""
        if self.accuracy is None:
            return f"{self.feature}: cannot be tried, because a class has only one sequence"
        found = f"{self.feature} alone: {self.accuracy:.0%} (chance {self.chance:.0%})"
        if not self.predictive:
            return f"{found}: {'too few sequences to tell' if self.above_chance else 'does not predict the class'}"
        if self.seen:
            return f"{found}: the model sees it and may learn it instead of the sequence"
        return f"{found}: the model does not see it, but the classes come from different sources"

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain values for JSON."""
        return asdict(self) | {
            "above_chance": self.above_chance,
            "predictive": bool(self.predictive),
            "text": self.text,
        }


def label_leaks(
    classes: ArrayLike,
    *,
    lengths: ArrayLike,
    unknown: ArrayLike,
    lower: ArrayLike | None,
    names: Sequence[str],
    length_seen: bool,
    seed: int = 0,
) -> list[LabelLeak]:
    """Try every trivial feature of n sequences, which are records, or examples if those are whole sequences.

    Args:
        classes: (n,) class indices.
        lengths: (n,) lengths in bases.
        unknown: (n,) share of bases other than A, C, G, T.
        lower: (n,) share of lower-case letters; None if unknown.
        names: (n,) record names; only their pattern counts, with all digits alike.
        length_seen: whether whole sequences are examples; False if windows of one length are drawn from them.
        seed: random seed for the folds, and for the choice among more than 20,000 sequences.
    """
    y = np.asarray(classes)
    features = {
        "record length": (np.asarray(lengths, dtype=np.float64), length_seen),
        "share of N": (np.asarray(unknown, dtype=np.float64), True),
        "pattern of record names": (_pattern_codes(names), False),
    }
    if lower is not None:
        features["share of lower case"] = (np.asarray(lower, dtype=np.float64), False)
    for name, (values, _) in features.items():
        if values.shape != y.shape:
            raise ValueError(f"{name}: {values.shape} values for {y.shape} classes")
    if len(y) > MAX_SEQUENCES:
        chosen = np.random.default_rng(seed).choice(len(y), MAX_SEQUENCES, replace=False)
        y, features = y[chosen], {name: (values[chosen], seen) for name, (values, seen) in features.items()}
    present, counts = np.unique(y, return_counts=True)
    chance = 1 / max(1, len(present))
    found = []
    for name, (values, seen) in features.items():
        accuracy = None
        if len(present) > 1 and counts.min() > 1:
            accuracy = chance if (values == values[0]).all() else _predict(values, y, int(counts.min()), seed)
        found.append(LabelLeak(name, seen, accuracy, chance, len(y)))
    return found


def leaks_of(labelled: Labelled) -> list[LabelLeak]:
    """Run `label_leaks` on labelled data: on its examples, or on the records that windows are drawn from."""
    regions = labelled.regions
    if not labelled.examples:
        regions = list({(r.label, r.source, r.record): r for r in regions}.values())
    codec = DnaTokenizer()
    lengths, unknown, lower, names = [], [], [], []
    for region in regions:
        if labelled.genomes:
            genome = labelled.genomes[region.source]
            statistics = genome.statistics(region.record)
            start, end = (region.start, region.end) if labelled.examples else (0, statistics.length)
            lengths.append(end - start)
            unknown.append(int(genome.count_unknown(region.record, start, end)) / (end - start))
            lower.append(statistics.counts["lower"] / statistics.length)
            names.append(genome.bare_name(region.record))
        else:
            ids = labelled.sequences[region.record]
            lengths.append(len(ids))
            unknown.append(codec.count_unknown(ids) / len(ids))
            # In GenomicBenchmarks the folder is the class.
            names.append(region.record.rsplit("/", 1)[-1])
    return label_leaks(
        [region.label for region in regions],
        lengths=lengths,
        unknown=unknown,
        lower=lower or None,
        names=names,
        length_seen=labelled.examples,
    )


def leak_rows(leaks: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Lines for a summary, from `LabelLeak.to_dict`s: every predictive feature, or one line that says there is none."""
    telling = [leak for leak in leaks if leak["predictive"]]
    untried = [leak["text"] for leak in leaks if leak["accuracy"] is None or leak["above_chance"]]
    if telling:
        return [("LABEL LEAK" if leak["seen"] else "label note", leak["text"]) for leak in telling]
    if untried:
        return [("label leaks", untried[0])]
    return [("label leaks", "none: length, case, N and names do not predict the class")]


def _predict(values: NDArray[np.float64], y: NDArray[np.int64], smallest: int, seed: int) -> float:
    folds = StratifiedKFold(min(FOLDS, smallest), shuffle=True, random_state=seed)
    # Leaves hold several sequences, because a tree that memorises single values would mistake chance for knowledge.
    leaf = 1 if smallest < 10 else 5
    tree = DecisionTreeClassifier(min_samples_leaf=leaf, class_weight="balanced", random_state=seed)
    return float(balanced_accuracy_score(y, cross_val_predict(tree, values[:, None], y, cv=folds)))


def _pattern_codes(names: Sequence[str]) -> NDArray[np.float64]:
    patterns = [re.sub(r"\d+", "0", name) for name in names]
    return np.unique(patterns, return_inverse=True)[1].astype(np.float64).reshape(-1)
