"""`mba prepare apes` on miniature assemblies, from folders and from a local server."""

import functools
import gzip
import hashlib
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna import apes as module
from mamba_bio_audio.pipelines.dna.apes import prepare_species, summary_rows
from mamba_bio_audio.pipelines.dna.assemblies import (
    APES,
    ASSEMBLIES,
    Assembly,
    by_accession,
    find_assembly,
    group_of,
    read_report,
)
from mamba_bio_audio.pipelines.dna.class_splits import assign_splits
from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.homology import check_homology, hold_out, homologous_groups
from mamba_bio_audio.pipelines.dna.label_leaks import leaks_of
from mamba_bio_audio.pipelines.dna.labelled import open_labelled
from mamba_bio_audio.pipelines.dna.prepare_settings import SpeciesSettings
from mamba_bio_audio.pipelines.dna.records import read_records
from mamba_bio_audio.pipelines.reporter import Reporter

COLUMNS = (
    "Sequence-Name\tSequence-Role\tAssigned-Molecule\tAssigned-Molecule-Location/Type\tGenBank-Accn\tRelationship\t"
    "RefSeq-Accn\tAssembly-Unit\tSequence-Length\tUCSC-style-name"
)


def dna(name: str, length: int) -> str:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).choice(np.frombuffer(b"ACGT", np.uint8), length).tobytes().decode()


def miniature(assembly: Assembly, folder: Path, tags: bool = True) -> None:
    """All chromosomes of an assembly in a few hundred bases each, with NCBI's report, a mitochondrion and a scaffold."""
    folder.mkdir(parents=True)
    homologues = {
        c: h for c, h in (assembly.homologues or {}).items() if c not in ("2A", "2B") or "older" in str(assembly)
    }
    if assembly.species == "human" or "older" not in assembly.generations:
        homologues = {c: h for c, h in homologues.items() if c not in ("2A", "2B")}
    elif "2A" in homologues:
        del homologues["2"]
    rows, fasta = [], []
    entries = [(c, "assembled-molecule", c, "Chromosome") for c in homologues]
    entries += [("MT", "assembled-molecule", "MT", "Mitochondrion"), ("s1", "unplaced-scaffold", "na", "na")]
    refseq = assembly.accession.startswith("GCF")
    for number, (name, role, molecule, location) in enumerate(entries):
        sequence = dna(f"{assembly.species}{name}", 200 + 7 * number)
        if name == "1":
            sequence = sequence[:50].lower() + "N" * 10 + sequence[60:]
        accession = f"CM{number:06d}.1"
        tag = (
            f"chr{name}_pat_hsa{homologues[name]}"
            if tags and name in homologues and "t2t" in assembly.generations
            else name
        )
        genbank, ref = (accession, "na") if not refseq else ("na", f"NC_{number:06d}.2")
        rows.append(f"{tag}\t{role}\t{molecule}\t{location}\t{genbank}\t=\t{ref}\tPrimary\t{len(sequence)}\tchr{name}")
        fasta.append(f">{ref if refseq else accession} Some species chromosome {name}\n{sequence}\n")
    key = "RefSeq" if refseq else "GenBank"
    head = f"# Assembly name:  {assembly.name}\r\n# {key} assembly accession: {assembly.accession}\r\n# {COLUMNS}\r\n"
    (folder / f"{assembly.stem}_assembly_report.txt").write_bytes((head + "\r\n".join(rows) + "\r\n").encode())
    (folder / f"{assembly.stem}_genomic.fna.gz").write_bytes(gzip.compress("".join(fasta).encode()))


@pytest.fixture
def t2t(tmp_path) -> Path:
    for species in APES:
        miniature(find_assembly(species, "t2t"), tmp_path / "from" / species)
    return tmp_path / "from"


