"""`mba prepare hg38` on a miniature genome and split, from a folder and from a local server that cuts connections."""

import functools
import gzip
import hashlib
import http.server
import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.errors import InputError, NetworkError
from mamba_bio_audio.pipelines.dna import hg38 as module
from mamba_bio_audio.pipelines.dna.bgzf import is_ordinary_gzip, recompress
from mamba_bio_audio.pipelines.dna.genome import Genome
from mamba_bio_audio.pipelines.dna.hg38 import (
    PUBLISHED,
    SOURCES,
    Published,
    prepare_hg38,
    read_published,
    summary_rows,
)
from mamba_bio_audio.pipelines.download import Patience
from mamba_bio_audio.pipelines.reporter import Reporter
from mamba_bio_audio.run.config import load_config

BASES = 2048
SPLITS = {"train": 5, "valid": 2, "test": 1}
LETTERS = np.frombuffer(b"ACGTacgt", np.uint8)


def genome_text() -> str:
    rng = np.random.default_rng(0)
    lines = []
    for name, length in (("chr1", 20_000), ("chr2", 9_000)):
        text = rng.choice(LETTERS, length).tobytes().decode()
        lines += [f">{name}", *(text[i : i + 50] for i in range(0, length, 50))]
    return "\n".join(lines) + "\n"


def intervals() -> list[tuple[str, int, int, str]]:
    """Training intervals overlap one another, as the real ones do."""
    rows = [("chr1", 1000 + 1500 * i, 1000 + 1500 * i + BASES, "train") for i in range(5)]
    rows += [("chr1", 12_000 + BASES * i, 12_000 + BASES * (i + 1), "valid") for i in range(2)]
    return [*rows, ("chr2", 512, 512 + BASES, "test")]


@pytest.fixture
def files(tmp_path) -> Path:
    """Both sources as published: plain gzip, BED, and Enformer's table with its wider windows."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "hg38.ml.fa.gz").write_bytes(gzip.compress(genome_text().upper().replace("CHR", "chr").encode(), mtime=0))
    (folder / "hg38.fa.gz").write_bytes(gzip.compress(genome_text().encode(), mtime=0))
    (folder / "sequences_human.bed").write_text("".join("\t".join(map(str, row)) + "\n" for row in intervals()))
    wide = [(c, a - BASES // 4, b + BASES // 4, split) for c, a, b, split in intervals()]
    (folder / "human_intervals.tsv").write_text(
        "chrom\tstart\tend\tsplit\n" + "".join("\t".join(map(str, row)) + "\n" for row in wide)
    )
    return folder


class Web:
    """A server of a folder that, as Python's own, ignores ranges; it cuts answers off and refuses on demand."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.cut: dict[str, int] = {}
        self.missing: set[str] = set()
        owner = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rsplit("/", 1)[-1]
                owner.asked.append(name)
                if name in owner.missing:
                    self.send_error(503)
                elif name in owner.cut:
                    data = (folder / name).read_bytes()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: owner.cut.pop(name)])
                else:
                    super().do_GET()

            def log_message(self, *arguments: object) -> None:
                pass

        handler = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def web(files):
    web = Web(files)
    yield web
    web.server.shutdown()
    web.server.server_close()


