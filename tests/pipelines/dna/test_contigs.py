import pytest

from mamba_bio_audio.pipelines.dna.contigs import ACCESSIONS, Region, parse_region, primary, same_sequence


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("chr1", "1"),
        ("chr1", "NC_000001.11"),
        ("1", "CM000663.2"),
        ("NC_000001.11", "CM000663.2"),
        ("NC_000001.10", "CM000663.1"),
        ("chrX", "NC_000023.11"),
        ("Y", "CM000686.2"),
        ("chrM", "MT"),
        ("M", "NC_012920.1"),
        ("chr2R", "2R"),
        ("chr7", "CP068271.2"),
        ("NC_060948.1", "chrY"),
        ("CP086569.2", "NC_060948.1"),
    ],
)
def test_same_sequence(first: str, second: str) -> None:
    assert same_sequence(first, second)
    assert same_sequence(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("chr1", "chr11"),
        ("NC_000001.11", "NC_000001.10"),
        ("CM000663.1", "NC_000001.11"),
        ("CP068277.2", "CM000663.2"),
        ("chr2", "NC_000001.11"),
        ("chrM", "X"),
        ("NC_001807.4", "MT"),
        ("chr1_KI270706v1_random", "chr1"),
    ],
)
def test_other_sequences(first: str, second: str) -> None:
    assert not same_sequence(first, second)
    assert not same_sequence(second, first)


def test_accessions_are_complete() -> None:
    # Three assemblies of 24 chromosomes under two accessions each; two mitochondria under three.
    assert len(ACCESSIONS) == 3 * 24 * 2 + 3
    assert ACCESSIONS["NC_000014.9"] == ("GRCh38", "14")
    assert ACCESSIONS["NC_000005.9"] == ("GRCh37", "5")
    assert ACCESSIONS["CM000684.2"] == ("GRCh38", "22")
    assert ACCESSIONS["CP068256.2"] == ("CHM13", "22")


def test_primary() -> None:
    ucsc = [f"chr{name}" for name in (*range(1, 23), "X", "Y", "M")]
    beside = [
        *("chr1_KI270706v1_random", "chrUn_KI270302v1", "chr19_KI270938v1_alt", "chr6_cox_hap2", "chr1_KN196472v1_fix"),
        *("chrEBV", "chrUn_KN707606v1_decoy", "HLA-A*01:01:01:01"),
    ]
    assert primary([*ucsc, *beside]) == ucsc
    assert primary(["1", "MT", "GL000192.1", "KI270728.1", "hs37d5", "NC_007605", "HSCHR6_MHC_COX"]) == ["1", "MT"]
    assert primary(["NC_000001.11", "NT_187361.1", "NW_003315905.1"]) == ["NC_000001.11"]
    # Nothing in these names tells chromosomes from the rest.
    for names in (["NW_1.1", "NW_2.1"], ["scaffold_1", "scaffold_2"], ["NZ_CP1", "plasmid"], ["GL000192.1"]):
        assert primary(names) == names
    assert primary(["chr2R", "chrUn_1"]) == ["chr2R"]


def test_parse_region() -> None:
    assert parse_region("chr1:1,001-2,000") == Region("chr1", 1001, 2000)
    assert parse_region("g:chr1:7-9") == Region("g:chr1", 7, 9)
    for text in ("chr1", "chr1:", "chr1:5", "chr1:1-", "chr1:1,00-2", "chr1:-5-7x", "HLA-A*01:01"):
        assert parse_region(text) == Region(text, None, None)
