"""Every headline number stands in a committed file, and a range spans its worst row and its best.

A claim is a piece of docs/headlines.md with {} where numbers stand; the numbers are read from `benchmarks/results/`.
"""

import csv
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = " ".join((ROOT / "docs" / "headlines.md").read_text(encoding="utf-8").split())


def rows(name: str, **wanted: str) -> list[dict[str, str]]:
    """Rows of a CSV in which the named columns are as wanted; never none."""
    with (RESULTS / name).open(newline="") as file:
        found = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]
    assert found, (name, wanted)
    return found


def number(name: str, field: str, **wanted: str) -> float:
    """The one number of a CSV."""
    (row,) = rows(name, **wanted)
    return float(row[field])


def from_json(name: str, *keys: str) -> float:
    value = json.loads((RESULTS / name).read_text())
    for key in keys:
        value = value[key]
    return float(value)


def spread(values: list[float], digits: int = 2) -> tuple[str, str]:
    return f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"


def beside_peer(**wanted: str) -> list[dict[str, str]]:
    """Training steps beside mamba_ssm's Mamba in one process on an H200."""
    found = rows("peer_h200.csv", benchmark="train", peer_layer="mamba", **wanted)
    return [row for row in found if row["ratio"]]


def of_peer(found: list[dict[str, str]]) -> tuple[str, ...]:
    """Worst and best speed and memory against mamba_ssm's."""
    memory = [float(row["peak_gib"]) / float(row["peer_peak_gib"]) for row in found]
    return *spread([float(row["ratio"]) for row in found]), *spread(memory)


def steps_that_fill() -> tuple[str, ...]:
    found = of_peer([row for row in beside_peer() if "audio" not in row["shape"]])
    table = [row for row in rows("curves_models_h200.csv") if row["tokens_per_second"]]
    own = {row["length"]: row for row in table if row["curve"] == "ours"}
    peers = [(own[row["length"]], row) for row in table if row["curve"] == "mamba_ssm"]
    curves = [
        *spread([float(us["tokens_per_second"]) / float(peer["tokens_per_second"]) for us, peer in peers]),
        *spread([float(us["peak_gib"]) / float(peer["peak_gib"]) for us, peer in peers]),
    ]
    return tuple((min if at % 2 == 0 else max)(pair) for at, pair in enumerate(zip(found, curves, strict=True)))


def small_step() -> tuple[str, ...]:
    name, shape = "train_h200_beside_peer.csv", {"batch": "16"}
    (single,) = rows(name, cuda_graphs="no", **shape)
    memory = float(single["ours_gib"]) / float(single["peer_gib"])
    recorded = number(name, "ratio", cuda_graphs="both", **shape)
    return f"{float(single['ratio']):.2f}", f"{recorded:.2f}", f"{memory:.2f}"


def equivalence() -> tuple[str, ...]:
    name = "train_equivalence_h200.json"
    arms = json.loads((RESULTS / name).read_text())["arms"]
    plain = arms["torch-seed0"]["valid_nats_fp32"]
    apart = [arms[f"triton-seed{seed}"]["valid_nats_fp32"] - plain for seed in range(3)]
    assert apart[0] == pytest.approx(from_json(name, "difference_nats"), abs=1e-5)
    return tuple(f"{value:.4f}" for value in apart)


def beside_transformer() -> tuple[str, ...]:
    table = {
        (row["curve"], row["length"]): float(row["seconds"])
        for row in rows("curves_models_h200.csv")
        if row["seconds"] and row["curve"] in ("ours", "transformer")
    }
    ratios = {length: seconds / table["ours", length] for (curve, length), seconds in table.items() if curve != "ours"}
    assert [length for length, ratio in ratios.items() if ratio < 1] == ["1024", "4096"]
    return (f"{ratios['1024']:.2f}",)


def peers_on_cpu() -> tuple[str, ...]:
    assert {row["peer"] for row in rows("cpu.csv")} == {"mambapy", "huggingface"}
    return spread([float(row["ratio_median"]) for row in rows("cpu.csv")])


