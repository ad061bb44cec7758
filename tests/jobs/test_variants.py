"""`mba variants`: every record comes back in its place, scored or with the reason why not."""

import gzip
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.inference import variant_table
from mamba_bio_audio.inference.variants import WINDOW, score_variants
from mamba_bio_audio.jobs.variants import VariantsOptions, VariantsResult
from mamba_bio_audio.models.isotropic import IsotropicModel
from mamba_bio_audio.models.weights import weights_hash
from mamba_bio_audio.pipelines.dna import vcf
from mamba_bio_audio.pipelines.dna.tokenizer import DnaTokenizer
from mamba_bio_audio.run import saved
from mamba_bio_audio.run.config import load_config


def mba(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def dna(length: int, seed: int = 0) -> str:
    return np.random.default_rng(seed).choice(np.frombuffer(b"ACGT", np.uint8), length).tobytes().decode()


ONE, TWO = dna(600, 1), dna(300, 2)
HEADER = (
    "##fileformat=VCFv4.2\n##source=by hand\n##contig=<ID=one>\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tann\n"
)


def other(base: str) -> str:
    return "ACGT"["ACGT".index(base) - 1]


def record(contig: str, at: int, reference: str, alternative: str, info: str = ".") -> str:
    """A line; `at` counts from 0."""
    return f"{contig}\t{at + 1}\trs{at}\t{reference}\t{alternative}\t50.00\tPASS\t{info}\tGT\t0/1\n"


def snv(contig: str, at: int, info: str = ".") -> str:
    base = {"one": ONE, "two": TWO}[contig][at]
    return record(contig, at, base, other(base), info)


@pytest.fixture(autouse=True)
def model(monkeypatch) -> IsotropicModel:
    """A language model with random weights, trained at 64 bases."""
    settings = [
        "data.path=demo",
        "train.length=64",
        "model.d_model=8",
        "model.num_layers=1",
        "train.tokens_per_step=512",
    ]
    config = load_config("dna/tiny", settings)
    torch.manual_seed(0)
    made = IsotropicModel(config.model.model_copy(update={"vocab_size": DnaTokenizer.vocab_size})).eval()
    made.config, made.codec = config, DnaTokenizer()
    monkeypatch.setattr(saved, "load", lambda run, which="best": made)
    return made


@pytest.fixture
def genome(tmp_path):
    path = tmp_path / "ref.fa"
    path.write_text(f">one\n{ONE}\n>two\n{TWO}\n")
    return path


@pytest.fixture
def scored(tmp_path, genome, capsys):
    """Runs the command on lines and returns (header lines, record lines, summary)."""

    def score(lines: str, *options: object, expect: int = 0, name: str = "calls.vcf"):
        calls, out = tmp_path / name, tmp_path / "scored.vcf"
        calls.write_text(HEADER + lines)
        out.unlink(missing_ok=True)
        assert mba("variants", "run", calls, "--genome", genome, "--out", out, "--json", *options) == expect
        text = out.read_text().splitlines()
        found = capsys.readouterr()
        summary = json.loads(found.out)
        summary["stderr"] = found.err
        return [line for line in text if line[0:1] == "#"], [line for line in text if line[0:1] != "#"], summary

    return score


def info(line: str) -> dict[str, str]:
    return dict(part.partition("=")[::2] for part in line.split("\t")[7].split(";"))


def test_every_record_comes_back_in_order_with_its_scores(scored, model, genome):
    """Contigs interleaved and unsorted; all else of each line is as it was."""
    places = [("two", 200), ("one", 500), ("two", 20), ("one", 100), ("one", 101), ("two", 21)]
    lines = [snv(contig, at, "DP=10;AF=0.500") for contig, at in places]
    header, records, summary = scored("".join(lines), "--window", 16)
    assert [line.split("\t")[:7] for line in records] == [line.split("\t")[:7] for line in lines]
    assert [line.split("\t")[8:] for line in records] == [["GT", "0/1"]] * 6
    assert all(line.split("\t")[7].startswith("DP=10;AF=0.500;MBA_LLR=") for line in records)
    assert (summary["records"], summary["alleles"], summary["scored"], summary["not_scored"]) == (6, 6, 6, {})
    variants = [(contig, at, *line.split("\t")[3:5]) for (contig, at), line in zip(places, lines, strict=True)]
    expected = score_variants(model, genome, variants, context=64, window=16)
    for line, score in zip(records, expected, strict=True):
        found = info(line)
        assert float(found["MBA_LLR"]) == pytest.approx(score.ratio, abs=1e-5)
        for short, strand in (("FWD", score.forward), ("REV", score.reverse)):
            assert float(found[f"MBA_LLR_{short}"]) == pytest.approx(strand.ratio, abs=1e-5)
            assert int(found[f"MBA_BASES_{short}"]) == strand.bases == 16
            assert int(found[f"MBA_CONTEXT_{short}"]) == strand.context
        assert "MBA_WHY" not in found
    assert summary["median_ratio"] == pytest.approx(np.median([abs(score.ratio) for score in expected]))
    # The old header, then ours, then the columns.
    assert header[:3] == HEADER.splitlines()[:3]
    assert header[-1] == HEADER.splitlines()[-1]
    declared = {line.split(",")[0] for line in header if line.startswith("##INFO")}
    assert declared == {f"##INFO=<ID={key}" for key in (*found, "MBA_WHY") if key.startswith("MBA")}
    assert any("research use only" in line for line in header)
    assert any(f'weights_sha256="{weights_hash(model)}"' in line and 'context="64"' in line for line in header)


def test_alleles_of_one_record_have_a_score_or_a_reason_each(scored):
    base = ONE[100]
    first, second = [b for b in "ACGT" if b != base][:2]
    lines = [
        record("one", 100, base, f"{first},<DEL>,{second},*,{base}TT"),
        record("one", 100, base, "."),
        record("one", 100, base, "<NON_REF>", "DB"),
        record("one", 100, base, f"{base}[two:5["),
        record("one", 0, ONE[0], other(ONE[0])),
    ]
    _, (many, none, symbolic, breakend, edge), summary = scored("".join(lines))
    found = info(many)
    assert found["MBA_WHY"] == ".,symbolic,.,overlapping_deletion,."
    for key in ("MBA_LLR", "MBA_LLR_FWD", "MBA_LLR_REV", "MBA_BASES_FWD", "MBA_CONTEXT_REV"):
        assert [value == "." for value in found[key].split(",")] == [False, True, False, True, False]
    assert info(none) == {"MBA_WHY": "no_alternative"}
    assert info(symbolic) == {"DB": "", "MBA_WHY": "symbolic"}
    assert info(breakend) == {"MBA_WHY": "breakend"}
    assert info(edge)["MBA_WHY"] == "first_base"
    assert "MBA_LLR" not in info(edge)
    assert "MBA_LLR_REV" in info(edge)
    expected = {"no_alternative": 1, "overlapping_deletion": 1, "symbolic": 2, "breakend": 1, "first_base": 1}
    assert summary["not_scored"] == expected
    assert (summary["records"], summary["alleles"], summary["scored"]) == (5, 9, 3)


def test_what_does_not_fit_the_genome_is_flagged_counted_and_named_once(scored):
    wrong = [record("one", at, other(ONE[at]), ONE[at]) for at in (10, 20, 30)]
    lines = [
        snv("one", 5),
        *wrong,
        record("chr7", 50, "A", "C"),
        record("two", 299, TWO[-1] + "AA", "A"),
        record("two", -1, "A", "C"),
    ]
    _, records, summary = scored("".join(lines))
    assert len(records) == len(lines)
    whys = [info(line).get("MBA_WHY") for line in records]
    assert whys == [None, *["reference_mismatch"] * 3, "unknown_contig", "outside_record", "outside_record"]
    assert summary["not_scored"] == {"unknown_contig": 1, "outside_record": 2, "reference_mismatch": 3}
    messages = summary["messages"]
    assert len(messages) == 3
    assert "calls.vcf, line 9 (chr7:51 A>C): no record 'chr7'" in messages[0]
    assert "line 10" in messages[1]
    assert "two has 300 bases" in messages[1]
    assert "line 6 (one:11 " in messages[2]
    assert f"the genome has {ONE[10]}" in messages[2]
    assert all(message in summary["stderr"] for message in messages)


def test_one_of_anything_is_no_plural():
    found = VariantsResult(records=1, alleles=1, not_scored={"unknown_contig": 1}, malformed=1)
    for line in (
        "1 record, 1 allele, 0 scored",
        "1 allele not scored: 1 x unknown_contig",
        "1 line is no record and was kept as it is",
    ):
        assert line in found.text().splitlines()
    assert "2 lines are no records and were kept as they are" in VariantsResult(malformed=2).text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("one\t5\t.\tA\n", "4 columns separated by tabs, but the header names 10"),
        ("one 5 . A C . . . GT 0/1\n", "1 columns"),
        (record("one", 4, "A", "C").replace("\t5\t", "\tfive\t"), "POS is 'five'"),
        (record("one", 4, "", "C"), "REF is empty"),
        ("##INFO=<ID=DP>\n", "a line of a header among the records"),
    ],
)
def test_a_malformed_line_is_named_and_kept_and_the_command_fails(scored, line, message):
    _, records, summary = scored(snv("one", 50) + line + snv("one", 60), expect=1)
    assert summary["malformed"] == 1
    assert "calls.vcf, line 6" in summary["messages"][0]
    assert message in summary["messages"][0]
    assert summary["scored"] == 2
    kept = [*records] if line[0] != "#" else [records[0], line.rstrip("\n"), records[1]]
    assert kept[1] == line.rstrip("\n")
    assert all("MBA_LLR" in info(kept[at]) for at in (0, 2))


