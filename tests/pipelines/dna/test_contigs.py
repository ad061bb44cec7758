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
    ucsc = [f"chr{name}" for name in (*range(1, 23), "X", "Y")]
    beside = [
        "chrM",
        *("chr1_KI270706v1_random", "chrUn_KI270302v1", "chr19_KI270938v1_alt", "chr6_cox_hap2", "chr1_KN196472v1_fix"),
        *("chrEBV", "chrUn_KN707606v1_decoy", "HLA-A*01:01:01:01"),
    ]
    assert primary([*ucsc, *beside]) == ucsc
    assert primary(["1", "MT", "GL000192.1", "KI270728.1", "hs37d5", "NC_007605", "HSCHR6_MHC_COX"]) == ["1"]
    assert primary(["NC_000001.11", "NT_187361.1", "NW_003315905.1"]) == ["NC_000001.11"]
    # Nothing in these names tells chromosomes from the rest.
    for names in (["NW_1.1", "NW_2.1"], ["scaffold_1", "scaffold_2"], ["NZ_CP1", "plasmid"], ["GL000192.1"]):
        assert primary(names) == names
    assert primary(["chr2R", "chrUn_1"]) == ["chr2R"]


# Names that an assembly has, as UCSC, Ensembl, NCBI and others write them: its chromosomes, and what lies beside them.
ASSEMBLIES = {
    "mm39 of UCSC": (["chr1", "chr19", "chrX", "chrY"], ["chrM", "chr1_GL456210_random", "chrUn_GL456239"]),
    "dm6 of UCSC": (
        ["chr2L", "chr3R", "chr4", "chrX"],
        ["chrM", "chrUn_CP007071v1", "chrY_CP007108v1_random", "chrU", "chrUextra", "chr2LHet"],
    ),
    "galGal6 of UCSC": (["chr1", "chrW", "chrZ"], ["chrM", "chr1_NT_467389v1_random", "chrUn_NW_020109737v1"]),
    "hg18 of UCSC": (["chr1", "chr22"], ["chr1_random", "chr22_h2_hap1", "chr6_cox_hap1", "chrUn"]),
    "analysis set": (["chr1"], ["chrUn_JTFH01000001v1_decoy", "chrEBV", "HLA-A*01:01:01:01", "hs38d1"]),
    "sacCer3 of UCSC": (["chrI", "chrIV", "chrXVI"], ["chrM"]),
    "GRCh38 of Ensembl": (["1", "X"], ["MT", "KI270728.1", "GL000008.2", "CHR_HSCHR1_1_CTG3", "CHR_HG2021_PATCH"]),
    "rat of Ensembl": (["1", "20", "Y"], ["MT", "AABR07022993.1", "KL567906.1", "JACYVU010000493.1"]),
    "TAIR10 of Ensembl": (["1", "5"], ["Mt", "Pt"]),
    "Araport": (["Chr1", "Chr5"], ["ChrC", "ChrM"]),
    "worm": (["I", "V", "X"], ["MtDNA"]),
    "fly of FlyBase": (["2L", "X"], ["mitochondrion_genome", "Unmapped_Scaffold_8_D1580_D1567"]),
    "yeast of Ensembl": (["I", "XVI"], ["Mito"]),
    "GRCh38 of NCBI": (["NC_000001.11", "NC_000024.10"], ["NT_187361.1", "NW_003315905.1", "NC_012920.1"]),
    "soy bean": (["Gm01", "Gm20"], ["scaffold_21"]),
    "rapeseed": (["A01", "chrC09"], ["chrA01_random", "scaffold_12"]),
    "barley": (["chr1H", "chr7H"], ["chrUn"]),
    "rice": (["Chr1", "Chr12"], ["ChrUn", "ChrSy", "ChrC", "ChrM"]),
    "tomato": (["SL4.0ch01", "SL4.0ch12"], ["scaffold_3"]),
    "stickleback": (["chrI", "chrXIX"], ["scaffold_37", "chrM"]),
    "linkage groups": (["LG1", "LG22"], ["MT", "JH556661.1"]),
    "fly of Ensembl": (["2L", "3R", "X"], ["211000022278279", "rDNA", "mitochondrion_genome"]),
    "malaria of PlasmoDB": (["Pf3D7_01_v3", "Pf3D7_14_v3"], ["Pf3D7_API_v3", "Pf3D7_MIT_v3"]),
    "HG002, both haplotypes": (["chr1_MATERNAL", "chr1_PATERNAL", "chrX_MATERNAL"], ["chrM", "chrEBV"]),
    "TAIR10 of TAIR": (["1", "5"], ["mitochondria", "chloroplast"]),
    "VGP": (["SUPER_1", "SUPER_Z"], ["SUPER_1_unloc_1", "scaffold_12", "scaffold_3_ctg1"]),
    "of an assembler": (
        ["chr1"],
        ["scaffold12", "contig_7", "ctg000001", "tig00000012", "NODE_3_length_9", "Unplaced-1"],
    ),
}