def column(name: str, field: str, digits: int = 2, **wanted: str) -> tuple[str, str]:
    return spread([float(row[field]) for row in rows(name, **wanted) if row[field]], digits)


def two_gpus() -> tuple[str, ...]:
    """The largest difference of a loss between one GPU and two, rounded up."""
    table = rows("pretrain_two_h200.csv")
    one = {row["step"]: row for row in table if row["devices"] == "1"}
    apart = [
        abs(float(row[key]) - float(one[row["step"]][key]))
        for row in table
        if row["devices"] == "2"
        for key in ("train_nats", "valid_nats")
        if row[key]
    ]
    assert 3.2e-6 < max(apart) <= 3.3e-6
    return max(one, key=int), "3.3e-6"


def tuned(data: str, split: str = "test", what: str = "tuned") -> str:
    """Bits of linear prediction."""
    return f"{number('lpc_orders_cpu.csv', 'bits', data=data, split=split, what=what):.2f}"


def piano() -> tuple[str, ...]:
    found = []
    for run, data in (("piano_shipped_h200", "rendered"), ("piano_real_grow_h200", "recorded")):
        found += [f"{from_json(f'{run}/evaluate-test.json', 'model', 'bits'):.2f}", tuned(data)]
        found.append(tuned(data, what="LPC-32"))
    orders = {row["order"] for row in rows("lpc_orders_cpu.csv", split="test", what="tuned") if row["data"] != "digits"}
    assert orders == {"512"}
    # The same numbers as `mba evaluate` gave with other runs.
    for run, data in (("piano_h200", "rendered"), ("piano_real_h200", "recorded")):
        assert f"{from_json(f'{run}/evaluate-test.json', 'yardsticks', 'LPC-32'):.2f}" == tuned(data, what="LPC-32")
    return tuple(found)


def tiny() -> tuple[str, ...]:
    wanted = {"variant": "3,500 steps, the recipe as it is", "split": "intervals.tsv"}
    assert number("ablation_audio_tiny_cpu.csv", "cpu_seconds", **wanted) < 300
    bits = number("ablation_audio_tiny_cpu.csv", "valid_bits", **wanted)
    return f"{bits:.2f}", tuned("rendered", "valid")


def recipes_of_sound() -> tuple[str, ...]:
    digits = "digits_7500_steps_h200/evaluate-test.json"
    before, after = (
        number("lpc_orders_cpu.csv", "bits", data="digits", split="test", what=what) for what in ("LPC-32", "tuned")
    )
    return (
        f"{from_json('piano_shipped_h200/evaluate-test.json', 'model', 'bits'):.2f}",
        tuned("rendered"),
        f"{from_json(digits, 'model', 'bits'):.2f}",
        f"{from_json(digits, 'yardsticks', 'LPC-32'):.2f}",
        f"{before - after:.2f}",
    )


def needle(seed: int) -> float:
    return number(f"long_memory_h200/needle-seed{seed}.csv", "accuracy", length=str(2**20), filler="random")


def both_seeds() -> tuple[str, ...]:
    assert (needle(0), needle(1)) == (1.0, 0.5)
    return ()


def perplexity(split: str) -> tuple[str, ...]:
    own = from_json(f"human42mb-1m4_h200/evaluate-{split}.json", "model", "perplexity")
    bar, wanted = "yardsticks_human_cpu.csv", {"split": split, "locus": "all"}
    assert number(bar, "size", yardstick="markov", chosen="True", **wanted) == 24
    markov = number(bar, "perplexity", yardstick="markov", chosen="True", **wanted)
    contexts = ("1024", "1048576") if split == "test" else ()
    copies = [number(bar, "perplexity", yardstick="copies", size=context, **wanted) for context in contexts]
    return tuple(f"{value:.3f}" for value in (own, markov, *copies))


def real_run() -> tuple[str, ...]:
    of_run = "sustained_h200.json"
    rate = from_json(of_run, "sustained_tokens_per_second")
    return f"{from_json(of_run, 'tokens') / 1e6:.0f}", f"{rate / 1e6:.2f}"