@pytest.fixture
def server(tmp_path):
    """NCBI's tree of the T2T apes; yields (address, folder, requested paths)."""
    root = tmp_path / "server"
    for species in APES:
        assembly = find_assembly(species, "t2t")
        folder = root / assembly.url("", "").strip("/")
        miniature(assembly, folder)
        sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  ./{path.name}\n" for path in sorted(folder.iterdir())]
        (folder / "md5checksums.txt").write_text("".join(sums))
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}", root, asked
        http_server.shutdown()


def headers(out: Path, species: str) -> dict[str, dict[str, str]]:
    records = read_records(out / species / "chromosomes.fa.gz")
    return {r.name: dict(word.split("=", 1) for word in r.header.split()[1:]) for r in records}


def test_tables_are_complete():
    human = {*map(str, range(1, 23)), "2a", "2b", "17x5", "5x17", "X", "Y"}
    for assembly in ASSEMBLIES:
        if assembly.homologues is None:
            continue
        assert {h.replace("A", "a").replace("B", "b") for h in assembly.homologues.values()} <= human
        groups = {group_of(h) for h in assembly.homologues.values()}
        assert groups == {*map(str, range(1, 23)), "5+17", "X+Y"} - {"5", "17"}, assembly.stem
    assert find_assembly("gorilla", "t2t").homologues["4"] == "17x5"
    assert find_assembly("gorilla", "t2t").homologues["19"] == "5x17"
    assert find_assembly("orangutan", "t2t").homologues["13"] == "9"
    assert find_assembly("bonobo", "t2t").homologues["11"] == "9"


def test_addresses_are_those_of_ncbi():
    human = find_assembly("human", "t2t")
    assert human.url("x.txt") == (
        "https://ftp.ncbi.nlm.nih.gov/genomes/all/GCA/009/914/755/GCA_009914755.4_T2T-CHM13v2.0/x.txt"
    )
    other = find_assembly("cat=GCA_018350175.1_F.catus_Fca126_mat1.0", "t2t")
    assert (other.species, other.accession, other.homologues) == ("cat", "GCA_018350175.1", None)
    assert by_accession("GCF_002880775.1").species == "orangutan"
    with pytest.raises(InputError, match="lemur"):
        find_assembly("lemur", "t2t")
    with pytest.raises(InputError, match="ACCESSION_ASSEMBLY"):
        find_assembly("cat=felis", "t2t")


def test_homologous_groups():
    assert {group_of(x) for x in ("2", "2a", "2B")} == {"2"}
    assert {group_of(x) for x in ("5", "17", "5x17", "17x5")} == {"5+17"}
    assert {group_of(x) for x in ("X", "Y")} == {"X+Y"}
    assert group_of("15") == "15"


