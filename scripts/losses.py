"""Where this project loses: for each claim its best row beside its worst, read from the result files.

    python scripts/losses.py           prints the table
    python scripts/losses.py --write   puts it into docs/benchmarks.md, and its headlines into README.md, between their marks

Every number is read from a file; what a row is called is made from the file's columns.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


class Claim(NamedTuple):
    what: str
    best: str
    worst: str
    file: str
    headline: bool = False  # also in the README


def rows(name: str, **wanted: str) -> list[dict[str, str]]:
    """Rows of a CSV file whose columns are as wanted; never none."""
    with (RESULTS / name).open(newline="") as table:
        found = [row for row in csv.DictReader(table) if all(row[key] == value for key, value in wanted.items())]
    if not found:
        raise LookupError(f"{name} has no row with {wanted}")
    return found


def from_json(name: str, *keys: str) -> float:
    value = json.loads((RESULTS / name).read_text())
    for key in keys:
        value = value[key]
    return float(value)


def ends(found: list[tuple[float, str]], digits: int = 2, unit: str = "x") -> tuple[str, str]:
    """The row with the largest number and that with the least, in words."""
    (least, where_least), (most, where_most) = min(found), max(found)
    return f"{most:.{digits}f}{unit}: {where_most}", f"**{least:.{digits}f}{unit}**: {where_least}"


def training() -> Claim:
    found = [
        (float(row["ratio"]), f"{row['shape']}{', recorded' if row['recorded'] == 'True' else ''}")
        for row in rows("peer_h200.csv", benchmark="train", peer_layer="mamba")
        if row["ratio"]
    ]
    found += [
        (float(row["ratio"]), f"{row['model']}, ({row['batch']}, {row['length']}), too small for the GPU")
        for row in rows("train_h200_beside_peer.csv", cuda_graphs="no", batch="16")
    ]
    best, worst = ends(found)
    files = "`peer_h200.csv`, `train_h200_beside_peer.csv`"
    return Claim("speed of a training step over mamba_ssm's, H200", best, worst, files, True)


def memory() -> Claim:
    found = [
        (float(row["peer_peak_gib"]) / float(row["peak_gib"]), row["shape"])
        for row in rows("peer_h200.csv", benchmark="train", peer_layer="mamba")
        if row["ratio"] and row["peak_gib"] and row["peer_peak_gib"]
    ]
    found += [
        (float(row["peer_gib"]) / float(row["ours_gib"]), f"{row['model']}, ({row['batch']}, {row['length']})")
        for row in rows("train_h200_beside_peer.csv", cuda_graphs="no", batch="16")
    ]
    table = {(row["curve"], row["length"]): row["peak_gib"] for row in rows("curves_models_h200.csv")}
    found += [
        (float(peer) / float(table["ours", length]), f"8x256 at {int(length):,}")
        for (curve, length), peer in table.items()
        if curve == "mamba_ssm" and peer
    ]
    best, worst = ends(found)
    files = "`peer_h200.csv`, `train_h200_beside_peer.csv`, `curves_models_h200.csv`"
    return Claim("memory of mamba_ssm's step over ours", best, worst, files)


def second_layer() -> Claim:
    table = {(row["curve"], row["length"]): row["tokens_per_second"] for row in rows("curves_models_h200.csv")}
    found = [
        (float(table["ours", length]) / float(rate), f"{_curve(curve)} at {int(length):,}")
        for (curve, length), rate in table.items()
        if rate and curve != "ours" and table.get(("ours", length)) and "torch" not in curve
    ]
    best, worst = ends(found)
    return Claim(
        "speed of a training step over Mamba, Mamba-2 (mamba_ssm) and a Transformer, H200",
        best,
        worst,
        "`curves_models_h200.csv`",
    )


def _curve(name: str) -> str:
    return {"mamba_ssm": "Mamba", "mamba2": "Mamba-2", "transformer": "Transformer"}.get(name, name)


def operations() -> Claim:
    found = [
        (float(row["ratio"]), f"{row['benchmark']} {row['shape']}, {row['mode']}")
        for row in rows("peer_h200.csv")
        if row["benchmark"] != "train" and row["ratio"]
    ]
    best, worst = ends(found)
    return Claim("speed of single operations over mamba_ssm's, H200", best, worst, "`peer_h200.csv`", True)


def calls() -> Claim:
    found = [
        (float(row["call_ratio"]), f"{row['benchmark']} {row['shape']}, {row['mode']}")
        for row in rows("peer_h200.csv")
        if row["benchmark"] != "train" and row["call_ratio"]
    ]
    best, worst = ends(found)
    return Claim("the same by the clock, one short call behind the other", best, worst, "`peer_h200.csv`")


def generation() -> Claim:
    found = [
        (float(row["ratio"]), f"{row['model']}, {int(row['batch']):,} rows, {row['precision']}")
        for row in rows("decode_h200/beside_peer.csv")
        if row["ratio"]
    ]
    best, worst = ends(found)
    return Claim("speed of generating DNA over mamba_ssm's, H200", best, worst, "`decode_h200/beside_peer.csv`", True)


def stream() -> Claim:
    lines = (RESULTS / "decode_h200" / "table_again.txt").read_text().splitlines()
    real = (RESULTS / "decode_h200" / "real_time.txt").read_text().splitlines()
    last = [line for line in real if line.startswith("real time audio/sc09@small bf16")][-1]
    (late,) = re.findall(r"99\.9 % ([\d.]+),", last)
    top_p = [float(found) for line in lines for found in re.findall(r"with top-p ([\d.]+) us", line)]
    share = 1e6 / 16_000 / max(top_p)
    return Claim(
        "one stream of spoken digits beside real time, H200",
        f"99.9 % of blocks within {late} ms of 64",
        f"**{share:.2f}x** of real time with top-p",
        "`decode_h200/`",
    )


def cpu() -> Claim:
    found = [
        (float(row["ratio_median"]), f"{row['peer'].replace('huggingface', 'transformers')}, {row['mode']}")
        for row in rows("cpu.csv")
    ]
    best, worst = ends(found)
    return Claim("speed over mambapy and transformers on a CPU", best, worst, "`cpu.csv`")


def cpu_sampling() -> Claim:
    found = [
        (float(row["ratio_median"]), f"batch {row['batch']}, {int(row['symbols']):,} symbols")
        for row in rows("sample_cpu.csv", peer="huggingface")
    ]
    best, worst = ends(found)
    return Claim("speed of sampling over transformers on a CPU", best, worst, "`sample_cpu.csv`")


def prediction() -> Claim:
    table = {(row["model"], row["length"]): float(row["megabases_per_second"]) for row in rows("predict_cpu.csv")}
    networks = {name for name, _ in table if name.startswith("dna/")}
    found = [
        (
            table[name, length]
            / max(rate for (other, at), rate in table.items() if at == length and other not in networks),
            length,
        )
        for name, length in table
        if name in networks
    ]
    (least, at), (most, there) = min(found), max(found)
    return Claim(
        "speed of classifying over k-mers on one core",
        f"{most:.4f}x at {int(there):,} bases",
        f"**{least:.5f}x** at {int(at):,} bases",
        "`predict_cpu.csv`",
    )


def human() -> Claim:
    found = []
    for split, name in (("valid", "validation"), ("test", "test")):
        wanted = {"split": split, "locus": "all"}
        (row,) = rows("yardsticks_human_cpu.csv", yardstick="markov", chosen="True", **wanted)
        markov, order = float(row["perplexity"]), row["size"]
        own = from_json(f"human42mb-1m4_h200/evaluate-{split}.json", "model", "perplexity")
        found.append((100 * (1 - own / markov), f"{name}, {own:.3f} against {markov:.3f}"))
    best, worst = ends(found, 1, " %")
    return Claim(
        f"perplexity below the best Markov model, order {order}, human, two GPU minutes",
        best,
        worst,
        "`human42mb-1m4_h200/`, `yardsticks_human_cpu.csv`",
    )


def mixers() -> Claim:
    """Mamba over the others: where it is the better one the number is above zero."""
    name = "compare_human_h200.csv"
    nats = {row["name"]: float(row["test_mean"]) for row in rows(name)}
    found = [(value - nats["mamba"], other) for other, value in nats.items() if other != "mamba"]
    best, worst = (
        text.replace("fixed", "its own block without selection").replace("retnet", "RetNet")
        for text in ends(found, 3, " nats")
    )
    what = f"Mamba below {len(found)} others of its size, human, 65 M bases, 3 seeds, test"
    return Claim(what, best, worst, f"`{name}`", True)


def induction() -> Claim:
    """Of Mamba's best run, as docs/compare.md takes it: by the mean over lengths."""
    name = "induction_h200.csv"
    runs = rows(name, arm="mamba")
    lengths = [column for column in runs[0] if column.startswith("percent_2^")]
    best = max(runs, key=lambda row: sum(float(row[column] or 0) for column in lengths))
    held = [column for column in lengths if best[column] and float(best[column]) == 100][-1]
    learnt = [row for row in runs if float(row["percent_2^8"]) > 50]
    last = [float(row[lengths[-1]]) for row in learnt]
    names = [column.removeprefix("percent_") for column in (held, lengths[-1])]
    return Claim(
        f"induction heads after training at 2^8, Mamba, {len(runs)} runs",
        f"100 %: to {names[0]}, the best run",
        f"**{min(last):.1f} %** to {max(last):.1f} %: at {names[1]}, of the {len(learnt)} that learn it",
        f"`{name}`",
    )


