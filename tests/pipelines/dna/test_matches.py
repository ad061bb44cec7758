"""Longest exact matches against a brute-force search."""

import numpy as np
import pytest

from mamba_bio_audio.pipelines.dna import matches as module
from mamba_bio_audio.pipelines.dna.matches import Query, longest_matches
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer

CODEC = DnaTokenizer()


class Genome:
    def __init__(self, **records: str) -> None:
        self.records = {name: CODEC.encode(text) for name, text in records.items()}

    def fetch(self, record: str, start: int, end: int) -> np.ndarray:
        return self.records[record][start:end]

    def spans(self) -> list[tuple[str, int, int]]:
        return [(name, 0, len(ids)) for name, ids in self.records.items()]


def text(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(list("ACGT"), length))


def complement(sequence: str) -> str:
    return sequence[::-1].translate(str.maketrans("ACGT", "TGCA"))


def brute(sequence: str, start: int, end: int, texts: list[str]) -> int:
    """The slow way: grow every word while it is somewhere on either strand; N matches nothing."""
    longest = 0
    both = [*texts, *map(complement, texts)]
    for at in range(start, end):
        while at + longest < len(sequence):
            word = sequence[at : at + longest + 1]
            if "N" in word or not any(word in one for one in both):
                break
            longest += 1
    return longest


@pytest.mark.parametrize("group", [2**23, 60])
@pytest.mark.parametrize("seed", range(4))
def test_longest_matches_equal_brute_force(seed, group, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BASES", 97)
    monkeypatch.setattr(module, "_GROUP_BASES", group)
    rng = np.random.default_rng(seed)
    genome = Genome(a=text(rng, 700), b=text(rng, 300) + "N" * 5 + text(rng, 200))
    whole = CODEC.decode(genome.records["a"])
    sequences = [text(rng, 120), text(rng, 50) + whole[200:331] + text(rng, 60), "ACGTN" * 8, "A"]
    if seed % 2:
        sequences[1] = complement(sequences[1])
    queries = [Query(i, low, min(low + 40, len(s))) for i, s in enumerate(sequences) for low in range(0, len(s), 40)]
    lengths, match = longest_matches([CODEC.encode(s) for s in sequences], queries, genome, genome.spans())
    texts = [CODEC.decode(ids) for ids in genome.records.values()]
    assert lengths == [brute(sequences[q.sequence], q.start, q.end, texts) for q in queries]
    assert match.bases == max(lengths) >= 131
    assert match.record == "a"
    read = CODEC.decode(genome.records["a"])[match.start : match.start + match.bases]
    own = sequences[1][match.position : match.position + match.bases]
    assert match.sequence == 1
    assert own == (read if match.strand == "+" else complement(read))
    assert match.strand == ("-" if seed % 2 else "+")


@pytest.mark.parametrize("strand", ["+", "-"])
def test_the_match_tells_strand_and_places(strand):
    """The bases behind `position` of the sequence are those behind `start` of the record, read on the strand told."""
    rng = np.random.default_rng(3)
    whole = text(rng, 400)
    piece = whole[210:260]
    sequence = text(rng, 33) + (piece if strand == "+" else complement(piece)) + text(rng, 17)
    genome = Genome(a=whole)
    # The match begins inside the second query, and there is a shorter one on the other strand.
    sequence += complement(whole[20:50]) if strand == "+" else whole[20:50]
    queries = [Query(0, 0, 30), Query(0, 30, 60), Query(0, 60, len(sequence))]
    lengths, match = longest_matches([CODEC.encode(sequence)], queries, genome, genome.spans())
    assert lengths[1] == match.bases >= 50
    assert match.strand == strand
    own = sequence[match.position : match.position + match.bases]
    read = whole[match.start : match.start + match.bases]
    assert own == (read if strand == "+" else complement(read))
    assert own != (complement(read) if strand == "+" else read)
    assert match.start <= 210 < 260 <= match.start + match.bases


def test_a_hash_is_believed_only_where_the_bases_are_the_same(monkeypatch):
    """With a hash that all words share, the match is still one of the right bases on the right strand."""
    rng = np.random.default_rng(4)
    whole = text(rng, 300)
    genome = Genome(a=whole)
    honest = module._hashes

    def colliding(tokens, length):
        found, positions = honest(tokens, length)
        return found * np.uint64(0), positions

    sequence = CODEC.encode(complement(whole[100:140]))
    monkeypatch.setattr(module, "_hashes", colliding)
    same = module._Words([sequence], [Query(0, 0, 40)], 40)
    value, ids = same.sorted[0], genome.records["a"]
    found = [(at, match) for at in range(261) if (match := same.locate(value, ids[at : at + 40]))]
    assert found == [(100, (0, 0, "-"))]
    assert same.locate(value, sequence) == (0, 0, "+")


def test_longest_matches_read_the_spans_only():
    rng = np.random.default_rng(9)
    genome = Genome(a=text(rng, 1000))
    sample = [genome.records["a"][400:500].copy()]
    query = [Query(0, 0, 100)]
    assert longest_matches(sample, query, genome, [("a", 0, 1000)])[0] == [100]
    # Two spans that do not touch: the match breaks at the gap.
    assert longest_matches(sample, query, genome, [("a", 0, 440), ("a", 441, 1000)])[0] == [59]
    assert longest_matches(sample, query, genome, [("a", 0, 440), ("a", 440, 1000)])[0] == [100]
    assert longest_matches(sample, query, genome, [])[0] == [0]
    assert longest_matches([], [], genome, [("a", 0, 1000)])[1].bases == 0


def test_longest_matches_of_repeats():
    """Runs and tandem repeats: the words of a period have one hash, whatever the length."""
    genome = Genome(a="A" * 300 + "ACG" * 200)
    sample = [CODEC.encode("A" * 250 + "T" + "CGA" * 150)]
    lengths, match = longest_matches(sample, [Query(0, 0, 251), Query(0, 251, 701)], genome, genome.spans())
    assert lengths[1] == 450
    assert lengths[0] >= 250
    assert match.bases == 450


@pytest.mark.parametrize("group", [2**23, 60])
def test_longest_match_is_located_among_the_first_queries(group, monkeypatch):
    monkeypatch.setattr(module, "_GROUP_BASES", group)
    genome = Genome(a=text(np.random.default_rng(5), 900))
    sequences = [genome.records["a"][start : start + size].copy() for start, size in ((10, 40), (100, 30), (300, 90))]
    queries = [Query(i, 0, len(sequence)) for i, sequence in enumerate(sequences)]
    for locate, start in ((None, 300), (3, 300), (2, 10), (1, 10)):
        lengths, match = longest_matches(sequences, queries, genome, genome.spans(), locate=locate)
        assert lengths == [40, 30, 90]
        assert match.start == start
    assert longest_matches(sequences, queries, genome, genome.spans(), locate=0)[1].bases == 0