def whole_and_streamed() -> tuple[str, ...]:
    name, shape = "peer_h200.csv", "16x256, (1, 1048576)"
    (least,) = [row for row in rows(name, shape=shape) if row["memory_gib"]]
    (whole,) = beside_peer(shape=shape)
    (streamed,) = rows(name, shape=f"{shape}, streamed by 131072", recorded="True")
    longest = number("length_h100.csv", "peak_gib", mode="streamed", length=str(2**24))
    return (
        f"{float(least['peak_gib']):.0f}",
        f"{float(least['mtokens_per_s']):.2f}",
        f"{float(whole['peak_gib']):.0f}",
        f"{float(whole['mtokens_per_s']):.2f}",
        f"{float(whole['peer_peak_gib']):.0f}",
        f"{float(streamed['peak_gib']):.1f}",
        f"{float(streamed['mtokens_per_s']):.2f}",
        f"{longest:.1f}",
    )


def copying() -> tuple[str, ...]:
    found = {
        arm: rows("copying_h200.csv", length="2048", steps="10000", arm=arm) for arm in ("mamba", "s4d", "s4d-real")
    }
    means = [statistics.mean(float(row["test_percent"]) for row in seeds) for seeds in found.values()]
    return f"{means[0]:.2f}", f"{means[1]:.1f}", f"{means[2]:.1f}"


def induction() -> tuple[str, ...]:
    name = "induction_tiny_cpu.json"
    assert sum(from_json(name, "training_cpu_seconds", of) for of in ("user", "system")) < 130
    return f"{100 * from_json(name, 'test', 'accuracy'):.0f}", f"{from_json(name, 'test', 'scored'):,.0f}"


def judged(name: str, measure: str) -> str:
    """Mean of the judges, in percent."""
    found = rows("digits_augmented_h200/judged.csv", set=name, measure=measure)
    assert len(found) == 3
    return f"{100 * statistics.mean(float(row['value']) for row in found):.1f}"


def recognised() -> tuple[str, ...]:
    sets = ("all-long", "joined halves, another speaker", "joined halves, seen speakers", "recorded, test")
    return tuple(judged(name, "recognised") for name in sets)


def species() -> tuple[str, ...]:
    name = "species_net_h200.csv"
    mean, together = rows(name, chosen="yes")
    assert (mean["name"], together["name"]) == (f"{mean['kind']} mean", f"{mean['kind']} together")
    seeds = [float(row["test"]) for row in rows(name, kind=mean["kind"]) if row["seed"]]
    (chosen,) = rows("species_kmers_cpu.csv", recipe="dna/species", best="yes")
    assert len(seeds) == int(mean["seeds"]) == 3
    assert float(rows(name, kind="k-mers")[0]["test"]) == float(chosen["test_accuracy"])
    (first,) = rows("species_h100.csv", step="easy", kind="evaluation", split="test")
    apart = [mean[f"test_minus_bar{end}"] for end in ("", "_low", "_high")]
    share = [f"{100 * float(value):.1f}" for value in (mean["test"], min(seeds), max(seeds))]
    bar = (chosen["k"], f"{int(chosen['windows']):,}", f"{100 * float(chosen['test_accuracy']):.1f}")
    return *share, *bar, *(f"{100 * float(value):.2f}" for value in apart), f"{100 * float(first['accuracy']):.1f}"


def generation() -> tuple[str, ...]:
    ratios = [float(row["ratio"]) for row in rows("decode_h200/beside_peer.csv") if row["ratio"]]
    return f"{min(ratios):.2f}", f"{max(ratios):.2f}"


def digits_stream() -> tuple[str, ...]:
    lines = (RESULTS / "decode_h200" / "forms_again.txt").read_text().splitlines()
    line = next(line for line in lines if "('mamba', 8), torch.bfloat16, 16, 3" in line)
    (rate,) = re.findall(r"rows 1: [\d.]+ us, ([\d,]+) samples/s", line)
    return (rate,)