def unknown() -> Claim:
    found = [
        (float(row[f"{rule}, mouse"]), f"{int(row['length']):,} bases, {row['model']}, {rule}")
        for row in rows("reads_h200.csv", classes="4")
        for rule in ("probability", "energy")
    ]
    best, worst = ends(found, 2, "")
    return Claim("a species left out (mouse) told from known ones, AUROC, chance .5", best, worst, "`reads_h200.csv`")


def yeast() -> Claim:
    own = from_json("yeast_cpu/evaluate-test.json", "model", "perplexity")
    markov = from_json("yeast_cpu/evaluate-test.json", "markov", "best", "perplexity")
    table = {(row["source"], row["speaks"]): float(row["test_auroc"]) for row in rows("yeast_cpu/auroc.csv")}
    other = {source: value for (source, speaks), value in table.items() if speaks == "True"}
    bar = max((value, source) for source, value in other.items() if source != "model")
    return Claim(
        "yeast, seven CPU minutes: perplexity over order 12; genes from the track, AUROC",
        f"{other['model']:.3f}, chance .5",
        f"**{own:.3f}** against {markov:.3f}; {bar[1]} has {bar[0]:.3f}",
        "`yeast_cpu/`",
    )


def variants() -> Claim:
    table = {row["method"]: float(row["auroc"]) for row in rows("brca1_h200/brca1.csv", subset="all")}
    ratios = [value for method, value in table.items() if method.startswith("ratio")]
    rules = {
        method: value
        for method, value in table.items()
        if "rule" in method or "phyloP" in method.replace("phylop", "phyloP")
    }
    rule = max(rules.items(), key=lambda item: item[1])
    return Claim(
        "harmful BRCA1 variants, AUROC, packaged model",
        f"{max(ratios):.3f}, chance .5",
        f"**{min(ratios):.3f}**; {rule[0]} has {rule[1]:.3f}",
        "`brca1_h200/`",
        True,
    )