@pytest.fixture
def miniature(files, monkeypatch):
    """The published hash is that of the miniature."""
    fasta, table = SOURCES["ucsc"]
    md5 = hashlib.md5((files / "hg38.fa.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(module, "SOURCES", {**SOURCES, "ucsc": (replace(fasta, hashes={"md5": md5}), table)})
    return functools.partial(prepare_hg38, published=Published(BASES, SPLITS))


def test_the_published_numbers():
    assert PUBLISHED.counts == {"train": 34_021, "valid": 2_213, "test": 1_937}
    assert sum(PUBLISHED.counts.values()) == 38_171
    assert PUBLISHED.interval_bases == 2**17
    assert SOURCES["ucsc"][0].hashes == {"md5": "1c9dcaddfa41027f17cd8f7a82c7293b"}
    for pair in SOURCES.values():
        for file in pair:
            assert all(url.startswith("https://") and url.endswith("/" + file.name) for url in file.urls)
            # That bucket asks for payment.
            assert not any("/basenji_barnyard/" in url for url in file.urls)


@pytest.mark.parametrize(("source", "masked"), [("basenji", False), ("ucsc", True)])
@pytest.mark.parametrize("how", ["from", "url"])
def test_prepare_hg38(source, masked, how, miniature, files, web, tmp_path):
    options = {"at_hand": files} if how == "from" else {"url": web.url}
    returned = miniature(tmp_path / "hg38", source=source, **options)
    manifest = json.loads((tmp_path / "hg38" / "manifest.json").read_text())
    assert manifest == json.loads(json.dumps(returned))
    assert {split: row["intervals"] for split, row in manifest["splits"].items()} == SPLITS
    assert manifest["soft_masked"] is masked
    shown = dict(summary_rows(manifest))["soft-masked"]
    bases = "".join(line for line in genome_text().splitlines() if not line.startswith(">"))
    percent = 100 * sum(map(str.islower, bases)) / len(bases)
    assert shown.startswith(f"yes, {percent:.2f} % lower case" if masked else "no, all upper case")
    fasta = tmp_path / "hg38" / "hg38.fa.gz"
    assert not is_ordinary_gzip(fasta)
    assert gzip.decompress(fasta.read_bytes()) == gzip.decompress((files / SOURCES[source][0].name).read_bytes())
    assert [row["url"] for row in manifest["sources"]] == [
        None if how == "from" else f"{web.url}/{file.name}" for file in SOURCES[source]
    ]
    assert "gzip" in manifest["sources"][0]["checked"]
    # What training reads is the truth: widened windows were brought back.
    data = load_config("dna/tiny", [f"data.path={tmp_path / 'hg38'}"]).data
    assert data.path == str(tmp_path / "hg38")
    rows = (tmp_path / "hg38" / "intervals.tsv").read_text().splitlines()[1:]
    assert [tuple(row.split("\t")[1:]) for row in rows] == [tuple(map(str, row)) for row in intervals()]
    truth = genome_text().split(">chr1\n")[1].split(">")[0].replace("\n", "").upper()
    genome = Genome([fasta])
    assert genome.codec.decode(genome.fetch("chr1", 1000, 3048)) == truth[1000:3048]


def test_prepare_hg38_goes_on_after_interruptions(miniature, web, tmp_path, monkeypatch):
    out = tmp_path / "hg38"
    web.cut = {"hg38.ml.fa.gz": 3000}
    web.missing = {"sequences_human.bed"}
    monkeypatch.setattr(module, "download", functools.partial(module.download, patience=Patience(1, 0.0)))
    with pytest.raises(NetworkError, match=r"sequences_human.bed: HTTP 503"):
        miniature(out, url=web.url)
    assert not out.exists()
    web.missing = set()
    web.asked.clear()

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.prepare, "write_prepared", stop)
    with pytest.raises(KeyboardInterrupt):
        miniature(out, url=web.url)
    # The genome was whole already and is not fetched again.
    assert web.asked == ["sequences_human.bed"]
    monkeypatch.undo()
    monkeypatch.setattr(module, "recompress", stop)
    miniature(out, url=web.url)
    assert (out / "manifest.json").exists()
    with pytest.raises(InputError, match="--force"):
        miniature(out, url=web.url)
    # Made anew as a whole; the old one stands until then.
    with pytest.raises(KeyboardInterrupt):
        miniature(out, url=web.url, force=True)
    assert (out / "manifest.json").exists()
    monkeypatch.undo()
    miniature(out, url=web.url, force=True)
    assert sorted(path.name for path in tmp_path.glob("*hg38*")) == ["hg38", "hg38.downloads"]


def test_prepare_hg38_takes_the_mirror(miniature, web, tmp_path, monkeypatch):
    fasta, bed = SOURCES["basenji"]
    pair = (
        replace(fasta, urls=(f"{web.url}/gone/none.fa.gz", f"{web.url}/hg38.ml.fa.gz")),
        replace(bed, urls=(f"{web.url}/sequences_human.bed",)),
    )
    monkeypatch.setattr(module, "SOURCES", {"basenji": pair})
    said: list[str] = []
    reporter = Reporter()
    monkeypatch.setattr(reporter, "note", said.append)
    miniature(tmp_path / "hg38", reporter=reporter)
    assert web.asked == ["none.fa.gz", "hg38.ml.fa.gz", "sequences_human.bed"]
    assert any("HTTP 404" in text for text in said)


def test_prepare_hg38_says_how_to_get_rid_of_a_page_that_is_no_table(miniature, files, web, tmp_path):
    """A network's log-in page comes with status 200, and the table has no published hash."""
    (files / "sequences_human.bed").write_text("<html>please log in</html>\n")
    with pytest.raises(InputError, match=r"1 columns.*; remove .*sequences_human.bed to fetch it again"):
        miniature(tmp_path / "hg38", url=web.url)


def test_prepare_hg38_refuses_what_was_not_published(miniature, files, tmp_path):
    out = tmp_path / "hg38"
    bed = files / "sequences_human.bed"
    good = bed.read_text()
    lines = good.splitlines(keepends=True)
    for text, message in (
        ("".join(lines[:-1]), r"0 test instead of 1 intervals of 2,048"),
        (good.replace("\tvalid", "\tother", 1), r"1 other instead of 0, 1 valid instead of 2"),
        (good.replace("\t1000\t", "\t1001\t"), r"line 1: 2,047 bases instead of 2,048"),
        (good.replace("\t1000\t", "\tx\t"), r"line 1: start 'x' and end '3048' must be whole numbers"),
        (good.replace("\ttrain", "", 1), r"line 1: has only 3 columns"),
        ("chrom\tstart\tend\n", r"line 1: the header .* must name"),
        (good.replace("chr2\t512\t2560", "chr2\t8000\t10048"), r"end 10,048 lies beyond 'chr2'"),
        (good.replace("chr2", "chr9"), r"chr9"),
    ):
        bed.write_text(text)
        with pytest.raises(InputError, match=message):
            miniature(out, at_hand=files)
        assert not (out / "manifest.json").exists()
    bed.unlink()
    with pytest.raises(InputError, match=r"holds no sequences_human.bed or human-sequences.bed"):
        miniature(out, at_hand=files)
    (files / "hg38.fa.gz").write_bytes((files / "hg38.fa.gz").read_bytes()[:-4])
    with pytest.raises(InputError, match="hg38.fa.gz: its md5"):
        miniature(tmp_path / "c", source="ucsc", at_hand=files)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        miniature(tmp_path / "file", at_hand=files)


def test_read_published_on_the_other_names(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("#Chromosome\tStart\tEnd\tfold\nchr1\t0\t8\tvalidation\n\nchr1\t6\t18\ttest\n")
    assert read_published(path, 8) == [("chr1", 0, 8, "valid"), ("chr1", 8, 16, "test")]


def test_prepare_hg38_command(miniature, files, tmp_path, capsys):
    """The command asks for the real counts, and says so."""
    with pytest.raises(SystemExit) as stop:
        command(["prepare", "hg38", "--out", str(tmp_path / "x"), "--from", str(files), "--quiet"])
    assert stop.value.code == 2
    assert "2,048 bases instead of 131,072, so this is not the published split" in capsys.readouterr().err
    wide = "".join(f"chr1\t{i}\t{i + 131_072}\ttrain\n" for i in range(3))
    (files / "sequences_human.bed").write_text(wide)
    with pytest.raises(SystemExit):
        command(["prepare", "hg38", "--out", str(tmp_path / "x"), "--from", str(files), "--quiet"])
    assert "3 train instead of 34,021, 0 valid instead of 2,213" in capsys.readouterr().err


def test_recompress_is_readable_at_random_and_refuses_damage(tmp_path):
    text = genome_text().encode() * 20
    source, target = tmp_path / "a.fa.gz", tmp_path / "b.fa.gz"
    source.write_bytes(gzip.compress(text[:1000]) + gzip.compress(text[1000:]))
    calls = []
    recompress(source, target, lambda done, total: calls.append((done, total)))
    assert gzip.decompress(target.read_bytes()) == text
    assert is_ordinary_gzip(source)
    assert not is_ordinary_gzip(target)
    assert calls[-1] == (source.stat().st_size,) * 2
    good = target.read_bytes()
    source.write_bytes(source.read_bytes()[:-3])
    with pytest.raises(InputError, match="a.fa.gz: damaged gzip"):
        recompress(source, target)
    assert target.read_bytes() == good
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.fa.gz", "b.fa.gz"]
