import os
import threading
from pathlib import Path

import pyfaidx
import pytest

from mamba_bio_audio.pipelines.dna import fasta_index
from mamba_bio_audio.pipelines.dna.fasta_index import load_index


def test_index_beside_the_file_is_standard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_fasta) -> None:
    monkeypatch.delenv("MAMBA_BIO_AUDIO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    write_fasta("data/x.fa.gz", {"a": "ACGT" * 40_000})
    files = load_index(folder / "x.fa.gz")
    assert sorted(os.listdir(folder)) == ["x.fa.gz", "x.fa.gz.fai", "x.fa.gz.gzi", "x.fa.gz.mba.npz"]
    peer = pyfaidx.Faidx(
        str(folder / "x.fa.gz"), indexname=str(tmp_path / "p.fai"), gzi_indexname=str(tmp_path / "p.gzi")
    )
    peer.close()
    assert Path(files.fai_path).read_bytes() == (tmp_path / "p.fai").read_bytes()
    assert files.gzi_path is not None
    assert Path(files.gzi_path).read_bytes() == (tmp_path / "p.gzi").read_bytes()


def test_read_only_folder_stays_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAMBA_BIO_AUDIO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "x.fa").write_bytes(b">a\nACGT\n")
    folder.chmod(0o555)
    try:
        files = load_index(folder / "x.fa")
        assert os.listdir(folder) == ["x.fa"]
        assert files.fai_path.startswith(str(tmp_path / "cache" / "mamba_bio_audio"))
    finally:
        folder.chmod(0o755)


def test_index_is_reused_and_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = []
    build = fasta_index.build_index
    monkeypatch.setattr(fasta_index, "build_index", lambda path: builds.append(path) or build(path))
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\nACGT\n")
    first = load_index(path)
    assert load_index(path).index.sha256 == first.index.sha256
    assert len(builds) == 1
    # The same size at another time; then a lost, a foreign and a damaged part.
    path.write_bytes(b">b\nTTTT\n")
    os.utime(path, ns=(1, 1))
    assert load_index(path).index.names == ("b",)
    for damage in (
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-3]),
    ):
        for name in ("fai", "mba.npz"):
            damage(Path(first.fai_path).with_name(f"x.fa.{name}"))
            before = len(builds)
            assert load_index(path).index.names == ("b",)
            assert len(builds) == before + 1


def test_index_is_built_once_by_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = []
    build = fasta_index.build_index
    monkeypatch.setattr(fasta_index, "build_index", lambda path: builds.append(path) or build(path))
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\n" + b"ACGT" * 100_000)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(load_index(path).index.sha256)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len(found) == 8