def test_a_last_line_cut_short_and_blank_lines(scored):
    _, records, summary = scored(snv("one", 50) + "\n" + snv("one", 60).rstrip("\n"))
    assert (summary["scored"], summary["malformed"]) == (2, 0)
    assert records[1] == ""
    # A blank line has no columns to add to.
    assert [bool(line) for line in records] == [True, False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1\t5\t.\tA\tC\n", "first line"),
        ("", "no line #CHROM"),
        ("##fileformat=VCFv4.2\n", "no line #CHROM"),
        ("##fileformat=VCFv4.2\none\t5\t.\tA\tC\t.\t.\t.\n", "line 2: a record before the line #CHROM"),
        ("##fileformat=VCFv4.2\n#CHROM POS ID\n", "separated by tabs"),
        (HEADER.replace("##source", "##INFO=<ID=MBA_LLR,Number=A>\n##source"), "already"),
    ],
)
def test_a_file_without_a_sound_header_is_refused(tmp_path, genome, capsys, text, message):
    (tmp_path / "bad.vcf").write_text(text)
    assert mba("variants", "run", tmp_path / "bad.vcf", "--genome", genome, "--out", tmp_path / "x.vcf") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.vcf").exists()


def test_bgzip_bcf_and_standard_streams_give_the_same_records(tmp_path, genome, capsys, monkeypatch):
    pysam = pytest.importorskip("pysam")
    text = HEADER.replace(
        "##contig=<ID=one>\n",
        '##contig=<ID=one,length=600>\n##contig=<ID=two,length=300>\n##FILTER=<ID=q,Description="q">\n'
        '##INFO=<ID=DP,Number=1,Type=Integer,Description="d">\n##FORMAT=<ID=GT,Number=1,Type=String,Description="g">\n',
    )
    text += "".join(snv(contig, at, "DP=7") for contig, at in (("one", 40), ("one", 90), ("two", 30)))
    plain = tmp_path / "calls.vcf"
    plain.write_text(text)
    assert mba("variants", "run", plain, "--genome", genome, "--out", tmp_path / "a.vcf") == 0
    expected = (tmp_path / "a.vcf").read_text().splitlines()
    packed = tmp_path / "calls.vcf.gz"
    pysam.tabix_compress(str(plain), str(packed))
    assert mba("variants", "run", packed, "--genome", genome, "--out", tmp_path / "b.vcf.gz") == 0
    assert gzip.decompress((tmp_path / "b.vcf.gz").read_bytes()).decode().splitlines() == expected
    with pysam.VariantFile(str(tmp_path / "b.vcf.gz")) as file:
        assert len([record.info["MBA_LLR"] for record in file]) == 3
    # An index needs blocks, which ordinary gzip has not.
    pysam.tabix_index(str(tmp_path / "b.vcf.gz"), preset="vcf")
    with (
        pysam.VariantFile(str(plain)) as file,
        pysam.VariantFile(str(tmp_path / "calls.bcf"), "wb", header=file.header) as to,
    ):
        for one in file:
            to.write(one)
    assert mba("variants", "run", tmp_path / "calls.bcf", "--genome", genome, "--out", tmp_path / "c.bcf") == 0
    with pysam.VariantFile(str(tmp_path / "c.bcf")) as file:
        values = [record.info["MBA_LLR"][0] for record in file]
    own = [float(info(line)["MBA_LLR"]) for line in expected if line[0] != "#"]
    assert values == pytest.approx(own, abs=1e-5)
    capsys.readouterr()
    for data in (plain.read_bytes(), packed.read_bytes()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
        assert mba("variants", "run", "-", "--genome", genome) == 0
        found = capsys.readouterr()
        assert found.out.splitlines() == expected
        assert "3 records, 3 alleles, 3 scored" in found.err


def test_bcf_of_calls_that_declare_nothing_and_of_symbolic_alleles(tmp_path, genome, capsys):
    pysam = pytest.importorskip("pysam")
    lines = [snv("one", 40, "XX=3;YY"), snv("two", 30)]
    fields = lines[0].split("\t")
    fields[4] = "<DEL>"
    lines.append("\t".join(fields))
    bare = "".join(line for line in HEADER.splitlines(keepends=True) if not line.startswith("##contig"))
    calls, out = tmp_path / "calls.vcf", tmp_path / "scored.bcf"
    calls.write_text(bare + "".join(lines))
    assert mba("variants", "run", calls, "--genome", genome, "--out", out) == 0
    with pysam.VariantFile(str(out)) as file:
        records = list(file)
    assert [(one.chrom, one.pos, one.alts[0]) for one in records] == [
        (line.split("\t")[0], int(line.split("\t")[1]), line.split("\t")[4]) for line in lines
    ]
    # Nothing is added but the scores.
    assert set(records[2].info) == {"XX", "YY", "MBA_WHY"}
    assert not list(tmp_path.glob("*.part"))
    capsys.readouterr()
    calls.write_text(bare + lines[0] + "one\tx\t.\tA\tC\t.\t.\t.\n")
    assert mba("variants", "run", calls, "--genome", genome, "--out", tmp_path / "b.bcf") == 2
    shown = capsys.readouterr().err
    assert "line 5 (one x . A C)" in shown
    assert ".vcf.gz" in shown
    assert not list(tmp_path.glob("b.bcf*"))


def test_a_region_is_read_through_the_index(tmp_path, genome, capsys):
    pysam = pytest.importorskip("pysam")
    plain = tmp_path / "calls.vcf"
    header = HEADER.replace("##contig=<ID=one>", "##contig=<ID=one,length=600>\n##contig=<ID=two,length=300>")
    plain.write_text(header + "".join(snv("one", at) for at in (40, 90, 400)) + snv("two", 30))
    packed = tmp_path / "calls.vcf.gz"
    pysam.tabix_compress(str(plain), str(packed))
    arguments = ("variants", "run", packed, "--genome", genome, "--region", "one:50-500", "--out", tmp_path / "r.vcf")
    assert mba(*arguments) == 2
    assert "index" in capsys.readouterr().err
    pysam.tabix_index(str(packed), preset="vcf")
    assert mba(*arguments) == 0
    lines = [line for line in (tmp_path / "r.vcf").read_text().splitlines() if line[0] != "#"]
    assert [line.split("\t")[1] for line in lines] == ["91", "401"]
    assert [line.split("\t")[5] for line in lines] == ["50.00", "50.00"]


def test_without_pysam_text_is_read_and_bcf_is_refused_with_the_way_out(tmp_path, genome, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pysam", None)
    plain = tmp_path / "calls.vcf.gz"
    plain.write_bytes(gzip.compress((HEADER + snv("one", 40)).encode()))
    assert mba("variants", "run", plain, "--genome", genome, "--out", tmp_path / "a.vcf.gz") == 0
    (tmp_path / "x.bcf").write_bytes(gzip.compress(b"BCF\x02\x02"))
    assert mba("variants", "run", tmp_path / "x.bcf", "--genome", genome, "--out", tmp_path / "b.vcf") == 2
    assert "needs pysam" in capsys.readouterr().err


def test_damaged_gzip_and_missing_files(tmp_path, genome, capsys):
    packed = gzip.compress((HEADER + snv("one", 40) * 500).encode())
    (tmp_path / "cut.vcf.gz").write_bytes(packed[: len(packed) // 2])
    for name, message in (("cut.vcf.gz", "damaged gzip"), ("none.vcf", "no such file"), (".", "folder")):
        assert mba("variants", "run", tmp_path / name, "--genome", genome, "--out", tmp_path / "x.vcf") == 2
        assert message in capsys.readouterr().err
    assert mba("variants", "run", "-", "--genome", tmp_path / "none.fa", "--out", tmp_path / "x.vcf") == 2
    (tmp_path / "x.txt").write_text("")
    assert mba("variants", "run", "-", "--genome", genome, "--out", tmp_path / "y.txt") == 2
    assert "must end in .vcf" in capsys.readouterr().err


def test_saturation_scores_every_substitution_and_draws_them(tmp_path, genome, capsys):
    out = tmp_path / "map.vcf"
    arguments = ("variants", "run", "--genome", genome, "--saturation", "one:101-140", "--out", out, "--window", 8)
    assert mba(*arguments) == 0
    lines = [line.split("\t") for line in out.read_text().splitlines() if line[0] != "#"]
    assert len(lines) == 120
    assert [int(line[1]) for line in lines[::3]] == list(range(101, 141))
    assert {line[3] for line in lines[:3]} == {ONE[100]}
    assert {line[4] for line in lines[:3]} == set("ACGT") - {ONE[100]}
    assert (tmp_path / "map.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert mba(*arguments) == 2
    assert mba(*arguments, "--force") == 0
    (tmp_path / "map.png").write_bytes(b"\x89PNG of somebody else")
    capsys.readouterr()
    assert mba(*arguments, "--force") == 2
    assert "map.png: not made by mba variants" in capsys.readouterr().err
    genome.write_text(genome.read_text() + ">gap\nNNNNNNNNNN\n")
    for region, message in (
        ("one:590-601", "not inside"),
        ("three:1-5", "no record"),
        ("gap:2-9", "holds no known base"),
    ):
        assert mba("variants", "run", "--genome", genome, "--saturation", region, "--out", tmp_path / "z.vcf") == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.glob("z.*"))


def test_the_map_has_each_ratio_at_its_place(tmp_path, genome, model):
    calls = tmp_path / "s.vcf"
    rows = [(at, ONE[at], base) for at in (7, 8, 10) for base in "ACGT" if base != ONE[at]]
    calls.write_text(HEADER + "".join(record("one", *row) for row in rows))
    found = vcf.Calls(str(calls), tmp_path / "copy")
    table = variant_table.VariantTable(found, saved.domain_of("dna").genome(genome), ["forward"], tmp_path)
    table.ratio["forward"][:] = np.arange(9)
    letters, grid, first = table.grid()
    assert (letters, first) == (ONE[7] + ONE[8] + "N" + ONE[10], 8)
    for number, (at, reference, base) in enumerate(rows):
        assert grid["ACGT".index(base), at - 7] == number
        assert np.isnan(grid["ACGT".index(reference), at - 7])
    assert np.isnan(grid[:, 2]).all()


def test_bf16_says_what_it_changes(tmp_path, genome, capsys):
    calls = tmp_path / "calls.vcf"
    calls.write_text(HEADER + "".join(snv("one", at) for at in range(30, 500, 20)))
    assert mba("variants", "run", calls, "--genome", genome, "--out", tmp_path / "a.vcf", "--precision", "bf16") == 0
    assert "bf16 changes the ratio by" in capsys.readouterr().out
    assert (
        mba("variants", "run", calls, "--genome", genome, "--out", tmp_path / "b.vcf", "--precision", "bf16", "--json")
        == 0
    )
    summary = json.loads(capsys.readouterr().out)
    assert summary["bf16_alleles"] == 24
    assert 0 < summary["bf16_change"] < 0.1
    assert summary["bf16_ratio"] == pytest.approx(summary["median_ratio"], rel=0.3)


def test_one_strand_and_all_of_the_context(scored):
    lines = "".join(snv("one", at) for at in (40, 200))
    _, records, summary = scored(lines, "--strand", "reverse", "--context", "all", "--window", 8)
    assert summary["context"] == "all"
    for line, at in zip(records, (40, 200), strict=True):
        found = info(line)
        assert set(found) == {"MBA_LLR", "MBA_LLR_REV", "MBA_BASES_REV", "MBA_CONTEXT_REV"}
        assert found["MBA_LLR"] == found["MBA_LLR_REV"]
        assert int(found["MBA_CONTEXT_REV"]) == 600 - 1 - at


def test_stopped_between_contigs_it_resumes_to_the_same_file(tmp_path, genome, capsys, monkeypatch):
    calls, out = tmp_path / "calls.vcf", tmp_path / "scored.vcf"
    calls.write_text(HEADER + "".join(snv(contig, at) for contig, at in (("two", 20), ("one", 100), ("two", 50))))
    arguments = ("variants", "run", calls, "--genome", genome, "--out", out)
    assert mba(*arguments) == 0
    whole = out.read_text()
    out.unlink()
    score, done = variant_table.score_record, []

    def until(number):
        def run(model, strand, variants, scoring, passes):
            if len(done) == number:
                os.kill(os.getpid(), 15)
            done.append(strand.record)
            return score(model, strand, variants, scoring, passes)

        return run

    monkeypatch.setattr(variant_table, "score_record", until(2))
    assert mba(*arguments) == 130
    assert "use --resume" in capsys.readouterr().err
    assert not out.exists()
    assert mba(*arguments) == 2
    assert mba(*arguments, "--resume", "--window", 32) == 2
    capsys.readouterr()
    done.clear()
    monkeypatch.setattr(variant_table, "score_record", until(-1))
    assert mba(*arguments, "--resume") == 0
    # Both strands of the first contig were kept.
    assert done == ["one", "one"]
    assert out.read_text() == whole
    assert not (tmp_path / "scored.vcf.part").exists()
    assert mba(*arguments, "--resume") == 0
    assert "already complete" in capsys.readouterr().out
    calls.write_text(HEADER)
    out.write_text("something else")
    assert mba(*arguments, "--force") == 2
    assert "not made by mba variants" in capsys.readouterr().err


def test_only_the_lines_of_one_contig_are_held(tmp_path, genome, monkeypatch):
    """A contig's alleles are read when it is its turn, and no sooner."""
    calls = tmp_path / "calls.vcf"
    calls.write_text(HEADER + "".join(snv(contig, at) for at in (20, 50, 80) for contig in ("one", "two")))
    read, score = [], variant_table.score_record
    variants = vcf.Calls.variants

    def reading(self, contig):
        read.append(contig)
        return variants(self, contig)

    def scoring(model, strand, own, *more):
        assert read[-1] == strand.record
        assert len(own) == 3
        return score(model, strand, own, *more)

    monkeypatch.setattr(vcf.Calls, "variants", reading)
    monkeypatch.setattr(variant_table, "score_record", scoring)
    assert mba("variants", "run", calls, "--genome", genome, "--out", tmp_path / "a.vcf") == 0
    assert read == ["one", "two"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give a VCF file, or --saturation"),
        (("calls.vcf", "--context", "many"), "a number of bases, or all"),
        (("calls.vcf", "--context", "7"), "choose 8 bases or more"),
        (("--saturation", "one:1-5"), "needs --out"),
        (("calls.vcf", "--resume"), "needs --out"),
        (("calls.vcf", "--json"), "give --out"),
    ],
)
def test_bad_usage(tmp_path, genome, capsys, options, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls.vcf").write_text(HEADER)
    assert mba("variants", "run", *options, "--genome", genome) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_model_of_something_else_is_refused(tmp_path, genome, capsys, model):
    model.config = load_config("audio/tiny", [f"data.path={tmp_path}"])
    (tmp_path / "calls.vcf").write_text(HEADER)
    assert mba("variants", "run", tmp_path / "calls.vcf", "--genome", genome, "--out", tmp_path / "a.vcf") == 2
    assert "needs a language model of DNA" in capsys.readouterr().err


def test_the_command_has_the_defaults_of_the_function():
    fields = VariantsOptions.model_fields
    assert (fields["window"].default, fields["context"].default, fields["strand"].default) == (WINDOW, None, "both")


def test_reading_a_file_of_calls_imports_no_pysam(tmp_path):
    (tmp_path / "calls.vcf").write_text(HEADER + snv("one", 40))
    code = (
        "import sys\nfrom pathlib import Path\nfrom mamba_bio_audio.pipelines.dna.vcf import Calls\n"
        "Calls('calls.vcf', Path('copy'))\nassert 'pysam' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=os.environ)
