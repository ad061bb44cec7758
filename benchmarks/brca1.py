"""Zero-shot effects of BRCA1 variants (Findlay et al. 2018, 3,297 SNVs), and how it was chosen what is scored.

    python benchmarks/brca1.py choose --out variant_choices_cpu.csv                                       no GPU, ten minutes
    python benchmarks/brca1.py score human42mb-1m4 --genome MEGABASE.fa.gz --sites variants.tsv --out FOLDER     a GPU, minutes
    python benchmarks/brca1.py report FOLDER --table variants.tsv --markov CHRX.fa.gz --out FOLDER               no GPU, minutes

`choose` trains a small model on a constructed genome: families of 120 bases, every third of them free to be either purine or
either pyrimidine as the third bases of many codons are, on either strand among random bases. In copies that training never
saw, transitions of fixed bases should look worse than transitions of free ones. It gives the AUROC of each window and strand.

`score` reads only places and bases of the variants: ratios of every context, forward and on both strands, with seconds (and
how far two of them lie from reading both alleles whole, and how long that takes), and differences of embeddings. `report`
opens the labels: loss of function against the rest, ROC AUC with bootstrap intervals over variants, beside phyloP, simple
rules and an order-12 Markov model, and for missense and splice-region variants alone.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mamba_bio_audio as mba
from mamba_bio_audio.inference.streaming import hidden_states, passes_of
from mamba_bio_audio.inference.variants import WINDOW, score_variants
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.dna.contigs import parse_region
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.markov import MarkovBaseline
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.spans import Span
from mamba_bio_audio.run.timing import provenance, write_rows

EMBEDDED, EMBEDDING_CONTEXT = 512, 1024
ORDER, RESAMPLES, LEAST = 12, 1000, 30
# Fixed before any label was read: how much a consequence alone says.
SEVERITY = {"Nonsense": 2, "Canonical splice": 2, "Missense": 1, "Splice region": 1}
PUBLISHED = (("CADD", 0.8041), ("Evo 2 7B", 0.875))
WINDOWS = (1, 4, 16, 64, 128, 256, 512)
FAMILIES, FAMILY_BASES, SPACING = 2, 120, 300

# A and G, C and T.
TRANSITION = np.arange(12, dtype=np.uint8)
TRANSITION[[7, 8, 9, 10]] = [9, 10, 7, 8]

app = typer.Typer(add_completion=False)


@app.callback()
def main() -> None:
    """Zero-shot effects of variants."""


class Constructed:
    """A genome with copies of families of elements.

    Attributes:
        ids: the bases.
        changes: (position, new base, 1 where the base is fixed in its family).
    """

    def __init__(self, elements: int, families: NDArray[np.uint8], rng: np.random.Generator) -> None:
        codec = DnaTokenizer()
        self.ids = rng.integers(7, 11, elements * SPACING).astype(np.uint8)
        self.changes: list[tuple[int, int, int]] = []
        for element in range(elements):
            copy = families[rng.integers(len(families))].copy()
            fixed = np.arange(FAMILY_BASES) % 3 != 2
            # A and G, or C and T, stand for each other, as in most codons.
            swapped = ~fixed & (rng.random(FAMILY_BASES) < 0.5)
            copy[swapped] = TRANSITION[copy[swapped]]
            # A few fixed bases differ too: the families are old.
            old = fixed & (rng.random(FAMILY_BASES) < 0.05)
            copy[old] = rng.integers(7, 11, int(old.sum()))
            if rng.random() < 0.5:
                copy, fixed, old = codec.reverse_complement(copy), fixed[::-1], old[::-1]
            start = element * SPACING + int(rng.integers(60, SPACING - FAMILY_BASES - 60))
            self.ids[start : start + FAMILY_BASES] = copy
            for at in rng.choice(FAMILY_BASES, 12, replace=False):
                if not old[at]:
                    self.changes.append((start + int(at), int(TRANSITION[copy[at]]), int(fixed[at])))


@app.command()
def choose(
    out: Annotated[Path, typer.Option(help="CSV.")],
    steps: int = 1000,
    elements: int = 3000,
    tested: int = 200,
    context: int = 512,
    seeds: int = 2,
) -> None:
    """Choose window, sign and strands on constructed data."""
    rows: list[dict[str, Any]] = []
    codec = DnaTokenizer()
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        families = rng.integers(7, 11, (FAMILIES, FAMILY_BASES)).astype(np.uint8)
        train, test = Constructed(elements, families, rng), Constructed(tested, families, rng)
        model, nats = _trained(train.ids, steps, seed)
        fasta = out.with_suffix(".fa")
        fasta.write_text(f">constructed\n{codec.decode(test.ids)}\n")
        genome = Genome(fasta)
        letters = codec.decode(test.ids)
        variants = [("constructed", at, letters[at], codec.decode([new])) for at, new, _ in test.changes]
        fixed = np.array([change[2] for change in test.changes])
        for window in WINDOWS:
            found = score_variants(model, genome, variants, context=context, window=window)
            both = [score for score in found if score.forward and score.reverse]
            labels = fixed[[bool(score.forward and score.reverse) for score in found]]
            strands = {
                "forward": [score.forward.ratio for score in both],
                "reverse": [score.reverse.ratio for score in both],
                "mean": [score.ratio for score in both],
            }
            for strand, ratios in strands.items():
                auroc = roc_auc_score(labels, -np.array(ratios))
                row = {"seed": seed, "window": window, "strand": strand, "variants": len(both)}
                row |= {"fixed": int(labels.sum()), "auroc_of_minus_ratio": f"{auroc:.4f}"}
                rows.append(row | {"training_nats": f"{nats:.4f}", "steps": steps} | provenance("cpu"))
                print(row, flush=True)
        fasta.unlink()
    write_rows(out, rows)


def _trained(ids: NDArray[np.uint8], steps: int, seed: int) -> tuple[IsotropicModel, float]:
    """A model of 2 layers x 64, and the mean loss of its last twentieth of steps."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = IsotropicModel(ModelConfig(vocab_size=12, d_model=64, num_layers=2))
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    codec, losses, start = DnaTokenizer(), [], time.perf_counter()
    for step in range(steps):
        rows = []
        for at in rng.integers(0, len(ids) - 513, 8):
            row = ids[at : at + 513]
            rows.append(codec.reverse_complement(row) if rng.random() < 0.5 else row)
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
        result = model(tokens[:, :-1], targets=tokens[:, 1:], logits="none")
        loss = result.loss_sum / result.count
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 50 == 0:
            print(f"step {step} {np.mean(losses[-50:]):.4f} nats, {time.perf_counter() - start:.0f} s", flush=True)
    return model.eval(), float(np.mean(losses[-steps // 20 :]))


class Site(NamedTuple):
    """A substitution; `start` counts from 0."""

    record: str
    start: int
    reference: str
    alternative: str


def read_sites(table: Path, genome: Genome) -> list[Site]:
    """Substitutions of a table; nothing but their places and bases is read."""
    (record,) = genome.records
    # The record is a stretch of a chromosome, named by its place: chr17:42425000-43600000.
    offset = parse_region(record).start or 1
    with table.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [Site(record, int(row["pos_GRCh38"]) - offset, row["ref"], row["alt"]) for row in rows]


@app.command()
def score(
    run: Annotated[str, typer.Argument(help="Run, export or packaged model.")],
    genome: Annotated[Path, typer.Option(help="FASTA of one record, named by its place.")],
    sites: Annotated[Path, typer.Option(help="TSV with pos_GRCh38, ref, alt.")],
    out: Annotated[Path, typer.Option(help="Folder.")],
    shortest: Annotated[int, typer.Option(help="Shortest context, as a power of two.")] = 9,
    longest: Annotated[int, typer.Option(help="Longest context, forward strand.")] = 19,
    both: Annotated[int, typer.Option(help="Longest context on both strands.")] = 18,
    limit: Annotated[int | None, typer.Option(help="Only so many variants.")] = None,
) -> None:
    """Score every variant at every context, and keep seconds and differences of embeddings."""
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = mba.load(run).to(device)
    reference = Genome(genome)
    variants = read_sites(sites, reference)[:limit]
    where = provenance(device)
    ratios: dict[str, NDArray[np.float64]] = {}
    rows: list[dict[str, Any]] = []
    # Kernels are compiled outside of the times.
    score_variants(model, reference, variants[:8], context=1 << shortest)
    for power in range(shortest, longest + 1):
        for strand in ("forward", "both") if power <= both else ("forward",):
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            found = score_variants(model, reference, variants, context=1 << power, strand=strand)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            assert all(one.ratio is not None for one in found), next(one for one in found if one.ratio is None)
            contexts = [side.context for one in found for side in (one.forward, one.reverse) if side is not None]
            ratios[f"{strand}-{power}"] = np.array([one.ratio for one in found])
            row = {"context": 1 << power, "strand": strand, "variants": len(found), "window": WINDOW}
            row |= {"least_context": min(contexts), "most_context": max(contexts), "seconds": f"{seconds:.2f}"}
            row |= {"peak_gib": f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if device == "cuda" else ""}
            row |= {"whole_difference": "", "whole_seconds_each": ""}
            if strand == "forward":
                start = time.perf_counter()
                apart = [
                    abs(whole(model, reference, *pair) - pair[1].ratio)
                    for pair in zip(variants, found[:2], strict=False)
                ]
                row |= {"whole_difference": f"{max(apart):.1e}"}
                row |= {"whole_seconds_each": f"{(time.perf_counter() - start) / len(apart):.3f}"}
            rows.append(row | {"model": Path(run).name, "weights_sha256": weights_hash(model)} | where)
            print(row, flush=True)
            # Whole after every context, should the call end early.
            write_rows(out / "brca1_seconds.csv", rows)
            np.savez(out / "brca1_ratios.npz", starts=[one.start for one in variants], **ratios)
    start = time.perf_counter()
    np.savez(out / "brca1_embeddings.npz", difference=embedded(model, reference, variants))
    print(f"embeddings: {time.perf_counter() - start:.1f} s", flush=True)


def whole(model: Any, genome: Genome, one: Site, score: Any) -> float:
    """The ratio on the forward strand from reading both alleles whole, from the same base on."""
    ids = genome.fetch(one.record, one.start - score.forward.context, one.start + score.forward.bases)
    changed = ids.copy()
    changed[score.forward.context] = genome.codec.encode(one.alternative)[0]
    both = [
        mba.log_likelihood(model, row.astype(np.int64)).per_base[0, -score.forward.bases :].sum()
        for row in (ids, changed)
    ]
    return float(both[1] - both[0])


def embedded(model: Any, genome: Genome, variants: Sequence[Site]) -> NDArray[np.float32]:
    """Difference of mean hidden states over the window, alternative less reference, of both strands side by side (n, 2 D)."""
    codec = genome.codec
    passes = passes_of(model, rows=32)
    out = []
    for reverse in (False, True):
        rows = []
        for one in variants:
            low, high = one.start - EMBEDDING_CONTEXT, one.start + EMBEDDED
            if reverse:
                low, high = one.start + 1 - EMBEDDED, one.start + 1 + EMBEDDING_CONTEXT
            ids = genome.fetch(one.record, low, high)
            changed = ids.copy()
            changed[one.start - low] = codec.encode(one.alternative)[0]
            rows += [codec.reverse_complement(row) if reverse else row for row in (ids, changed)]
        means = []
        for at in range(0, len(rows), 32):
            total: Any = 0.0
            for low, hidden in hidden_states(model, rows[at : at + 32], pad_id=codec.pad_id, passes=passes):
                total = total + hidden[:, max(0, EMBEDDING_CONTEXT - low) :].double().sum(1)
            means.append((total / EMBEDDED).cpu().numpy())
        mean = np.concatenate(means)
        out.append(mean[1::2] - mean[::2])
    return np.concatenate(out, 1).astype(np.float32)


@app.command()
def report(
    scores: Annotated[Path, typer.Argument(help="Folder that `score` wrote.")],
    table: Annotated[Path, typer.Option(help="TSV with the labels.")],
    genome: Annotated[Path, typer.Option(help="FASTA that was scored.")],
    markov: Annotated[list[Path], typer.Option(help="FASTA that the Markov model is fitted on; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder.")],
) -> None:
    """Open the labels and compare."""
    reference = Genome(genome)
    variants = read_sites(table, reference)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    ratios = dict(np.load(scores / "brca1_ratios.npz"))
    count = len(ratios["starts"])
    assert [one.start for one in variants[:count]] == ratios.pop("starts").tolist()
    variants, rows = variants[:count], rows[:count]
    lof = np.array([row["func_class"] == "LOF" for row in rows])
    consequence = np.array([row["consequence"] for row in rows])
    exons = np.array([row["experiment"] for row in rows])
    transversion = np.array([TRANSITION[ord_of(one.reference)] != ord_of(one.alternative) for one in variants]) * 1.0
    start = time.perf_counter()
    bars = {
        "phyloP": np.array([float(row["phyloP"]) for row in rows]),
        "consequence rule": np.array([float(SEVERITY.get(name, 0)) for name in consequence]),
        "transversion rule": transversion,
        f"Markov order {ORDER}": -markov_ratios(reference, variants, markov),
    }
    print(f"Markov: {time.perf_counter() - start:.0f} s", flush=True)
    # How much worse: the ratio with its sign turned round, as was fixed.
    methods = {f"ratio {name}": -values for name, values in ratios.items()} | bars
    # 13 MB of 16 x 256, which need not have come back from the machine.
    if (scores / "brca1_embeddings.npz").exists():
        embeddings = np.load(scores / "brca1_embeddings.npz")["difference"]
        methods["embedding difference, one exon left out"] = left_out(embeddings, lof, exons)
    with (scores / "brca1_seconds.csv").open(newline="") as file:
        timed = {f"ratio {row['strand']}-{int(row['context']).bit_length() - 1}": row for row in csv.DictReader(file)}
    where = provenance("cpu")
    results = []
    for subset in ("all", *map(str, np.unique(consequence))):
        chosen = np.ones(count, bool) if subset == "all" else consequence == subset
        hurt, fine = int(lof[chosen].sum()), int((~lof[chosen]).sum())
        if min(hurt, fine) < LEAST:
            print(f"{subset}: {hurt} LOF, {fine} others: too few", flush=True)
            continue
        own = {name: values[chosen] for name, values in methods.items()}
        found = compared(own, lof[chosen], ("transversion rule", f"Markov order {ORDER}"))
        for name, figures in found.items():
            by = timed.get(name, {})
            row = {"subset": subset, "method": name, "variants": hurt + fine, "lof": hurt} | figures
            row |= {key: by.get(key, "") for key in ("context", "strand", "window", "seconds", "peak_gib")}
            row["useful"] = ("yes" if is_useful(figures) else "no") if name.startswith("ratio") else ""
            row |= {"scored_on": by.get("device", ""), "weights_sha256": by.get("weights_sha256", "")[:16]}
            results.append(row | where)
            print({key: row[key] for key in ("subset", "method", "auroc", "low", "high")}, flush=True)
    for name, value in PUBLISHED:
        row = {"subset": "all 3,893, as published", "method": name, "variants": 3893, "auroc": f"{value:.4f}"}
        results.append(row | where)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "brca1.csv", results)
    longest = max((name for name in ratios if name.startswith("both")), key=lambda name: int(name.split("-")[1]))
    kinds = {(False, True): "A or T to C or G", (True, False): "C or G to A or T"}
    change = [
        kinds.get((one.reference in "CG", one.alternative in "CG"), "A to T, C to G and back") for one in variants
    ]
    write_rows(out / "brca1_groups.csv", grouped(longest, ratios[longest], lof, (consequence, np.array(change)), where))
    draw(out / "brca1.png", results)


def grouped(
    name: str,
    ratios: NDArray[np.float64],
    lof: NDArray[np.bool_],
    groupings: Sequence[NDArray[Any]],
    where: dict[str, Any],
) -> list[dict[str, Any]]:
    """Median ratio and share of ratios below zero of groups of variants; looked at after the labels had been read."""
    found = {"all": np.ones(len(ratios), bool)}
    found |= {str(group): grouping == group for grouping in groupings for group in np.unique(grouping)}
    rows = []
    for group, chosen in found.items():
        row = {"group": group, "method": f"ratio {name}", "variants": int(chosen.sum()), "lof": int(lof[chosen].sum())}
        row |= {"median_ratio": f"{np.median(ratios[chosen]):.3f}", "below_zero": f"{(ratios[chosen] < 0).mean():.3f}"}
        rows.append(row | where)
    return rows


def ord_of(base: str) -> int:
    """The id of a base."""
    return int(DnaTokenizer().encode(base)[0])


def is_useful(row: dict[str, str]) -> bool:
    """Whether the intervals of both differences, from the Markov ratio and from the transversion rule, lie above zero."""
    return all(float(row[key]) > 0 for key in row if key.startswith("over_") and key.endswith("_low"))


def fitted(files: Sequence[Path]) -> MarkovBaseline:
    """A Markov model of FASTA files."""
    fitted_on = Genome(files)
    records = sorted(fitted_on.records, key=fitted_on.records.__getitem__)
    # The smoothing is chosen on the last twentieth of each record.
    cuts = {name: fitted_on.records[name] * 19 // 20 for name in records}
    model = MarkovBaseline.fit(fitted_on, [Span(name, 0, cuts[name]) for name in records], ORDER)
    model.choose(fitted_on, [Span(name, cuts[name], fitted_on.records[name]) for name in records])
    print(f"Markov smoothing {model.smoothing:g}, best order {model.order}", flush=True)
    return model


def markov_ratios(genome: Genome, variants: Sequence[Site], files: Sequence[Path]) -> NDArray[np.float64]:
    """log p(alternative) - log p(reference) of an order-12 Markov model, the mean of both strands: the 13 bases that differ."""
    model = fitted(files)
    codec = genome.codec
    out = []
    for one in variants:
        total = 0.0
        for reverse in (False, True):
            ids = genome.fetch(one.record, one.start - ORDER, one.start + ORDER + 1)
            changed = ids.copy()
            changed[ORDER] = codec.encode(one.alternative)[0]
            for sign, row in ((-1, ids), (1, changed)):
                read = codec.reverse_complement(row) if reverse else row
                for at in range(ORDER, len(read)):
                    total += sign * float(np.log(model.distribution(read[at - ORDER : at], ORDER)[read[at] - 7]))
        out.append(total / 2)
    return np.array(out)


def left_out(features: NDArray[Any], labels: NDArray[np.bool_], exons: NDArray[Any]) -> NDArray[np.float64]:
    """Log-odds of logistic regression on the other exons; its penalty is chosen on those too, whole exons apart."""
    out = np.zeros(len(labels))
    for exon in sorted(set(exons)):
        train = exons != exon
        folds = GroupKFold(min(5, len(set(exons[train]))))
        # The penalty is chosen by whole exons too.
        search = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
            {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]},
            scoring="roc_auc",
            cv=folds,
        )
        search.fit(features[train], labels[train], groups=exons[train])
        out[~train] = search.decision_function(features[~train])
    return out


def compared(
    methods: dict[str, NDArray[np.float64]], labels: NDArray[np.bool_], bars: Sequence[str]
) -> dict[str, dict[str, str]]:
    """AUROC of each method with a 95 % interval, and how far it lies over each bar on the same draws of variants."""
    rng = np.random.default_rng(0)
    draws = []
    while len(draws) < RESAMPLES:
        drawn = rng.integers(0, len(labels), len(labels))
        if 0 < labels[drawn].sum() < len(labels):
            draws.append(drawn)
    values = {name: auroc(labels, score) for name, score in methods.items()}
    drawn = {name: np.array([auroc(labels[at], score[at]) for at in draws]) for name, score in methods.items()}

    def interval(figures: NDArray[np.float64]) -> tuple[str, str]:
        low, high = np.quantile(figures, (0.025, 0.975))
        return f"{low:.4f}", f"{high:.4f}"

    found = {}
    for name, value in values.items():
        low, high = interval(drawn[name])
        row = {"auroc": f"{value:.4f}", "low": low, "high": high}
        for bar in bars:
            key = "over_" + bar.split()[0].lower()
            row[key] = f"{value - values[bar]:.4f}"
            row[f"{key}_low"], row[f"{key}_high"] = interval(drawn[name] - drawn[bar])
        found[name] = row
    return found


def auroc(labels: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """ROC AUC from ranks, equal scores sharing theirs."""
    ranks = rankdata(score)
    hurt = int(labels.sum())
    return float((ranks[labels].sum() - hurt * (hurt + 1) / 2) / (hurt * (len(labels) - hurt)))


def draw(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """AUROC against context, beside the bars."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in results if row["subset"] == "all"]
    # Side by side, as the curves can lie on each other.
    for strand, shift in (("forward", 0.94), ("both", 1.06)):
        own = [row for row in rows if row["strand"] == strand]
        values = [float(row["auroc"]) for row in own]
        errors = [
            [value - float(row["low"]) for value, row in zip(values, own, strict=True)],
            [float(row["high"]) - value for value, row in zip(values, own, strict=True)],
        ]
        contexts = [int(row["context"]) * shift for row in own]
        axes.errorbar(contexts, values, errors, fmt="o-", markersize=4, capsize=2, label=f"ratio, {strand}")
    # From the top, so that the legend has their order.
    bars = sorted((row for row in rows if not row["strand"]), key=lambda row: -float(row["auroc"]))
    styles = ("--", "-.", ":", "-", (0, (8, 3)))[: len(bars)]
    for row, style in zip(bars, styles, strict=True):
        axes.axhline(float(row["auroc"]), color="dimgrey", linestyle=style, linewidth=1, label=row["method"])
    axes.set_xscale("log", base=2)
    axes.set(xlabel="bases of context, at least", ylabel="ROC AUC, LOF against the rest")
    axes.legend(fontsize=7)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=80)
    Image.open(drawn).quantize(32).save(path, optimize=True)


if __name__ == "__main__":
    app()
