import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.data import DataModule
from mamba_bio_audio.pipelines.dna import duplicates
from mamba_bio_audio.pipelines.dna.config import DnaDataConfig
from mamba_bio_audio.pipelines.dna.duplicates import find_duplicates, sampled_words
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.prepare import prepare_genome, summary_rows
from mamba_bio_audio.pipelines.dna.prepare_settings import GenomeSettings
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.pipelines.spans import Interval

codec = DnaTokenizer()
PAIRS = str.maketrans("ACGT", "TGCA")


def canonical(text: str) -> list[str]:
    """31-mers as words, the smaller of both strands; words with an unknown base are left out."""
    words = (text[at : at + 31] for at in range(len(text) - 30))
    return [min(word, word.translate(PAIRS)[::-1]) for word in words if set(word) <= set("ACGT")]


@given(st.integers(0, 2**32 - 1), st.integers(0, 120))
def test_words_are_the_canonical_31_mers(seed: int, size: int) -> None:
    letters = np.frombuffer(b"ACGT" * 20 + b"N", dtype=np.uint8)
    text = np.random.default_rng(seed).choice(letters, size).tobytes().decode()
    expected = [sum("ACGT".index(base) << 2 * (30 - at) for at, base in enumerate(word)) for word in canonical(text)]
    found = sampled_words(codec.encode(text), 1)
    assert found.tolist() == expected
    # Both strands have the same words.
    opposite = sampled_words(codec.reverse_complement(codec.encode(text)), 1)
    assert opposite.tolist() == expected[::-1]
    some = sampled_words(codec.encode(text), 3)
    assert set(some.tolist()) <= set(expected)
    assert sampled_words(codec.reverse_complement(codec.encode(text)), 3).tolist() == some.tolist()[::-1]


def test_a_third_of_the_words_is_sampled(random_dna) -> None:
    ids = codec.encode(random_dna(100_000))
    assert len(sampled_words(ids, 3)) == pytest.approx(100_000 / 3, rel=0.02)


def mutate(text: str, rate: float, seed: int) -> str:
    rng = np.random.default_rng(seed)
    letters = list(text)
    for at in np.flatnonzero(rng.random(len(text)) < rate).tolist():
        letters[at] = "ACGT"[("ACGT".index(letters[at]) + int(rng.integers(1, 4))) % 4]
    return "".join(letters)


