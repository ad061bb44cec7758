from pathlib import Path

import numpy as np
import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.files import AudioFile
from mamba_bio_audio.pipelines.audio.splits import Span, has_split_columns, read_splits, split_by_share
from mamba_bio_audio.pipelines.audio.windows import evaluation_windows, evenly_spaced, tile


def file_named(name: str) -> AudioFile:
    return AudioFile(f"/data/{name}", name, 1000, 16_000, 1)


def counts(spans) -> tuple[int, ...]:
    return tuple(len(spans[split]) for split in ("train", "valid", "test"))


@pytest.mark.parametrize(
    ("files", "expected"), [(241, (212, 14, 15)), (50, (44, 3, 3)), (10, (8, 1, 1)), (3, (2, 0, 1))]
)
def test_whole_files_in_order(files, expected):
    """241 files: the published 212, 14, 15 of YouTubeMix."""
    if 0 in expected:
        spans, source = split_by_share([100] * files, 0.06, 0.06)
        assert "parts of each of 3 files" in source
        assert counts(spans) == (3, 3, 3)
        return
    spans, source = split_by_share([100] * files, 0.06, 0.06)
    assert counts(spans) == expected
    assert source == "whole files in natural order"
    order = [span.file for split in ("train", "valid", "test") for span in spans[split]]
    assert order == list(range(files))


def test_one_file_is_cut_in_time():
    spans, source = split_by_share([1000], 0.06, 0.1)
    assert spans == {"train": [Span(0, 0, 840)], "valid": [Span(0, 840, 900)], "test": [Span(0, 900, 1000)]}
    assert source == "the last parts of each of 1 file"
    spans, _ = split_by_share([1000], 0, 0)
    assert spans == {"train": [Span(0, 0, 1000)], "valid": [], "test": []}


def test_list_of_splits(tmp_path: Path):
    files = [file_named(name) for name in ("one/a.wav", "one/b.wav", "two/b.wav", "two/c.wav")]
    path = tmp_path / "intervals.tsv"
    path.write_text(
        "file\trecord\tstart0\tend\tsplit\none/a.wav\tx\t0\t600\ttrain\none/a.wav\tx\t600\t\tval\nc.wav\tx\t\t\ttest\n"
    )
    assert has_split_columns(str(path))
    assert read_splits(str(path), files, [1000, 1000, 1000, 500]) == {
        "train": [Span(0, 0, 600)],
        "valid": [Span(0, 600, 1000)],
        "test": [Span(3, 0, 500)],
    }


def test_byte_order_marks_and_quotes_in_names(tmp_path: Path):
    path = tmp_path / "intervals.tsv"
    path.write_text('file\tsplit\n"q" x.wav\ttrain\n', encoding="utf-8-sig")
    assert has_split_columns(str(path))
    assert read_splits(str(path), [file_named('"q" x.wav')], [10])["train"] == [Span(0, 0, 10)]
    path.write_text("file\tsplit\na\u2028b.wav\ttrain\n", encoding="utf-8")
    assert read_splits(str(path), [file_named("a\u2028b.wav")], [10])["train"] == [Span(0, 0, 10)]
    path.write_bytes(b"file\tsplit\na\xff.wav\ttrain\n")
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        read_splits(str(path), [file_named("a.wav")], [10])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\tset\na.wav\ttrain\n", "columns file and split"),
        ("file\tsplit\nz.wav\ttrain\n", "line 2: z.wav is not in data.path"),
        ("file\tsplit\nb.wav\ttrain\n", "line 2: b.wav could be 2 files"),
        ("file\tsplit\na.wav\ttrain\na.wav\tdev\n", "line 3: split is one of train, valid, test, not 'dev'"),
        ("file\tsplit\tstart0\tend\na.wav\ttrain\t0\t1001\n", "samples 0 to 1001 do not lie in a.wav, which has 1000"),
        ("file\tsplit\tstart0\tend\na.wav\ttrain\t0.5\t1\n", "whole numbers"),
        (
            "file\tsplit\tstart0\na.wav\ttrain\t0\na.wav\ttest\t900\n",
            "samples 900 to 1000 of a.wav.*train and for test",
        ),
    ],
)
def test_mistakes_in_a_list_are_named(tmp_path: Path, text, message):
    path = tmp_path / "intervals.tsv"
    path.write_text(text)
    files = [file_named(name) for name in ("a.wav", "one/b.wav", "two/b.wav")]
    with pytest.raises(InputError, match=message):
        read_splits(str(path), files, [1000] * 3)


def test_genome_intervals_without_a_file_column_are_not_ours(tmp_path: Path):
    path = tmp_path / "intervals.tsv"
    path.write_text("chr1\t0\t100\ttrain\n")
    assert not has_split_columns(str(path))


@pytest.mark.parametrize("length", [1, 7, 100, 1000])
def test_tiles_cover_every_sample_once(length):
    spans = [Span(0, 0, 100), Span(2, 30, 37), Span(1, 5, 6)]
    windows = tile(spans, length)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for index in range(len(windows)):
        file, start, stop = windows[index]
        assert 1 <= stop - start <= length
        seen[file] += range(start, stop)
    assert seen == {0: list(range(100)), 1: [5], 2: list(range(30, 37))}
    assert windows.targets == evaluation_windows(spans, length).scored == 108
    assert windows.select(windows.size == length).targets == sum(length * (n // length) for n in (100, 7, 1))
    assert len(tile([], length)) == 0
    with pytest.raises(ValueError):
        tile(spans, 0)


def test_evenly_spaced():
    assert evenly_spaced(10, 5).tolist() == [1, 3, 5, 7, 9]
    assert evenly_spaced(3, 10).tolist() == [0, 1, 2]
    assert (np.diff(evenly_spaced(1000, 300)) > 0).all()