def species() -> Claim:
    mean, _ = rows("species_net_h200.csv", chosen="yes")
    seeds = [row for row in rows("species_net_h200.csv", kind=mean["kind"]) if row["seed"]]
    chosen = rows("species_kmers_cpu.csv", recipe="dna/species", chosen="yes")
    (bar,) = (row for row in chosen if row["best"])
    highest = max(chosen, key=lambda row: float(row["test_accuracy"]))

    def over(own: dict[str, str], row: dict[str, str]) -> tuple[str, str]:
        accuracy = float(row["test_accuracy"])
        what = f"{row['k']}-mers on {int(row['windows']):,} windows, {100 * accuracy:.1f} %"
        return f"{100 * (float(own['test']) - accuracy):+.1f}", what

    best, worst = max(seeds, key=lambda row: float(row["test"])), min(seeds, key=lambda row: float(row["test"]))
    (ahead, chosen_by), (behind, best_on_test) = over(best, bar), over(worst, highest)
    return Claim(
        f"five species at 1 kb, {len(seeds)} seeds: {100 * float(mean['test']):.1f} %, over k-mers, points",
        f"{ahead}: seed {best['seed']}, over those that validation chooses, {chosen_by}",
        f"**{behind}**: seed {worst['seed']}, over those that do best on test, {best_on_test}",
        "`species_net_h200.csv`, `species_kmers_cpu.csv`",
        True,
    )