def real_time() -> tuple[str, ...]:
    lines = (RESULTS / "decode_h200" / "real_time.txt").read_text().splitlines()
    last = [line for line in lines if line.startswith("real time audio/sc09@small bf16")][-1]
    (seconds, late) = re.search(r"samples in (\d+) s,.* 99\.9 % ([\d.]+),", last).groups()
    assert int(seconds) > 9 * 60
    return (late,)


def right_by_class() -> tuple[str, ...]:
    return judged("all-long", "right"), judged("recorded, test", "right")


def gue() -> tuple[str, ...]:
    """Tasks on which the mixed backbone is above what is published, frozen, and on which it differs from a bar, fine-tuned."""
    own = {row["task"]: float(row["auroc"]) for row in rows("gue_h200.csv", model="mixed138mb-1m4, frozen", part="all")}
    page = (ROOT / "docs" / "classification.md").read_text(encoding="utf-8")
    table = page[page.index("| HyenaDNA, published |") :].splitlines()[2:13]
    published = {cells[1].strip(): list(map(float, cells[-3:-1])) for cells in (line.split("|") for line in table)}
    assert published.keys() == own.keys()
    above = [sum(own[task] > published[task][column] for task in own) for column in (0, 1)]
    verdicts = [
        [row["verdict"] for row in rows("gue_gains_h200.csv", model="mixed138mb-1m4, fine-tuned", against=bar)]
        for bar in ("k-mers", "CNN", "from scratch")
    ]
    assert not verdicts[0].count("worse") + verdicts[2].count("worse")
    better = [found.count("better") for found in verdicts]
    counts = (better[0], better[1], verdicts[1].count("worse"), better[2])
    return str(len(own)), *map(str, (*above, *counts))


def fragments() -> tuple[str, ...]:
    """Balanced accuracy on mitochondria with errors, ours and that of the k-mers that validation chooses; on dengue."""
    wanted = {"data": "vertebrate_mito", "errors": "0.01"}
    found = []
    words = []
    for length in ("150", "1000"):
        found.append(number("genomes_h200.csv", "balanced_accuracy", length=length, model="mixed", **wanted))
        tried = rows("genome_words_cpu.csv", length=length)
        chosen = min(tried, key=lambda row: float(row["valid_nats"]))
        words.append(chosen["k"])
        found.append(float(chosen["balanced_accuracy"]))
        assert not any(row["penalty_at_edge"] == "True" for row in tried)
    found.append(number("genomes_h200.csv", "balanced_accuracy", length="whole", model="windows of 1,000", **wanted))
    found.append(number("genomes_cpu.csv", "balanced_accuracy", length="whole", model="k-mers, k = 7", **wanted))
    dengue = {"data": "dengue_subtypes", "errors": "0.01"}
    found += [number(name, "balanced_accuracy", **dengue) for name in ("genomes_h200.csv", "genomes_cpu.csv")]
    shares = [f"{100 * value:.1f}" for value in found]
    return shares[0], words[0], shares[1], shares[2], words[1], *shares[3:]


def starts() -> tuple[str, ...]:
    found = [float(row["average_precision"]) for row in rows("orfs_h200.csv")]
    return f"{min(found):.2f}", f"{max(found):.3f}", f"{number('orfs_h200.csv', 'atg_alone', arm='short'):.2f}"


