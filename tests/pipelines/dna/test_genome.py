import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.genome import Genome, genome_name


def test_records_of_one_file_and_of_several(write_fasta, random_dna, tmp_path: Path) -> None:
    first = write_fasta("one.fa", {"chr1": "ACGT", "chr2": "AC"})
    second = write_fasta("two.fna.gz", {"chr1": "TTTTT"})
    assert Genome(first).records == {"chr1": 4, "chr2": 2}
    assert repr(Genome(first)) == "Genome(1 files, 2 records, 6 bases)"
    expected = {"one:chr1": 4, "one:chr2": 2, "two:chr1": 5}
    for paths in ([first, second], tmp_path, [tmp_path]):
        genome = Genome(paths)
        assert genome.records == expected
        assert list(genome.records) == list(expected)
        assert genome.genomes == ["one", "two"]
        assert genome.codec.decode(genome.fetch("two:chr1", 1, 3)) == "TT"
        assert genome.genome_of("two:chr1") == 1
        assert genome.bare_name("two:chr1") == "chr1"


def test_equal_genome_names_are_refused(write_fasta) -> None:
    paths = [write_fasta("a/x.fa", {"r": "ACGT"}), write_fasta("b/x.fa.gz", {"r": "ACGT"})]
    with pytest.raises(InputError, match="genome name 'x'"):
        Genome(paths)
    with pytest.raises(InputError, match="given twice"):
        Genome([paths[0], paths[0]])