@pytest.mark.parametrize("sampled", [10**9, 3000])
@pytest.mark.parametrize("piece", [1 << 17, 1000])
def test_haplotypes_are_named(
    sampled: int, piece: int, write_fasta, random_dna, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_PIECE_BASES", piece)
    base = random_dna(20_000)
    opposite = base[5000:15_000].translate(PAIRS)[::-1]
    records = {
        "train1": base,
        "train2": random_dna(20_000, 1),
        "other": random_dna(20_000, 2),
        "flipped": opposite,
        "haplotype": mutate(base, 0.01, 3),
        "short": base[:60],
    }
    genome = Genome(write_fasta("g.fa", records))
    split = {"train1": "train", "train2": "train", "haplotype": "test", "short": "valid"}
    intervals = [Interval(name, 0, len(text), split.get(name, "valid")) for name, text in records.items()]
    found = find_duplicates(genome, intervals, sampled_words=sampled)
    assert found.every == (1 if sampled == 10**9 else 31)
    tolerance = 1e-12 if found.every == 1 else 0.05
    held = set(canonical(base))
    for name in ("valid", "test"):
        words = [w for r, text in records.items() if split.get(r, "valid") == name for w in canonical(text)]
        assert found.shares[name] == pytest.approx(sum(word in held for word in words) / len(words), abs=tolerance)
    # 0.99^31
    assert found.shares["test"] == pytest.approx(0.732, abs=0.08)
    named = [(row.split, row.record, row.bases, row.other_record) for row in found.records]
    assert named == [("test", "haplotype", 20_000, "train1"), ("valid", "flipped", 10_000, "train1")]
    assert found.records[1].share == found.records[1].other_share == 1
    assert found.records[0].other_share == pytest.approx(found.records[0].share, abs=0.05)
    assert found.excessive
    # Neither is small.
    assert find_duplicates(genome, intervals, sampled_words=sampled, leave_out=True) == found


def test_shares_count_each_word_once_per_record(write_fasta, random_dna) -> None:
    """However often train or the record itself repeats it; the record of train that holds most is named."""
    base = random_dna(3000)
    records = {"a": base[:2000], "b": base + base, "v": base + base, "w": random_dna(2970 + 30, 5), "x": base[:50]}
    genome = Genome(write_fasta("g.fa", records))
    split = {"a": "train", "b": "train"}
    found = find_duplicates(genome, [Interval(n, 0, len(t), split.get(n, "valid")) for n, t in records.items()])
    # v has 30 words more, across the joint; all of them are in b.
    assert found.shares == {"valid": (3000 + 20) / (3000 + 20 + 2970), "test": None}
    assert [(row.record, row.other_record, row.share, row.other_share) for row in found.records] == [("v", "b", 1, 1)]


def test_the_hash_is_splitmix64() -> None:
    """First output of splitmix64 from the seed 0 (https://prng.di.unimi.it/splitmix64.c), here of the word of A alone."""
    assert duplicates._hash(np.zeros(1, dtype=np.uint64)).tolist() == [0xE220A8397B1DCDAF]


def test_words_of_a_run_of_a_are_sampled_like_others(random_dna) -> None:
    """The word of A alone has the code 0, and a hash that is 0 as well would always be taken."""
    for base in "ACGT":
        assert len(sampled_words(codec.encode(base * 1000), 1)) == 970
    kept = [len(sampled_words(codec.encode("A" * 31), every)) for every in range(1, 200)]
    assert sum(kept) < 10
    # Of words with few different bases one in four too.
    simple = codec.encode(mutate("A" * 40_000, 0.02, 1))
    words = np.unique(sampled_words(simple, 1))
    assert len(np.unique(sampled_words(simple, 4))) == pytest.approx(len(words) / 4, rel=0.1)


def test_repeats_bound_the_sample(write_fasta, random_dna, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred records of one satellite, and megabases of it, keep no more rows than the budget allows."""
    unit = random_dna(171, 3)
    records = {"chr": random_dna(20_000) + unit * 600 + "A" * 50_000 + random_dna(20_000, 1)}
    records |= {f"s{at}": unit * 6 for at in range(400)}
    genome = Genome(write_fasta("g.fa", records))
    intervals = [Interval("chr", 0, 100_000, "train"), Interval("chr", 100_000, len(records["chr"]), "test")]
    intervals += [Interval(name, 0, 1026, "train" if at % 2 else "valid") for at, name in enumerate(list(records)[1:])]
    rows = []
    taken = duplicates._unique

    def watch(words, owners):
        rows.append(len(words))
        return taken(words, owners)

    monkeypatch.setattr(duplicates, "_unique", watch)
    found = find_duplicates(genome, intervals, sampled_words=2000)
    assert sum(found.words.values()) <= 4000
    # What is sorted at once: rows kept, new ones each once, and one batch.
    assert max(rows) < 4000 + 4000 + duplicates._PIECE_BASES
    # The array and the run of A, 90 % of its bases, tell next to nothing of test.
    assert found.shares["test"] < 0.05
    # A word in two hundred records names none of them; the share stands.
    assert found.shares["valid"] in (1.0, None)


def test_words_in_few_records_name_one_among_repeats(write_fasta, random_dna) -> None:
    unit, own = random_dna(171, 3), random_dna(400, 4)
    records = {"chr": own + unit * 3, **{f"t{at}": unit * 3 for at in range(80)}, "v": own + unit * 3}
    genome = Genome(write_fasta("g.fa", records))
    intervals = [Interval(n, 0, len(t), "valid" if n == "v" else "train") for n, t in records.items()]
    (row,) = find_duplicates(genome, intervals).records
    assert (row.record, row.other_record, row.share) == ("v", "chr", 1)
    # 370 of its own and 171 of the unit, and 30 across the joint.
    assert row.other_share == pytest.approx(400 / 571)
    intervals = [interval for interval in intervals if interval.record != "chr"]
    (row,) = find_duplicates(genome, intervals).records
    assert (row.other_record, row.other_share) == (None, 0)
    assert "in train" in dict(duplicates.describe_duplicates(find_duplicates(genome, intervals).to_dict()))[""]


def assembly(random_dna, copies: int = 30) -> dict[str, str]:
    """A chromosome with a satellite array and runs of A, and 200 scaffolds of which some are pieces of it."""
    unit = random_dna(171, 9)
    array = "".join(mutate(unit, 0.02, seed) for seed in range(400))
    chromosome = random_dna(200_000) + array + "A" * 3000 + random_dna(130_000, 1) + "A" * 500
    rng = np.random.default_rng(0)
    records = {"chr1": chromosome}
    for at in range(200):
        begin = int(rng.integers(0, len(chromosome) - 2000))
        piece = mutate(chromosome[begin : begin + 2000], 0.003, at)
        records[f"scaffold_{at}"] = piece if at % (200 // copies) == 0 else random_dna(2000, 100 + at)
    return records


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_scaffolds_that_repeat_train_are_left_out(
    seed: int, write_fasta, random_dna, tmp_path: Path, capsys
) -> None:
    path = write_fasta("g.fa", assembly(random_dna))
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        command(["prepare", "genome", path, "--out", str(out), "--seed", str(seed), "--contigs", "all"])
    assert not stop.value.code
    printed = capsys.readouterr().out
    found = json.loads((out / "manifest.json").read_text())["duplicates"]
    left = {(row["split"], row["record"]) for row in found["left_out"]}
    assert left
    assert all(int(record.removeprefix("scaffold_")) % 6 == 0 for _, record in left)
    assert {split for split, _ in left} > {"train"}
    listed = (out / "intervals.tsv").read_text()
    for row in found["left_out"]:
        assert row["bases"] == 2000
        assert row["other_record"] == "chr1"
        assert (row["split"] == "train") == (row["other_split"] in ("valid", "test"))
        assert f"{row['split']} {row['record']}: {row['share']:.0%} of 2,000 bases in {row['other_split']}, " in printed
        assert f"\t{row['record']}\t" not in listed
    assert f"{2000 * len(left):,} bases of {len(left)} small records that repeat another split" in printed
    assert found["records"] == []
    assert max(found["shares"].values()) < 0.1
    data = DataModule(DnaDataConfig(path=str(out)), length=64, batch_size=2, seed=0)
    data.setup()
    assert not find_duplicates(data.corpus.genome, data.corpus.intervals, leave_out=True).left_out
    # Accepted as they are, nothing is left out.
    manifest = prepare_genome(
        path, tmp_path / "all", GenomeSettings(contigs=("all",), seed=seed, allow_duplicates=True)
    )
    named = {(row["split"], row["record"]) for row in manifest["duplicates"]["records"]}
    assert {pair for pair in left if pair[0] != "train"} <= named
    assert manifest["duplicates"]["left_out"] == []


def test_a_split_of_mostly_duplicates_is_refused(write_fasta, random_dna, tmp_path: Path) -> None:
    """Small records too, where they hold more than a fifth of their split; and one large record."""
    records = assembly(random_dna, copies=200)
    path = write_fasta("g.fa", records)
    bed = tmp_path / "x.bed"
    names = list(records)[1:]
    bed.write_text("chr1 train\n" + "".join(f"{name} {('valid', 'test')[at % 2]}\n" for at, name in enumerate(names)))
    with pytest.raises(InputError, match=r"--exclude NAME, --min-length") as caught:
        prepare_genome(path, tmp_path / "out", GenomeSettings(intervals=bed, contigs=("all",)))
    assert "more records above 20%" in str(caught.value)
    large = {"a": random_dna(200_000), "b": random_dna(50_000, 2)}
    large |= {"copy": mutate(large["b"][:5000], 0.001, 3), "c": random_dna(40_000, 4)}
    path = write_fasta("large.fa", large)
    bed.write_text("a train\nb train\ncopy test\nc test\na:1-10 valid\n".replace("a train", "a:11-200000 train"))
    with pytest.raises(InputError, match=r"test copy: 9\d% of 5,000 bases in train, 9\d% in b"):
        prepare_genome(path, tmp_path / "out", GenomeSettings(intervals=bed))
    # Left out by name, the rest is clean.
    manifest = prepare_genome(path, tmp_path / "out", GenomeSettings(intervals=bed, exclude=("copy",)))
    assert manifest["duplicates"]["shares"]["test"] == 0
    assert manifest["contigs"]["left_out"] == ["copy"]


def test_exclude_and_min_length(write_fasta, random_dna, tmp_path: Path, capsys) -> None:
    records = {name: random_dna(30_000, at) for at, name in enumerate(["chr1", "chr10", "odd|name+"])}
    records |= {f"scaffold_{at}": random_dna(3000 + at, at) for at in range(5)}
    path = write_fasta("g.fa", records)

    def used(*options: str) -> list[str]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(SystemExit) as stop:
            command(["prepare", "genome", path, "--out", str(out), "--contigs", "all", *options])
        assert not stop.value.code
        capsys.readouterr()
        manifest = json.loads((out / "manifest.json").read_text())
        listed = {line.split("\t")[1] for line in (out / "intervals.tsv").read_text().splitlines()[1:]}
        assert listed == set(manifest["contigs"]["used"])
        data = DataModule(DnaDataConfig(path=str(out)), length=64, batch_size=2, seed=0)
        data.setup()
        assert data.summary()["contigs"]["left_out"] == manifest["contigs"]["left_out"]
        return manifest["contigs"]["used"]

    assert used("--exclude", "chr1") == [name for name in records if name != "chr1"]
    assert used("--exclude", "odd|name+", "--exclude", r"scaffold_\d") == ["chr1", "chr10"]
    assert used("--min-length", "3003") == ["chr1", "chr10", "odd|name+", "scaffold_3", "scaffold_4"]
    wrong = {"scaffold": "matches no record", "(": "neither a record's name nor", ".*": "no record is left"}
    for expression, message in wrong.items():
        with pytest.raises(InputError, match=message):
            prepare_genome(path, tmp_path / "wrong", GenomeSettings(contigs=("all",), exclude=(expression,)))


def test_progress_counts_every_base(write_fasta, random_dna) -> None:
    genome = Genome(write_fasta("g.fa", {"a": random_dna(300_000), "b": random_dna(500), "c": random_dna(700, 1)}))
    intervals = [
        Interval("a", 0, 250_000, "train"),
        Interval("a", 250_000, 300_000, "test"),
        Interval("b", 0, 500, "valid"),
    ]
    calls: list[tuple[int, int | None]] = []
    find_duplicates(genome, intervals, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) == 2
    assert calls[-1] == (300_500, 300_500)


def test_a_genome_of_random_blocks_is_clean(write_fasta, random_dna, tmp_path: Path) -> None:
    manifest = prepare_genome(write_fasta("g.fa", {"r": random_dna(50_000)}), tmp_path / "out")
    assert manifest["duplicates"]["shares"] == {"valid": 0.0, "test": 0.0}
    assert dict(summary_rows(manifest))["test found in train"] == "0.0% of its 31-mers"


def test_leaks_by_sequence_are_refused(write_fasta, random_dna, tmp_path: Path, capsys) -> None:
    base = random_dna(20_000)
    path = write_fasta("g.fa", {"hap1": base, "hap2": mutate(base, 0.001, 1), "more": random_dna(20_000, 7)})
    splits = tmp_path / "x.bed"
    splits.write_text("hap1 train\nmore:1-18000 valid\nmore:18001-20000 train\nhap2 test\n")
    arguments = ["prepare", "genome", path, "--out", str(tmp_path / "out"), "--intervals", str(splits)]
    with pytest.raises(SystemExit) as stop:
        command(arguments)
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert re.search(r"test hap2: 9[678]% of 20,000 bases in train, 9[678]% in hap1", text)
    assert "--allow-duplicates" in text
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stop:
        command([*arguments, "--allow-duplicates"])
    assert not stop.value.code
    assert "test found in train" in capsys.readouterr().out
    with pytest.raises(InputError, match="more than 20% of a held-out split"):
        prepare_genome(path, tmp_path / "again", GenomeSettings(intervals=splits))


def test_real_haplotypes_are_found(shared_dna: Path, tmp_path: Path) -> None:
    """Twelve haplotypes of one human locus, split by blocks as a newcomer would."""
    with pytest.raises(InputError, match=r"bases in train, \d+% in \S+") as caught:
        prepare_genome(shared_dna / "human" / "LPA_locus.haplotypes.fa.gz", tmp_path / "out")
    assert len(re.findall(r"(?:valid|test) \S+: \d+% of [\d,]+ bases in train", str(caught.value))) > 1
    # Apart from them, no locus of the human set is twice in it.
    single = [path for path in sorted((shared_dna / "human").glob("hg19.chr[34]*.fa.gz"))]
    manifest = prepare_genome(single, tmp_path / "single")
    assert max(manifest["duplicates"]["shares"].values()) < 0.1
