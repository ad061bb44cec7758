"""Starts of open reading frames, against a loop; and where they stand on the other strand."""

import numpy as np
import pytest


@pytest.fixture
def orfs(script):
    return script("orfs")


def test_starts_against_a_loop(orfs):
    text = "".join(np.random.default_rng(0).choice(list("ACGT"), 4000))
    found = orfs.starts(np.frombuffer(text.encode(), np.uint8), 3)
    for at in range(len(text)):
        codons = [text[at + 3 * n : at + 3 * n + 3] for n in range(4)]
        whole = all(len(codon) == 3 for codon in codons)
        expected = whole and codons[0] == "ATG" and not {"TAA", "TAG", "TGA"} & set(codons[1:])
        assert found[at] == expected, at
    assert found.sum() > 30


def test_both_strands_are_known(orfs, tmp_path):
    share = orfs.construct(tmp_path, 2000, 4)
    assert 0.6 < share < 0.95
    texts = dict(block.split("\n")[:2] for block in (tmp_path / "g.fa").read_text().split(">")[1:])
    turn = str.maketrans("ACGT", "TGCA")
    rows = [line.split("\t") for line in (tmp_path / "starts.bed").read_text().splitlines()]
    for name, start, end, _, _, strand in rows:
        text, at = texts[name], int(start)
        assert int(end) == at + 1
        assert (text[at : at + 3] if strand == "+" else text[at - 2 : at + 1][::-1].translate(turn)) == "ATG"
    assert {row[5] for row in rows} == {"+", "-"}