@pytest.mark.parametrize("assembly", ASSEMBLIES)
def test_primary_of_assemblies(assembly: str) -> None:
    chromosomes, beside = ASSEMBLIES[assembly]
    assert primary([*beside, *chromosomes]) == chromosomes
    # Where there is nothing else, all of it is used.
    assert primary(beside) == beside


def test_primary_by_headers() -> None:
    """Accessions say nothing of organelles and scaffolds; what follows them in the header does."""
    records = {
        "NC_003070.9": "Arabidopsis thaliana chromosome 1 sequence",
        "NC_000087.8": "Mus musculus strain C57BL/6J chromosome Y, GRCm39 reference primary assembly C57BL/6J",
        "NC_999998.1": "Homo sapiens chromosome 2, with the mitochondrial genome inserted",
        "NC_999997.1": "Ficus ficta mitochondrion, complete genome",
        "NC_999996.1": "Ficus ficta voucher 7 chloroplast, complete genome",
        "OX000001.1": "Ficus ficta genome assembly, organelle: plastid",
        "XX123456.1": "Mus musculus unplaced genomic scaffold, GRCm39 reference primary assembly MSCHRUN_CTG1",
        "XX123457.1": "Homo sapiens chromosome 1 unlocalized genomic scaffold, GRCh38.p14 Primary Assembly",
        "XX123458.1": "Homo sapiens chromosome 1 genomic patch of type FIX, GRCh38.p14 PATCHES HG1342_HG2282_PATCH",
        "XX123459.1": "Homo sapiens chromosome 6 genomic scaffold, GRCh38.p14 alternate locus group ALT_REF_LOCI_2",
        "odd_name": "dna:scaffold scaffold:IWGSC:odd_name:1:1000:1 REF",
        "other": "dna_sm:chromosome chromosome:IWGSC:other:1:1000:1 REF",
        "plasmid": "Escherichia coli plasmid F, complete sequence",
    }
    assert primary(records, records.values()) == ["NC_003070.9", "NC_000087.8", "NC_999998.1", "other", "plasmid"]
    assert primary(records) == list(records)
    organelles = ["NC_999997.1", "NC_999996.1"]
    assert primary(organelles, [records[name] for name in organelles]) == organelles


@pytest.mark.parametrize(
    ("chromosome", "beside"),
    [
        (
            "ref|NC_001133| [org=Saccharomyces cerevisiae] [strain=S288C] [moltype=genomic] [chromosome=I]",
            "ref|NC_001224| [org=Saccharomyces cerevisiae] [moltype=genomic] [location=mitochondrion]",
        ),
        (
            "OU000001.1 Ficus ficta genome assembly, chromosome: 1",
            "CAJVQX010000012.1 Ficus ficta genome assembly, contig: SCAFFOLD_12",
        ),
        (
            "OU000001.1 Ficus ficta genome assembly, chromosome: 1",
            "OU000040.1 Ficus ficta genome assembly, chromosome: MT",
        ),
        (
            "PKNH_07 | organism=Plasmodium_knowlesi_strain_H | version=2015-06-18 | SO=chromosome",
            "PKNH_archived | organism=Plasmodium_knowlesi_strain_H | SO=apicoplast_chromosome",
        ),
    ],
)
def test_chromosomes_by_headers(chromosome: str, beside: str) -> None:
    """Whatever a chromosome is called: where its header says what it is, scaffolds and organelles beside it go."""
    headers = [line.partition(" ")[::2] for line in (beside, chromosome)]
    names, titles = zip(*headers, strict=True)
    assert primary(names, titles) == [names[1]]


def test_collections_of_organelles_are_kept_whole() -> None:
    """Some of their accessions are known here and some titles say nothing; neither makes the others chromosomes."""
    accessions = ["NC_012920.1", "NC_005089.1", "NC_001643.1", "NC_002008.4", "NC_001323.1"]
    for names in (accessions, ["NC_002333.2", "NC_002008.4", "NC_001323.1"]):
        assert primary(names) == names
    titles = ["Homo sapiens mitochondrion, complete genome"] * 4 + ["Gallus gallus, complete genome"]
    assert primary(accessions, titles) == accessions
    # Genomes of several species in one file are no such collection.
    genomes = {
        "NC_000001.11": "",
        "NC_000067.7": "Mus musculus chromosome 1",
        "NC_001133.9": "S. cerevisiae chromosome I",
    }
    whole = genomes | dict.fromkeys(["NC_012920.1", "NC_005089.1", "NC_001224.1"], "mitochondrion, complete genome")
    assert primary(whole, whole.values()) == list(genomes)


def test_drafts_are_kept_whole() -> None:
    for names in (
        ["NODE_1_length_9_cov_2", "p1"],
        ["contig_1", "plasmid_A"],
        ["NZ_ABCD01000001.1", "NZ_ABCD01000002.1"],
    ):
        assert primary(names) == names


def test_parse_region() -> None:
    assert parse_region("chr1:1,001-2,000") == Region("chr1", 1001, 2000)
    assert parse_region("g:chr1:7-9") == Region("g:chr1", 7, 9)
    for text in ("chr1", "chr1:", "chr1:5", "chr1:1-", "chr1:1,00-2", "chr1:-5-7x", "HLA-A*01:01"):
        assert parse_region(text) == Region(text, None, None)