CLAIMS: dict[str, tuple[str, Callable[[], tuple[str, ...]]]] = {
    "human run": ("({} M bases, {} M a second)", real_run),
    "human test": (
        "test perplexity {} on loci that training never saw, where the best Markov model (of orders to 24) reaches {}, "
        "and order 16 with copies of the last 1,024 bases {}, of the last 1,048,576 {};",
        lambda: perplexity("test"),
    ),
    "human valid": ("validation {} against {}.", lambda: perplexity("valid")),
    "steps": (
        "training steps that fill an H200 run at {} to {} times its speed in {} to {} of its memory",
        steps_that_fill,
    ),
    "small step": (
        "A step too small for the GPU runs at {}, or {} with both recorded as CUDA graphs, and takes {} times its memory.",
        small_step,
    ),
    "audio steps": (
        "Audio networks train at {} to {} times its speed.",
        lambda: of_peer([row for row in beside_peer() if "audio" in row["shape"]])[:2],
    ),
    "generation": ("beside its figures of the day before: {} to {} times its speed,", generation),
    "generation of digits": (
        "One stream of the U-Net of spoken digits: {} samples a second by its kernel (bf16 matrices);",
        digits_stream,
    ),
    "real time": (
        "over nine minutes 99.9 % of its blocks of 1,024 took at most {} ms, where 16 kHz leaves 64.",
        real_time,
    ),
    "CPU": ("On a CPU: {} to {} times the pure-PyTorch paths of mambapy and transformers.", peers_on_cpu),
    "equivalence": (
        "agrees with plain PyTorch in fp32 to {} nats after 2,000 steps of the same seed (H200); our two other seeds lie {} "
        "and {} above it.",
        equivalence,
    ),
    "a transformer's steps": (
        "up to 4,096 positions a compiled Transformer of that size trains faster, at 1,024 in {} of our time.",
        beside_transformer,
    ),
    "a million bases": (
        "on an H200 whole in {} GiB at {} M bases a second, or in {} at {} M, where mamba_ssm needs {}; with "
        "`train.stream_chunk=131072`, exactly as well, in {} GiB at {} M; 2^24 bases in {} GiB",
        whole_and_streamed,
    ),
    "needle": (
        "one names a marker of 64 bases after 2^20 others every time, the other half of the time, where chance is a quarter",
        both_seeds,
    ),
    "one sequence on two GPUs": (
        "Two H200 share one sequence of 2^20 at {} to {} times the speed of one;",
        lambda: column("sequence_parallel_h200.csv", "speedup"),
    ),
    "pretrain on two GPUs": ("`mba pretrain` on two for {} steps gives the losses of one to {} nats", two_gpus),
    "species": (
        "are right in {} % ({} to {} by seed), the k-mer bar, {}-mers on {} training windows, in {} %: {} points apart "
        "({} to {}, paired, over test blocks), so not told apart; neither is one of 6 layers x 128 from random weights "
        "(H100, {} %).",
        species,
    ),
    "piano": (
        "{} bits a sample on a piece never heard, tuned linear prediction (order 512) {}, of order 32 {}; 21 minutes of a "
        "recorded piano: {}, {} and {}.",
        piano,
    ),
    "recipe audio/tiny": (
        "piano {} bits in five CPU minutes, tuned linear prediction {} ([Raw audio](audio.md))",
        tiny,
    ),
    "recipe audio/piano, audio/digits": (
        "piano {} bits, tuned linear prediction {}; digits {} bits, LPC-32 {}, tuned it has {} less ([Raw audio](audio.md))",
        recipes_of_sound,
    ),
    "recipe synthetic/induction": ("`@tiny`: {} % of {} unseen examples, two CPU minutes", induction),
    "recipe dna/chrx-len1m": (
        "190 steps: validation perplexity {}; context beyond 1,024 bases was worth nothing yet",
        lambda: (f"{number('chrx_len1m_h100/metrics.csv', 'valid_perplexity', step='190'):.3f}",),
    ),
    "fragments": (
        "- **Fragments** of mitochondria of vertebrates, five classes, genomes that training never saw, 1 % errors: "
        "of 150 bases {} % are named rightly, by {}-mers {} %; of 1,000 bases {} %, by {}-mers {} %; of whole genomes {} %, "
        "7-mers {} %. Of whole dengue genomes with such errors {} %, k-mers {} %.",
        fragments,
    ),
    "starts of reading frames": (
        "Starts of constructed open reading frames, which 63 bases behind a base decide, are learnt to an average "
        "precision of {} to {}, by kind of state; who knows ATG alone has {} ([Classification](classification.md)).",
        starts,
    ),
    "digits by class": (
        "they are the digit asked for in {} %, those of a speaker never heard in {} % ([Raw audio](audio.md))",
        right_by_class,
    ),
    "GUE": (
        "- **GUE**, {} tasks: frozen, 12 layers x 128 trained on human and other genomes are above the published frozen "
        "HyenaDNA on {} of them and above Caduceus-Ph on {} (another protocol); fine-tuned they are above k-mers by .02 of "
        "AUROC on {}, above a small convolutional network by that much on {} and below it on {}, above the same network "
        "from random weights on {} ([Classification](classification.md)).",
        gue,
    ),
    "digits": (
        "asked for by class, a recogniser takes {} % for digits, of joined halves of a speaker never heard {} % and of those "
        "trained on {} %, of an unseen speaker's {} %;",
        recognised,
    ),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_the_page_says_what_the_files_say(name):
    text, read = CLAIMS[name]
    expected = text.format(*read())
    assert expected in PAGE, f"docs/headlines.md and benchmarks/results/ differ; by the files it is: {expected}"


def test_each_number_under_measured_belongs_to_a_claim():
    """What is left of the section once the claims are taken out holds settings, not results."""
    measured = PAGE.split("# Measured, in short")[1].split("## Recipes")[0]
    for text, read in CLAIMS.values():
        measured = measured.replace(text.format(*read()).strip(), " ")
    settings = (
        r"12 layers x 128|H[12]00|7 M model|2\^\d+|80 GB|42 Mb|mamba_ssm|2,000 steps|2,048|16 kHz|"
        r"8 bits|fp32|torch 2\.1[14]\.\d(?: or 2\.11\.0)?|triton 3\.6\.0|"
        r"order \d+|`[^`]*`|\]\([^)]*\)|1 kb|6 layers x 128|300-base"
    )
    left = re.findall(r"\d[\d.,^]*", re.sub(settings, " ", measured))
    assert not left, f"numbers without a file: {left}"


def test_the_readme_says_how_far_whole_chunked_and_stepped_lie_apart():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [
        f"| 2^{int(row['length']).bit_length() - 1} | {row['chunked']} | {row['stepped']} |"
        for row in rows("whole_chunked_step_h200.csv", whole="yes")
    ]
    score = (RESULTS / "chrx_score_h200" / "score.txt").read_text()
    apart = re.findall(r"1,048,576 bases: pieces of [\d,]+ differ from the whole by at most (\S+) nats", score)
    assert len(apart) == 2
    lines.append(f"| 2^20 (chrX) | {max(apart, key=float)} | not measured |")
    assert "\n".join(["| bases | in chunks | step by step |", "|---|---|---|", *lines]) in readme
    gradients = number("length_h100.csv", "difference", mode="compare")
    assert f"differ from those of the whole by {gradients:.1e} of their size" in readme


def test_the_first_screen_of_the_readme_says_what_the_packaged_models_reach():
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    large, small = "human56mb-7m_h200/", "human42mb-1m4_h200/"
    known = {"split": "test", "locus": "all"}
    bars = {
        (row["yardstick"], row["size"]): f"{float(row['perplexity']):.3f}"
        for row in rows("yardsticks_human56mb_cpu.csv", **known)
    }
    geco3 = min(float(row["perplexity"]) for row in rows("geco3_human56mb_cpu.csv", **known))
    whole, short = (from_json(f"{large}likelihood-test{x}.json", "model", "perplexity") for x in ("", "-1024"))
    lines = [
        f"| **{whole:.3f}**, in windows of 1,024 {short:.3f} |",
        f"2 minutes | {from_json(f'{small}evaluate-test.json', 'model', 'perplexity'):.3f} |",
        f"which goes on learning as it reads | the 55.9 Mb | {geco3:.3f} |",
        f"copies within 1,048,576 bases | the 55.9 Mb | {bars['copies', str(2**20)]} |",
        f"Markov model of order 16 | the 55.9 Mb | {bars['markov', '16']} |",
    ]
    locus = "hg19.chrX_2118239-7623882:chrX:2118239-7623882"
    gain = number(f"{large}context/evaluate-context-test.csv", "gain_nats", stratum=locus, context=str(2**17))
    copies = number("yardsticks_human56mb_cpu.csv", "gain", locus=locus, size=str(2**17))
    lines.append(f"context beyond 1,024 bases is worth {gain:.5f} nats a base to the larger one")
    lines.append(f"where copies gain {copies:.4f};")
    for line in lines:
        assert line in readme, line


def test_the_table_of_fitted_sound_is_that_of_the_clips():
    audio = (RESULTS.parent.parent / "docs" / "audio.md").read_text(encoding="utf-8").split("### How far it goes")[1]
    by_run = {
        run: {row["measure"]: row for row in rows("sampling_h200/fitted.csv", run=run)}
        for run in ("rendered", "recorded")
    }
    for measure in (*JUDGED, "all five"):
        cells = []
        for run in by_run.values():
            row = run[measure]
            clips = [float(row[f"clip_{number}"]) for number in range(20) if row[f"clip_{number}"]]
            if measure != "all five":
                digits = 2 if measure == "entropy" else 1
                ends = [float(row[f"held_out_{share}"]) for share in (5, 95)]
                assert sum(ends[0] - 0.005 <= clip <= ends[1] + 0.005 for clip in clips[:10]) == int(row["inside"])
                cells += [" to ".join(f"{end:.{digits}f}" for end in ends), f"{statistics.median(clips):.2f}"]
            counts = [(row["inside"], 10)] + [(row["inside_of_20"], 20)] * (len(clips) == 20)
            cells += [count if int(count) >= 0.8 * of else f"**{count}**" for count, of in counts]
        shown = [
            cell for line in audio.splitlines() if line.startswith(f"| {measure}") for cell in line.split("|")[2:-1]
        ]
        assert [cell.strip() for cell in shown if cell.strip()] == cells, measure


def test_what_is_said_of_the_fits_is_what_they_say():
    audio = (RESULTS.parent.parent / "docs" / "audio.md").read_text(encoding="utf-8")
    finalists = {
        (row["run"], row["temperature"], row["min_p"], row["hold"], row["best_of"]): row
        for row in rows("sampling_h200/finalists.csv")
    }

    def clips(run):
        drawn = {row["measure"]: row for row in rows("sampling_h200/fitted.csv", run=run)}
        settings = [drawn["level"][name] for name in ("temperature", "min_p", "hold", "best_of")]
        counts = [[drawn[measure][column] for measure in JUDGED] for column in ("inside", "inside_of_20")]
        return finalists.get((run, *settings)), *counts

    expected, ten, twenty = clips("recorded")
    safely = {
        key: min(float(row[f"safely_{name}"]) for name in ("level", "flatness", "clicks"))
        for key, row in finalists.items()
        if key[0] == "recorded"
    }
    assert min(float(expected[f"safely_{name}"]) for name in ("level", "flatness")) >= max(safely.values()) - 0.02
    assert "{}, {}, {}, {} and {} of the first ten clips (seed 23".format(*ten) in audio
    assert "{}, {}, {}, {} and {} of twenty. The fit".format(*twenty) in audio
    shares = [100 * float(expected[f"inside_{measure}"]) for measure in ("level", "flatness")]
    assert "{:.0f} % by level and {:.0f} % by flatness.".format(*shares) in audio
    level = [100 * float(finalists["recorded", t, "0.1", "0.6", "4"]["inside_level"]) for t in ("1.345", "1.375")]
    assert "level rises from {:.0f} to {:.0f} % inside".format(*level) in audio
    _, ten, twenty = clips("recorded-first")
    assert "best of four: {}, {}, {}, {} and {} of its first ten clips".format(*ten) in audio
    assert "({}, {}, {}, {} and {} of twenty)".format(*twenty) in audio
    expected, ten, _ = clips("recorded-second")
    assert "best of eight: {}, {}, {}, {} and {} (clips".format(*ten) in audio
    other = finalists["recorded-second", "1.3", "0.08", "0.3", "8"]
    flat = [100 * float(row["inside_flatness"]) for row in (expected, other)]
    assert "{:.0f} % by flatness of the one that it took and {:.0f} % of 1.3".format(*flat) in audio


def test_what_is_said_of_digits_by_class_is_what_was_measured():
    table = (RESULTS / "digits_by_class_h200" / "table.txt").read_text()
    audio = (RESULTS.parent.parent / "docs" / "audio.md").read_text(encoding="utf-8")
    right, recognised = re.search(r"temperature 1 +2050 clips +right (\S+)%  recognised (\S+)%", table).groups()
    assert f"| 2,050 | {recognised} % | **{right} %** |" in audio
    own = re.findall(r"^[a-z]+ +205 +(\S+)%", table, flags=re.MULTILINE)
    assert f"asked for in {sum(map(float, own)) / len(own):.0f} %" in audio


def test_what_is_said_of_digits_by_class_at_8_khz_is_what_was_measured():
    table = (RESULTS / "digits_by_class_h200" / "table-8khz.txt").read_text()
    audio = (RESULTS.parent.parent / "docs" / "audio.md").read_text(encoding="utf-8")
    right, recognised = re.search(r"guidance 2 +2050 clips +right (\S+)%  recognised (\S+)%", table).groups()
    assert f"| 2,050 | {recognised} % | **{right} %** |" in audio
    theirs, heard = re.search(r"recorded, test +500 clips +right (\S+)%  recognised (\S+)%", table).groups()
    assert f"in {right} %, where it is {theirs} % of the" in audio
    assert f"| 500 | {heard} % | {theirs} % |" in audio
    for found, taken in re.findall(r"320 clips +right (\S+)%  recognised (\S+)%", table):
        assert f"| 320 | {taken} % | {found} % |" in audio
    by_digit = {
        word: tuple(map(float, shares))
        for word, *shares in re.findall(r"^([a-z]+) +205 +(\S+)% +(\S+)% +(\S+)%", table, flags=re.MULTILINE)
    }
    least, second, *_, most = sorted(by_digit, key=lambda word: by_digit[word][2])
    both = {word: f"{by_digit[word][2]:.1f} %" for word in by_digit}
    expected = f"from {both[least]} ({least}) and {both[second]} ({second}) to\n{both[most]} ({most}): named are"
    assert expected in audio
    ranges = [f"{min(column):.1f} to {max(column):.1f} %" for column in list(zip(*by_digit.values(), strict=True))[:2]]
    assert f"named are {ranges[0]}, recognised {ranges[1]}" in audio


JUDGED = ("level", "flatness", "clicks", "onsets", "entropy")


def brought_inside():
    """Of each row of the tables of docs/audio.md, "What brings pieces inside": settings as the file has them, and numbers."""
    audio, found = (RESULTS.parent.parent / "docs" / "audio.md").read_text(encoding="utf-8"), []
    for table in re.findall(r"^\| model, seconds of a piece .*\n\|---.*\n((?:\|.*\n)+)", audio, flags=re.MULTILINE):
        model = drawn = ""
        for line in table.splitlines():
            first, second, *cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
            model, drawn = first or model, second.replace("the same", drawn)
            run, seconds = model.split(", ")
            temperature, *more = drawn.split(", ")
            settings = {"top-p": "1", "min-p": "0", "hold": "0", "best of": "1"} | dict(
                part.rsplit(" ", 1) for part in more
            )
            drawn = drawn.removesuffix(f", best of {settings['best of']}")
            found.append(((run, seconds, temperature, *settings.values()), cells))
    return found


def test_the_tables_of_settings_are_those_of_the_file():
    names = ("temperature", "top_p", "min_p", "hold", "best_of")
    measured = {
        (
            row["run"],
            f"{float(row['piece_s']):.2f}".removesuffix(".00"),
            *(f"{float(row[name]):g}" for name in names),
        ): [row[name] for name in ("clips", *(f"inside_{measure}" for measure in (*JUDGED, "all")))]
        for row in rows("sampling_h200/settings.csv", over_s="1")
    }
    found = brought_inside()
    assert len(found) >= 10
    for settings, cells in found:
        assert measured[settings] == cells, settings