def planted() -> Claim:
    """The network of the control beside the k-mers that validation chooses."""
    bars = {
        row["recipe"].removeprefix("dna/apes@").partition(" ")[0]: float(row["test_accuracy"])
        for row in rows("species_kmers_cpu.csv", best="yes")
        if row["recipe"].endswith(" with planted families")
    }
    control = rows("species_h100.csv", step="control", kind="evaluation", split="test")
    names = {1 << 10: "1k", 1 << 12: "4k", 1 << 14: "16k", 1 << 16: "64k"}
    found = [
        (100 * (float(row["accuracy"]) - bars[names[int(row["length"])]]), f"{int(row['length']):,} bases")
        for row in control
    ]
    best, worst = ends(found, 1, "")
    return Claim("planted families, points over k-mers", best, worst, "`species_h100.csv`, `species_kmers_cpu.csv`")


def apes() -> Claim:
    found = [
        (100 * float(row["accuracy"]), f"{row['run'].removeprefix('apes-')}")
        for row in rows("species_h100.csv", step="apes", kind="evaluation", split="test")
    ]
    best, worst = ends(found, 1, " %")
    return Claim("great apes, unseen loci, four classes, chance 25 %", best, worst, "`species_h100.csv`")


def labels() -> Claim:
    found = [
        (float(row["difference"]), f"{row['task']}, over {row['against']}")
        for row in rows("gue_gains_h200.csv")
        if row["model"].endswith("fine-tuned")
    ]
    best, worst = ends(found, 3, "")
    return Claim(
        "labels of GUE, fine-tuned, AUROC over k-mers, a small CNN, random weights", best, worst, "`gue_gains_h200.csv`"
    )


def fragments() -> Claim:
    """Ours that validation chooses over the best k-mers, in points, with errors: without them k-mers had fewer windows."""
    tables = ("genomes_cpu.csv", "genomes_more_cpu.csv", "genome_words_cpu.csv")
    bars = [row for name in tables for row in rows(name)]
    found, chosen = [], {}
    for row in rows("genomes_h200.csv", errors="0.01"):
        known = chosen.setdefault((row["data"], row["length"]), row)
        if float(row["valid"]) > float(known["valid"]):
            chosen[row["data"], row["length"]] = row
    for own in chosen.values():
        same = [row for row in bars if all(row[key] == own[key] for key in ("data", "length", "errors"))]
        bar = max(float(row["balanced_accuracy"]) for row in same)
        what = "whole genomes" if own["length"] == "whole" else f"{own['length']} bases"
        found.append((100 * (float(own["balanced_accuracy"]) - bar), f"{own['data']}, {what}"))
    best, worst = ends(found, 1, "")
    files = ", ".join(f"`{name}`" for name in ("genomes_h200.csv", *tables))
    return Claim("fragments and genomes with 1 % errors, points over k-mers", best, worst, files, True)


def needle() -> Claim:
    found = [
        (
            100
            * float(rows(f"long_memory_h200/needle-seed{seed}.csv", length=str(2**20), filler="random")[0]["accuracy"]),
            f"seed {seed}",
        )
        for seed in (0, 1)
    ]
    best, worst = ends(found, 0, " %")
    return Claim("a marker named after 2^20 bases, chance 25 %", best, worst, "`long_memory_h200/`", True)


def context() -> Claim:
    name = "chrx_len1m_h100/evaluate-context-test.csv"
    gains = [
        (float(row["gain_nats"]), f"{int(row['context']):,} bases")
        for row in rows(name, kind="all")
        if row["context"] != "1024"
    ]
    longer = "human56mb-7m_h200/context/evaluate-context-test.csv"
    gains += [
        (float(row["gain_nats"]), f"7 M, {int(row['context']):,} bases")
        for row in rows(longer, kind="record")
        if "chrX" in row["stratum"] and row["context"] != "1024"
    ]
    best, worst = ends(gains, 5, " nats")
    files = f"`{name}`, `{longer}`"
    return Claim("what context beyond 1,024 bases is worth, chrX (copies gain .029 within 131,072)", best, worst, files)