def test_from_folders(t2t, tmp_path):
    out = tmp_path / "out"
    manifest = prepare_species(out, source=t2t)
    assert set(manifest["species"]) == set(APES)
    gorilla, human = headers(out, "gorilla"), headers(out, "human")
    # Gorilla's 4 and 19 hold parts of human 5 and 17, and all four are held out together.
    for row in (gorilla["chr4"], gorilla["chr19"], human["chr5"], human["chr17"]):
        assert (row["group"], row["split"]) == ("5+17", "test")
    assert gorilla["chr5"] == {
        "species": "gorilla",
        "split": "train",
        "group": "6",
        "source": gorilla["chr5"]["source"],
    }
    assert (headers(out, "orangutan")["chr13"]["group"], headers(out, "bonobo")["chr11"]["group"]) == ("9", "9")
    assert "chrMT" not in human
    assert len(human) == 24
    row = manifest["species"]["human"]
    assert (row["left_out_records"], row["chromosomes"]["1"]["bases"]) == (2, 200)
    assert row["unknown_percent"] > 0
    assert row["lower_case_percent"] > 0
    # Case is gone, everything else is as it was.
    genome = Genome(str(out / "human" / "chromosomes.fa.gz"))
    assert genome.statistics("chr1").counts["lower"] == 0
    assert genome.codec.decode(genome.fetch("chr1", 0, 50)) == dna("human1", 200)[:50]
    rows = [line.split("\t") for line in (out / "groups.tsv").read_text().splitlines()]
    assert rows[0] == ["class", "record", "group"]
    assert ["gorilla", "chr19", "5+17"] in rows
    assert any("test groups" in what and "5+17" in value for what, value in summary_rows(manifest))
    assert json.loads((out / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    with pytest.raises(InputError, match="--force"):
        prepare_species(out, source=t2t)


def test_no_homologous_group_is_in_two_splits(t2t, tmp_path):
    out = tmp_path / "out"
    prepare_species(out, SpeciesSettings(valid="2", test="17,8"), source=t2t)
    found: dict[str, set[str]] = {}
    for species in APES:
        for row in headers(out, species).values():
            found.setdefault(row["group"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in found.values())
    assert {group for group, splits in found.items() if splits != {"train"}} == {"2", "5+17", "8"}


def test_equal_number_split_is_refused_in_words_and_as_a_table(t2t, tmp_path):
    with pytest.raises(InputError, match="chimpanzee 5 is human 6"):
        prepare_species(tmp_path / "out", SpeciesSettings(split="numbers"), source=t2t)
    lines = ["class\trecord\tsplit"]
    for species in APES:
        for chromosome in find_assembly(species, "t2t").homologues:
            held = {"1": "val", "3": "val", "5": "test", "7": "test"}.get(chromosome, "train")
            lines.append(f"{species}\tchr{chromosome}\t{held}")
    table = tmp_path / "splits.tsv"
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"homologous group .* would be tested on loci"):
        prepare_species(tmp_path / "out", SpeciesSettings(split=str(table)), source=t2t)
    assert not (tmp_path / "out").exists()
    # The published split leaks even by human numbers: 5 is tested on, 17 trained on.
    keys = {(s, c): h for s in APES for c, h in find_assembly(s, "t2t").homologues.items()}
    groups = homologous_groups(keys)
    splits = {key: "test" if key[1] in ("5",) and key[0] == "human" else "train" for key in groups}
    with pytest.raises(InputError, match=r"5\+17"):
        check_homology(splits, groups)
    check_homology(hold_out(groups, ["1"], ["5"]), groups)


def test_a_group_goes_to_one_split(t2t, tmp_path):
    with pytest.raises(InputError, match="already held out for valid"):
        prepare_species(tmp_path / "out", SpeciesSettings(valid="5", test="17"), source=t2t)
    with pytest.raises(InputError, match="no such group"):
        prepare_species(tmp_path / "out", SpeciesSettings(test="99"), source=t2t)


def test_generations_are_not_mixed(t2t, tmp_path):
    miniature(find_assembly("human", "older"), tmp_path / "mixed" / "human")
    (tmp_path / "mixed" / "gorilla").symlink_to(t2t / "gorilla")
    with pytest.raises(InputError, match="different generations"):
        prepare_species(tmp_path / "out", source=tmp_path / "mixed")
    manifest = prepare_species(tmp_path / "out", SpeciesSettings(mix_generations=True), source=tmp_path / "mixed")
    assert manifest["mixed_generations"]
    assert manifest["species"]["human"]["generations"] == ["older"]


def test_older_assemblies_have_2a_and_2b_in_one_group(tmp_path):
    for species in ("human", "chimpanzee", "gorilla"):
        miniature(find_assembly(species, "older"), tmp_path / "from" / species)
    prepare_species(tmp_path / "out", SpeciesSettings(test="2"), source=tmp_path / "from")
    chimpanzee = headers(tmp_path / "out", "chimpanzee")
    assert {chimpanzee[name]["split"] for name in ("chr2A", "chr2B")} == {"test"}
    assert headers(tmp_path / "out", "human")["chr2"]["split"] == "test"


def test_downloads_are_verified_and_resume(server, tmp_path, monkeypatch):
    address, root, asked = server
    out = tmp_path / "out"
    real = module._convert

    def interrupted(item, *rest):
        if item.species == "bonobo":
            raise KeyboardInterrupt
        return real(item, *rest)

    monkeypatch.setattr(module, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_species(out, url=address)
    assert not (out / "manifest.json").exists()
    monkeypatch.setattr(module, "_convert", real)
    asked.clear()
    said: list[str] = []
    monkeypatch.setattr(Reporter, "note", lambda self, text: said.append(text))
    manifest = prepare_species(out, url=address)
    assert asked == []
    assert "human: already converted" in said
    assert "bonobo: already converted" not in said
    source = manifest["species"]["human"]["sources"][-1]
    assert list(source["checked"]) == ["md5", "gzip"]
    assert source["url"].startswith(address)
    assert (tmp_path / "out.downloads").is_dir()
    # The same from folders of the same files.
    other = prepare_species(tmp_path / "other", source=_as_folders(root, tmp_path / "from"))
    assert other["species"]["gorilla"]["sha256"] == manifest["species"]["gorilla"]["sha256"]


def _as_folders(root: Path, folder: Path) -> Path:
    folder.mkdir()
    for species in APES:
        (folder / species).symlink_to(root / find_assembly(species, "t2t").url("", "").strip("/"))
    return folder


def test_a_mirror_without_hashes_is_accepted_and_a_wrong_hash_is_not(server, tmp_path, monkeypatch):
    address, root, _ = server
    for path in root.rglob("md5checksums.txt"):
        if "bonobo" not in str(path):
            path.unlink()
    said: list[str] = []
    monkeypatch.setattr(Reporter, "note", lambda self, text: said.append(text))
    manifest = prepare_species(tmp_path / "out", SpeciesSettings(species=("human", "bonobo")), url=address)
    assert any("recorded but not checked" in text for text in said)
    assert manifest["species"]["human"]["sources"][-1]["sha256"]
    bonobo = find_assembly("bonobo", "t2t")
    folder = root / bonobo.url("", "").strip("/")
    name = f"{bonobo.stem}_genomic.fna.gz"
    (folder / "md5checksums.txt").write_text(f"{'0' * 32}  ./{name}\n")
    with pytest.raises(RuntimeError, match="published"):
        prepare_species(tmp_path / "again", SpeciesSettings(species=("human", "bonobo")), url=address)


def test_command_line_any_species_and_regions(server, tmp_path, capsys):
    address, _, _ = server
    bed = tmp_path / "human.bed"
    bed.write_text("track name=x\nchr1\t10\t60\tct\nCM000001.1\t0\t5\nchrUn_s1\t0\t9\n")
    arguments = ["prepare", "apes", "--out", str(tmp_path / "out"), "--url", address, "--species", "human"]
    with pytest.raises(SystemExit) as stop:
        command([*arguments, "--species", "chimpanzee", "--regions", f"human={bed}"])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "chimpanzee" in text
    assert "next: mba classify dna/species" in text
    assert (tmp_path / "out" / "regions.tsv").read_text().splitlines() == [
        "class\trecord\tstart0\tend",
        "human\tchr1\t10\t60",
        "human\tchr2\t0\t5",
    ]
    with pytest.raises(SystemExit) as stop:
        command([*arguments[:-1], "human", "--species", "gorilla", "--split", "numbers", "--force"])
    assert stop.value.code == 2
    assert "refused" in capsys.readouterr().err
    # What an earlier run left would become a class.
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(InputError, match="unfinished run left this species"):
        prepare_species(tmp_path / "out", SpeciesSettings(species=("human", "gorilla")), url=address)
    prepare_species(tmp_path / "out", SpeciesSettings(species=("human", "gorilla")), url=address, force=True)
    assert not (tmp_path / "out" / "chimpanzee").exists()


def test_species_without_known_homologues(tmp_path):
    """HyenaDNA's layout: chr1.fna with one record of any name, no report."""
    for species in ("cat", "dog"):
        (tmp_path / "from" / species).mkdir(parents=True)
        for number in range(1, 7):
            path = tmp_path / "from" / species / f"chr{number}.fna"
            path.write_text(f">NC_{number}.1 x\n{dna(f'{species}{number}', 90)}\n")
    with pytest.raises(InputError, match="homologues are unknown"):
        prepare_species(tmp_path / "out", source=tmp_path / "from")
    manifest = prepare_species(tmp_path / "a", SpeciesSettings(unknown_homology=True), source=tmp_path / "from")
    assert headers(tmp_path / "a", "cat")["chr5"]["split"] == "test"
    assert manifest["unknown_homology"]
    table = tmp_path / "groups.tsv"
    rows = [f"{s}\tchr{n}\t{chr(64 + n)}" for s in ("cat", "dog") for n in range(1, 7)]
    table.write_text("class\trecord\tgroup\n" + "\n".join(rows) + "\n")
    prepare_species(tmp_path / "b", SpeciesSettings(groups=table, valid="A", test="B"), source=tmp_path / "from")
    assert [headers(tmp_path / "b", s)["chr2"]["split"] for s in ("cat", "dog")] == ["test", "test"]


def test_report_is_checked_against_table_and_files(t2t, tmp_path):
    def damaged(species: str, old: str, new: str) -> None:
        path = next((t2t / species).glob("*report.txt"))
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    damaged("gorilla", "chr4_pat_hsa17x5", "chr4_pat_hsa5")
    with pytest.raises(InputError, match="chromosome 4 is human 5, but the table"):
        prepare_species(tmp_path / "out", source=t2t)
    damaged("gorilla", "chr4_pat_hsa5", "chr4_pat_hsa17x5")
    damaged("human", "CM000002.1\t=\tna\tPrimary\t214", "CM000002.1\t=\tna\tPrimary\t999")
    with pytest.raises(InputError, match="214 bases, but 999 in the report"):
        prepare_species(tmp_path / "out", source=t2t)
    damaged("human", "CM000002.1\t=\tna\tPrimary\t999", "CM009999.1\t=\tna\tPrimary\t214")
    with pytest.raises(InputError, match=r"'CM000002.1' is not in"):
        prepare_species(tmp_path / "out", source=t2t)
    assert not list((tmp_path / "out").glob("human/*.gz"))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "give an NCBI assembly report"),
        ("1\tassembled-molecule\n", "line 1"),
        (f"# {COLUMNS}\nchr1\tx\n", "line 2: 2 columns instead of 10"),
        (f"# {COLUMNS}\n" + "\t".join(["a"] * 8 + ["many", "b"]) + "\n", "line 2"),
    ],
)
def test_wrong_reports_are_named(tmp_path, text, fault):
    path = tmp_path / "x_assembly_report.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=fault):
        read_report(path)


def test_the_prepared_folder_is_labelled_data_with_its_splits(t2t, tmp_path):
    prepare_species(tmp_path / "out", source=t2t)
    config = DnaClassesConfig(path=str(tmp_path / "out"))
    labelled = open_labelled(config)
    assert labelled.classes == tuple(sorted(APES))
    assign_splits(labelled, config, 64)
    assert labelled.origin == "split= in the FASTA headers"
    by_name = {(labelled.classes[r.label], r.record): r for r in labelled.regions}
    assert (by_name["gorilla", "chr19"].split, by_name["gorilla", "chr19"].locus) == ("test", "5+17")
    assert {r.split for r in labelled.regions} == {"train", "valid", "test"}
    # Case and names are gone as marks.
    telling = {leak.feature for leak in leaks_of(labelled) if leak.predictive}
    assert not telling & {"share of lower case", "pattern of record names"}
