"""The growing file of embeddings: what it holds, what is left of it, and what it refuses to continue."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference import embedding_file
from mamba_bio_audio.inference.embed import Pool
from mamba_bio_audio.inference.embedding_file import EmbeddingFile, Vectors, check_suffix, ours
from mamba_bio_audio.inference.streaming import Stopped
from mamba_bio_audio.pipelines.contract import Item

ITEMS = [
    Item("a.fa", "a", 3, np.array([7, 8, 9], np.uint8)),
    Item("a.fa", "none", 0, np.zeros(0, np.uint8)),
    Item("b.fa", "bad", 9, "no DNA"),
    Item("b.fa", "a", 5, np.array([7, 8, 9, 10, 7], np.uint8)),
]


def written(out: Path, pool: str, items=ITEMS, width=2) -> None:
    """A file whose vectors are numbered through, in two steps, the second one continued."""
    at = 0
    for part in (items[:1], items[1:]):
        with EmbeddingFile(out, Pool.of(pool), width, {"pool": pool}, resume=True, force=False) as file:
            todo = list(file.unfinished(items))[: len(part)]
            assert [item.name for item in todo] == [item.name for item in part]
            for item, place in zip(todo, file.begin(todo), strict=True):
                rows = Pool.of(pool).rows(item.length)
                if not isinstance(item.symbols, str) and item.length:
                    place[0:rows] += np.arange(at, at + rows)[:, None] + np.array([0, 0.5])
                    at += rows
            file.end(todo, [item.symbols if isinstance(item.symbols, str) else "" for item in todo])
            if len(file.records) == len(items):
                file.finish()


@pytest.mark.parametrize("pool", ["mean", "bins:2", "none"])
def test_both_formats_hold_the_same(tmp_path, monkeypatch, pool):
    import pyarrow.parquet

    # Blocks of three rows, so that records lie across their borders.
    monkeypatch.setattr(embedding_file, "_BLOCK_ROWS", 3)
    for suffix in ("npz", "parquet"):
        written(tmp_path / f"e.{suffix}", pool)
    sizes = {"mean": [1, 1, 1, 1], "bins:2": [2, 0, 0, 3], "none": [3, 0, 0, 5]}[pool]
    with np.load(tmp_path / "e.npz") as found:
        assert found["offsets"].tolist() == np.cumsum([0, *sizes]).tolist()
        assert found["records"].tolist() == ["a", "none", "bad", "a"]
        assert found["files"].tolist() == ["a.fa", "a.fa", "b.fa", "b.fa"]
        assert found["lengths"].tolist() == [3, 0, 9, 5]
        assert found["notes"].tolist() == ["", "", "no DNA", ""]
        assert json.loads(str(found["settings"])) == {"pool": pool}
        vectors = found["embeddings"]
    known = vectors[~np.isnan(vectors).any(1)]
    assert np.array_equal(known, np.arange(len(known))[:, None] + np.float32([0, 0.5]))
    assert len(vectors) - len(known) == (2 if pool == "mean" else 0)
    rows = pyarrow.parquet.read_table(tmp_path / "e.parquet").to_pylist()
    assert [row["number"] for row in rows] == [i for i, size in enumerate(sizes) for _ in range(max(1, size))]
    there = [row for row in rows if not np.isnan(row["embedding"]).any()]
    assert np.array_equal(np.array([row["embedding"] for row in there], np.float32), known)
    assert [(row["file"], row["record"], row["length"], row["note"]) for row in rows if row["number"] == 2] == [
        ("b.fa", "bad", 9, "no DNA")
    ]
    if pool != "mean":
        size = Pool.of(pool).size
        for number, length in ((0, 3), (3, 5)):
            own = [(row["start"], row["end"]) for row in rows if row["number"] == number]
            assert own == [(low, min(low + size, length)) for low in range(0, length, size)]
        assert [row["start"] for row in rows if row["number"] in (1, 2)] == [None, None]


def test_a_file_of_no_records_has_the_same_types(tmp_path):
    import pyarrow.parquet

    for suffix in ("npz", "parquet"):
        with EmbeddingFile(tmp_path / f"e.{suffix}", Pool("none"), 2, {}, resume=False, force=False) as file:
            file.finish()
    with np.load(tmp_path / "e.npz") as found:
        assert {name: (array.shape, array.dtype.kind) for name, array in found.items()} == {
            "embeddings": ((0, 2), "f"),
            "offsets": ((1,), "i"),
            "records": ((0,), "U"),
            "files": ((0,), "U"),
            "lengths": ((0,), "i"),
            "notes": ((0,), "U"),
            "settings": ((), "U"),
        }
    assert pyarrow.parquet.read_table(tmp_path / "e.parquet").num_rows == 0


def test_the_vectors_of_one_record_are_an_array(tmp_path):
    with (tmp_path / "v").open("w+b") as file:
        file.truncate(10 * 3 * 4)
        first, second = Vectors(file, 0, 3), Vectors(file, 4, 3)
        second[1:3] += np.array([[1, 2, 3], [4, 5, 6]])
        second[2:3] += np.array([[1.5, 0, 0]])
        assert second[0:4].tolist() == [[0, 0, 0], [1, 2, 3], [5.5, 5, 6], [0, 0, 0]]
        assert not first[0:4].any()
        assert second[1:2].dtype == np.float32


def test_a_stop_while_the_file_is_made_leaves_nothing_under_its_name(tmp_path):
    item = Item("a.fa", "a", 3, np.array([7, 8, 9], np.uint8))
    for suffix in ("npz", "parquet"):
        out = tmp_path / f"e.{suffix}"
        with EmbeddingFile(out, Pool("none"), 2, {}, resume=False, force=False) as file:
            (place,) = file.begin([item])
            place[0:3] += np.ones((3, 2))
            file.end([item], [""])
            with pytest.raises(Stopped):
                file.finish(lambda: True)
        assert [path.name for path in tmp_path.iterdir()] == [f"e.{suffix}.part"]
        with EmbeddingFile(out, Pool("none"), 2, {}, resume=True, force=False) as file:
            file.finish()
        assert [path.name for path in tmp_path.iterdir()] == [out.name]
        out.unlink()


def test_a_damaged_part_is_refused(tmp_path):
    out = tmp_path / "e.npz"
    for name, content, message in (
        ("records.jsonl", "[1]\n", "damaged; start again with --force"),
        ("records.jsonl", '["a.fa", "a", 3, 3, ""]\n', "shorter than its records require"),
    ):
        EmbeddingFile(out, Pool("none"), 2, {}, resume=False, force=True).__exit__(None)
        (tmp_path / "e.npz.part" / name).write_text(content)
        with pytest.raises(InputError, match=message):
            EmbeddingFile(out, Pool("none"), 2, {}, resume=True, force=False)


def test_a_suffix_names_the_format(tmp_path, monkeypatch):
    for name in ("e.csv", "e", "e.npz.gz", "-"):
        with pytest.raises(InputError, match=r"ends in \.npz or \.parquet"):
            check_suffix(Path(name))
    monkeypatch.setattr(embedding_file, "find_spec", lambda name: None)
    check_suffix(Path("e.npz"))
    with pytest.raises(InputError, match=r"pip install 'mamba-bio-audio\[tables\]'"):
        check_suffix(Path("e.parquet"))


def test_only_files_of_embeddings_are_ours(tmp_path):
    for suffix in ("npz", "parquet"):
        out = tmp_path / f"e.{suffix}"
        written(out, "mean")
        assert ours(out)
        for content in (b"notes", b"PK\3\4 notes", b"PAR1 notes PAR1"):
            out.write_bytes(content)
            assert not ours(out)
        out.write_bytes(b"")
        assert ours(out)


def test_npz_needs_no_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    written(tmp_path / "e.npz", "none")
    assert ours(tmp_path / "e.npz")