def music() -> Claim:
    """Beside linear prediction tuned on validation; LPC-32, which stood here before, is about half a bit worse."""

    def bar(data: str, split: str) -> float:
        (row,) = rows("lpc_orders_cpu.csv", data=data, split=split, what="tuned")
        return float(row["bits"])

    found = []
    for name, data, own in (
        ("rendered piano, GPU", "rendered", "piano_shipped_h200"),
        ("recorded piano, GPU", "recorded", "piano_real_grow_h200"),
    ):
        bits, linear = from_json(f"{own}/evaluate-test.json", "model", "bits"), bar(data, "test")
        found.append((linear - bits, f"{name}, {bits:.2f} against {linear:.2f}"))
    wanted = {"variant": "3,500 steps, the recipe as it is", "split": "intervals.tsv"}
    tiny = float(rows("ablation_audio_tiny_cpu.csv", **wanted)[0]["valid_bits"])
    linear = bar("rendered", "valid")
    found.append((linear - tiny, f"rendered piano, five CPU minutes, {tiny:.2f} against {linear:.2f}"))
    best, worst = ends(found, 2, " bits")
    files = "`piano_shipped_h200/`, `piano_real_grow_h200/`, `lpc_orders_cpu.csv`"
    return Claim("bits a sample below tuned linear prediction", best, worst, files, True)


def sampled() -> Claim:
    found = [
        (int(row["inside"]), f"{row['run']}, drawn as fitted")
        for row in rows("sampling_h200/fitted.csv", measure="all five")
        if row["run"] in ("rendered", "recorded")
    ]
    (least, at), (most, there) = min(found), max(found)
    return Claim(
        "ten-second pieces of piano inside what held-out ones do by all of five measures, of ten",
        f"{most}: {there}",
        f"**{least}**: {at}",
        "`sampling_h200/fitted.csv`",
        True,
    )


def digits() -> Claim:
    shares: dict[tuple[str, str], list[float]] = {}
    for row in rows("digits_augmented_h200/judged.csv"):
        shares.setdefault((row["set"], row["measure"]), []).append(100 * float(row["value"]))
    ours, theirs = "all-long", "recorded, test"
    taken, of_theirs, halves, known = (
        statistics.mean(shares[name, "recognised"])
        for name in (ours, theirs, "joined halves, another speaker", "joined halves, seen speakers")
    )
    right, their_right = (statistics.mean(shares[name, "right"]) for name in (ours, theirs))
    word = min((key for key in shares if key[0] == ours and key[1].startswith("right, ")), key=lambda key: shares[key])
    return Claim(
        "spoken digits that a recogniser takes for digits",
        f"{taken:.1f} %, joined halves of a speaker never heard {halves:.1f} %",
        f"joined halves of the speakers trained on {known:.1f} %; a speaker never heard {of_theirs:.1f} %; the digit asked for "
        f"{right:.1f} % (his {their_right:.1f} %), {word[1].removeprefix('right, ')} **{shares[word][0]:.1f} %**",
        "`digits_augmented_h200/`",
        True,
    )


def two_gpus() -> Claim:
    best, worst = ends([(float(row["speedup"]), row["model"]) for row in rows("sequence_parallel_h200.csv")])
    return Claim("two H200 over one, a sequence of 2^20", best, worst, "`sequence_parallel_h200.csv`")


CLAIMS = (
    *(training, memory, second_layer, operations, calls, generation, stream, cpu, cpu_sampling, prediction, two_gpus),
    *(
        human,
        mixers,
        yeast,
        variants,
        species,
        planted,
        apes,
        labels,
        fragments,
        unknown,
        needle,
        induction,
        context,
        music,
        sampled,
        digits,
    ),
)


def table(headlines: bool = False) -> str:
    """The claims as a table in Markdown; for the README without files and only those that stand in it."""
    found = [claim() for claim in CLAIMS]
    if headlines:
        lines = ["| claim | best | worst |", "|---|---|---|"]
        lines += [f"| {claim.what} | {claim.best} | {claim.worst} |" for claim in found if claim.headline]
    else:
        lines = ["| claim | best | worst | file |", "|---|---|---|---|"]
        lines += [f"| {claim.what} | {claim.best} | {claim.worst} | {claim.file} |" for claim in found]
    return "\n".join(lines)


# Where the tables stand, and whether they hold headlines only.
PLACES = {"docs/benchmarks.md": False, "README.md": True}
BLOCK = re.compile(r"(<!-- made by scripts/losses\.py -->\n)(.*?)(\n<!-- end -->)", flags=re.DOTALL)


def filled(page: str) -> str:
    """A page with its table as the files have it now."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return BLOCK.sub(lambda found: f"{found[1]}{table(PLACES[page])}{found[3]}", text)


def main() -> None:
    if "--write" not in sys.argv[1:]:
        print(table())
        return
    for page in PLACES:
        (ROOT / page).write_text(filled(page), encoding="utf-8")


if __name__ == "__main__":
    main()