def test_paths_that_are_no_genome(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        Genome(tmp_path / "none.fa")
    with pytest.raises(InputError, match="no FASTA file in this folder"):
        Genome(tmp_path)
    with pytest.raises(InputError, match="no FASTA file was given"):
        Genome([])


def test_genome_name() -> None:
    names = ["a.fa", "a.b.FASTA.gz", "a.fna.bgz", "a.txt", ".fa"]
    assert [genome_name(f"/x/{name}") for name in names] == ["a", "a.b", "a", "a.txt", ".fa"]


@pytest.mark.parametrize("name", ["x.fa", "x.fa.gz", "x.2bit"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_fetch_every_span_of_a_small_record(name: str, newline: str, write_fasta, random_dna) -> None:
    first, second = random_dna(41, 1, "ACGTNacgtR"), random_dna(20, 2)
    genome = Genome(write_fasta(name, {"a": first, "b": second}, width=10, newline=newline))
    for record, sequence in (("a", first), ("b", second)):
        ids = genome.codec.encode(sequence)
        for start in range(len(sequence) + 1):
            for end in range(start, len(sequence) + 1):
                assert (genome.fetch(record, start, end) == ids[start:end]).all()


@pytest.mark.parametrize("span", [(-1, 2), (3, 2), (0, 5), (5, 5)])
def test_fetch_outside_is_refused(span: tuple[int, int], write_fasta) -> None:
    genome = Genome(write_fasta("x.fa", {"a": "ACGT"}))
    with pytest.raises(InputError, match="record 'a' has 4 bases"):
        genome.fetch("a", *span)


def test_fetch_at_the_edges_of_full_bgzf_blocks(write_fasta, random_dna) -> None:
    # Biopython writes blocks of 65,536 bytes, whose end pyfaidx alone cannot address.
    sequence = random_dna(400_000)
    genome = Genome(write_fasta("x.fa.gz", {"a": sequence}, width=1 << 20))
    header = len(">a a description\n")
    for edge in range(65_536, 400_000, 65_536):
        for start in range(edge - header - 2, edge - header + 3):
            assert genome.codec.decode(genome.fetch("a", start, start + 100)) == sequence[start : start + 100]
    assert genome.codec.decode(genome.fetch("a", 0, len(sequence))) == sequence


def test_fetch_in_pieces(write_fasta, random_dna, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = random_dna(1000)
    genome = Genome(write_fasta("x.fa", {"a": sequence}))
    monkeypatch.setattr("mamba_bio_audio.pipelines.dna.genome.PIECE_BASES", 64)
    assert genome.codec.decode(genome.fetch("a", 3, 999)) == sequence[3:999]


def test_more_files_than_open_handles(write_fasta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mamba_bio_audio.pipelines.dna.genome.MAX_OPEN_FILES", 2)
    for index, letter in enumerate("ACGTA"):
        write_fasta(f"f/{index}.fa", {"r": letter * 5})
    genome = Genome(tmp_path / "f")
    for _ in range(2):
        for index, letter in enumerate("ACGTA"):
            assert genome.codec.decode(genome.fetch(f"{index}:r", 0, 5)) == letter * 5


def test_file_changed_after_indexing(write_fasta) -> None:
    path = write_fasta("x.fa", {"a": "ACGT"})
    genome = Genome(path)
    Path(path).write_bytes(b">a\nACGTACGT\n")
    with pytest.raises(InputError, match="changed since it was indexed"):
        genome.fetch("a", 0, 4)


def test_resolve(write_fasta) -> None:
    genome = Genome(
        [
            write_fasta("h.fa.gz", {"chr1": "ACGT", "chr3:42-44": "ACG", "chrM": "AC"}),
            write_fasta("m.fa", {"chr1": "TTTTT", "scaffold": "A"}),
        ]
    )
    assert genome.resolve("h:chr1") == "h:chr1"
    assert genome.resolve("scaffold") == "m:scaffold"
    assert genome.resolve("chr3:42-44") == "h:chr3:42-44"
    for file in ("h.fa.gz", "h", "/elsewhere/h.fa.gz"):
        assert genome.resolve("chr1", file) == "h:chr1"
    with pytest.raises(InputError, match="in several files.*; write one of 'h:chr1', 'm:chr1'"):
        genome.resolve("chr1")
    assert genome.resolve("1", "h") == genome.resolve("h:NC_000001.11") == "h:chr1"
    assert genome.resolve("MT") == genome.resolve("NC_012920.1") == "h:chrM"
    assert genome.aliases == {"1": "h:chr1", "NC_000001.11": "h:chr1", "MT": "h:chrM", "NC_012920.1": "h:chrM"}
    with pytest.raises(InputError, match="in several files or has several names; write one of 'h:chr1', 'm:chr1'"):
        genome.resolve("1")
    with pytest.raises(InputError, match=r"no FASTA file 'z.fa' among those given; choose one of 'h.fa.gz', 'm.fa'"):
        genome.resolve("chr1", "z.fa")
    with pytest.raises(InputError, match="did you mean 'scaffold'"):
        genome.resolve("scafold")


def test_resolve_in_one_file(write_fasta) -> None:
    genome = Genome(write_fasta("ens.fa", {"1": "ACGT", "MT": "ACG"}))
    assert genome.resolve("1") == genome.resolve("ens:1") == genome.resolve("1", "ens.fa") == "1"
    assert genome.resolve("chr1") == genome.resolve("CM000663.2") == "1"
    assert genome.resolve("chrM") == "MT"
    with pytest.raises(InputError, match=r"no record 'chr2' in .*choose one of '1', 'MT'"):
        genome.resolve("chr2")


def test_an_accession_of_another_assembly_is_no_alias(write_fasta) -> None:
    genome = Genome(write_fasta("g38.fa", {"NC_000001.11": "ACGT", "NC_000007.14": "ACGTA"}))
    assert genome.resolve("chr1") == genome.resolve("1") == genome.resolve("CM000663.2") == "NC_000001.11"
    with pytest.raises(InputError, match=r"chromosome 1 of GRCh37, but the file has 'NC_000001.11'.*another assembly"):
        genome.resolve("NC_000001.10")
    with pytest.raises(InputError, match="chromosome 7 of GRCh37"):
        genome.resolve("CM000669.1")


@given(
    st.lists(st.tuples(st.sampled_from("ACGTNRacgtn-"), st.integers(1, 9)), min_size=1, max_size=20),
    st.data(),
)
def test_unknown_bases_of_any_span(runs: list[tuple[str, int]], data: st.DataObject) -> None:
    import tempfile

    sequence = "".join(letter * count for letter, count in runs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.fa"
        path.write_text(f">a\n{sequence}\n")
        genome = Genome(path)
    edges = st.integers(0, len(sequence))
    spans = [tuple(sorted(pair)) for pair in data.draw(st.lists(st.tuples(edges, edges), min_size=1))]
    expected = [sum(letter.upper() not in "ACGT" for letter in sequence[start:end]) for start, end in spans]
    starts, ends = zip(*spans, strict=True)
    assert genome.count_unknown("a", starts, ends).tolist() == expected
    assert int(genome.count_unknown("a", *spans[0])) == expected[0]


def test_scan_and_fingerprint(write_fasta) -> None:
    import hashlib

    path = write_fasta("x.fa.gz", {"a": "ACGTacgtNNRyNA", "b": "CCC"}, width=5)
    genome = Genome(path)
    statistics = genome.scan()
    assert list(statistics) == ["a", "b"]
    assert statistics["a"].counts == {"A": 3, "C": 2, "G": 2, "T": 2, "N": 3, "other": 2, "lower": 5}
    assert statistics["a"].unknown == 5
    assert (statistics["a"].run_starts.tolist(), statistics["a"].run_ends.tolist()) == ([8], [13])
    assert statistics["b"].unknown == 0
    (fingerprint,) = genome.fingerprint()
    contents = Path(path).read_bytes()
    assert (fingerprint.name, fingerprint.size_bytes) == ("x.fa.gz", len(contents))
    assert fingerprint.sha256 == hashlib.sha256(contents).hexdigest()
    assert genome.contents() == [{"name": "x.fa.gz", "sha256": fingerprint.sha256}]


def test_pickle_carries_no_handle(write_fasta) -> None:
    genome = Genome(write_fasta("x.fa", {"a": "ACGT"}))
    genome.fetch("a", 0, 4)
    copy = pickle.loads(pickle.dumps(genome))
    assert copy.records == genome.records
    assert copy.codec.decode(copy.fetch("a", 1, 4)) == "CGT"


def test_threads_read_the_truth(write_fasta, random_dna) -> None:
    sequence = random_dna(300_000)
    genome = Genome(write_fasta("x.fa", {"a": sequence}))
    truth = genome.codec.encode(sequence)
    wrong = []

    def read(seed: int) -> None:
        for start in np.random.default_rng(seed).integers(0, 299_000, 500).tolist():
            if not (genome.fetch("a", start, start + 1000) == truth[start : start + 1000]).all():
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_lower_case_is_told_apart(write_fasta) -> None:
    genome = Genome(write_fasta("g.fa", {"a": "ACgtnN" * 20, "b": "acgt"}, width=7))
    assert genome.lower_case("a", 0, 12).tolist() == [False, False, True, True, True, False] * 2
    assert genome.lower_case("a", 10, 14).tolist() == [True, False, False, False]
    assert genome.lower_case("b", 2, 2).tolist() == []


@pytest.mark.parametrize("name", ["tab\t.fa", "two\nlines.fa", "separator\u2028.fa", "byte\udcff.fa"])
def test_names_that_no_table_can_hold_are_refused(name, tmp_path):
    path = tmp_path / name
    path.write_text(">one\nACGT\n")
    with pytest.raises(InputError, match="rename the file"):
        Genome([str(path)])


@pytest.mark.parametrize("name", ["josé.fa", "red\x1b[31m.fa", "=1.fa", "a b.fa"])
def test_other_names_are_read(name, tmp_path):
    path = tmp_path / name
    path.write_text(">one\nACGT\n")
    assert list(Genome([str(path)]).records) == ["one"]
