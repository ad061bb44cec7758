from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna import duplicates
from mamba_bio_audio.pipelines.dna.duplicates import find_duplicates, sampled_words
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.intervals import Interval
from mamba_bio_audio.pipelines.dna.prepare import prepare_genome
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

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
    assert found.every == (1 if sampled == 10**9 else 14)
    tolerance = 1e-12 if found.every == 1 else 0.05
    held = set(canonical(base))
    for name in ("valid", "test"):
        words = [w for r, text in records.items() if split.get(r, "valid") == name for w in canonical(text)]
        assert found.shares[name] == pytest.approx(sum(word in held for word in words) / len(words), abs=tolerance)
    # 0.99^31
    assert found.shares["test"] == pytest.approx(0.732, abs=0.08)
    named = [(pair.split, pair.record, pair.train_record) for pair in found.pairs]
    assert named == [("valid", "flipped", "train1"), ("test", "haplotype", "train1")]
    assert found.pairs[0].share == 1
    assert found.excessive


def test_shares_count_repeated_words_and_records(write_fasta, random_dna) -> None:
    """A word in several records of train counts for each pair, and once for the split."""
    base = random_dna(3000)
    records = {"a": base, "b": base + base, "v": base, "w": random_dna(3000, 5)}
    genome = Genome(write_fasta("g.fa", records))
    split = {"a": "train", "b": "train", "v": "valid", "w": "valid"}
    found = find_duplicates(genome, [Interval(n, 0, len(t), split[n]) for n, t in records.items()])
    assert found.shares == {"valid": 0.5, "test": None}
    assert [(pair.record, pair.train_record, pair.share) for pair in found.pairs] == [("v", "a", 1), ("v", "b", 1)]


def test_a_genome_of_random_blocks_is_clean(write_fasta, random_dna, tmp_path: Path) -> None:
    prepared = prepare_genome(write_fasta("g.fa", {"r": random_dna(50_000)}), tmp_path / "out")
    assert prepared.manifest["duplicates"]["shares"] == {"valid": 0.0, "test": 0.0}
    assert dict(prepared.rows)["test found in train"] == "0.0% of its 31-mers"


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
    assert "test hap2: 97% in train hap1" in text.replace("98%", "97%").replace("96%", "97%")
    assert "--allow-duplicates" in text
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as stop:
        command([*arguments, "--allow-duplicates"])
    assert not stop.value.code
    assert "test found in train" in capsys.readouterr().out
    with pytest.raises(InputError, match="more than 20% of a held-out split"):
        prepare_genome(path, tmp_path / "again", intervals=splits)


def test_real_haplotypes_are_found(shared_dna: Path, tmp_path: Path) -> None:
    """Twelve haplotypes of one human locus, split by blocks as a newcomer would."""
    with pytest.raises(InputError, match=r"in train LPA|in train \S+") as caught:
        prepare_genome(shared_dna / "human" / "LPA_locus.haplotypes.fa.gz", tmp_path / "out")
    assert "more pairs of records above 20%" in str(caught.value)
    # Apart from them, no locus of the human set is twice in it.
    single = [path for path in sorted((shared_dna / "human").glob("hg19.chr[34]*.fa.gz"))]
    prepared = prepare_genome(single, tmp_path / "single")
    assert max(prepared.manifest["duplicates"]["shares"].values()) < 0.1
