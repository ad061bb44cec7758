from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.splits import has_split_columns, read_splits, split_by_share
from mamba_bio_audio.pipelines.spans import Span


def sized(count: int, size: int = 100) -> dict[str, int]:
    """`count` files of one size."""
    return {f"{number}.wav": size for number in range(count)}


def counts(spans) -> tuple[int, ...]:
    return tuple(len(spans[split]) for split in ("train", "valid", "test"))


@pytest.mark.parametrize(
    ("files", "expected"), [(241, (212, 14, 15)), (50, (44, 3, 3)), (10, (8, 1, 1)), (3, (2, 0, 1))]
)
def test_whole_files_in_order(files, expected):
    """241 files: the published 212, 14, 15 of YouTubeMix."""
    if 0 in expected:
        spans, source = split_by_share(sized(files), 0.06, 0.06)
        assert "parts of each of 3 files" in source
        assert counts(spans) == (3, 3, 3)
        return
    spans, source = split_by_share(sized(files), 0.06, 0.06)
    assert counts(spans) == expected
    assert source == "whole files in natural order"
    order = [span.record for split in ("train", "valid", "test") for span in spans[split]]
    assert order == list(sized(files))


def test_one_file_is_cut_in_time():
    spans, source = split_by_share({"a.wav": 1000}, 0.06, 0.1)
    assert spans == {
        "train": [Span("a.wav", 0, 840)],
        "valid": [Span("a.wav", 840, 900)],
        "test": [Span("a.wav", 900, 1000)],
    }
    assert source == "the last parts of each of 1 file"
    spans, _ = split_by_share({"a.wav": 1000}, 0, 0)
    assert spans == {"train": [Span("a.wav", 0, 1000)], "valid": [], "test": []}


def test_list_of_splits(tmp_path: Path):
    sizes = {"one/a.wav": 1000, "one/b.wav": 1000, "two/b.wav": 1000, "two/c.wav": 500}
    path = tmp_path / "intervals.tsv"
    path.write_text(
        "file\trecord\tstart0\tend\tsplit\none/a.wav\tx\t0\t600\ttrain\none/a.wav\tx\t600\t\tval\nc.wav\tx\t\t\ttest\n"
    )
    assert has_split_columns(str(path))
    assert read_splits(str(path), sizes, 16_000) == {
        "train": [Span("one/a.wav", 0, 600)],
        "valid": [Span("one/a.wav", 600, 1000)],
        "test": [Span("two/c.wav", 0, 500)],
    }


def test_byte_order_marks_and_quotes_in_names(tmp_path: Path):
    path = tmp_path / "intervals.tsv"
    path.write_text('file\tsplit\n"q" x.wav\ttrain\n', encoding="utf-8-sig")
    assert has_split_columns(str(path))
    assert read_splits(str(path), {'"q" x.wav': 10}, 16_000)["train"] == [Span('"q" x.wav', 0, 10)]
    path.write_text("file\tsplit\na\u2028b.wav\ttrain\n", encoding="utf-8")
    assert read_splits(str(path), {"a\u2028b.wav": 10}, 16_000)["train"] == [Span("a\u2028b.wav", 0, 10)]
    path.write_bytes(b"file\tsplit\na\xff.wav\ttrain\n")
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        read_splits(str(path), {"a.wav": 10}, 16_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\tset\na.wav\ttrain\n", "columns file and split"),
        ("file;split\na.wav;train\n", "columns file and split, separated by tabs"),
        ("file\tsplit\nz.wav\ttrain\n", "line 2: z.wav is not in data.path"),
        ("file\tsplit\nb.wav\ttrain\n", "line 2: b.wav could be 2 files"),
        ("file\tsplit\na.wav\ttrain\na.wav\tdev\n", "line 3: split must be one of train, valid, test, not 'dev'"),
        ("file\tsplit\tstart0\tend\na.wav\ttrain\t0\t1001\n", "samples 0 to 1001 do not lie in a.wav, which has 1000"),
        ("file\tsplit\tstart0\tend\na.wav\ttrain\t0.5\t1\n", "whole numbers"),
        ("file\tsplit\trate_hz\na.wav\ttrain\t0\n", "rate_hz above 0"),
        (
            "file\tsplit\tstart0\na.wav\ttrain\t0\na.wav\ttest\t900\n",
            "samples 900 to 1000 of a.wav.*train and for test",
        ),
    ],
)
def test_mistakes_in_a_list_are_named(tmp_path: Path, text, message):
    path = tmp_path / "intervals.tsv"
    path.write_text(text)
    assert has_split_columns(str(path)) == ("split" in text)
    with pytest.raises(InputError, match=message):
        read_splits(str(path), dict.fromkeys(("a.wav", "one/b.wav", "two/b.wav"), 1000), 16_000)


def test_a_list_that_says_its_rate_means_the_same_moments_at_any(tmp_path: Path):
    path = tmp_path / "intervals.tsv"
    path.write_text("file\tsplit\tstart0\tend\trate_hz\na.wav\ttrain\t0\t701\t8000\na.wav\ttest\t701\t1001\t8000\n")
    for rate_hz, edge, size in ((8_000, 701, 1001), (16_000, 1402, 2002), (4_000, 351, 501)):
        spans = read_splits(str(path), {"a.wav": size}, rate_hz)
        assert spans == {"train": [Span("a.wav", 0, edge)], "valid": [], "test": [Span("a.wav", edge, size)]}


def test_a_list_without_its_rate_is_refused_beside_a_manifest_of_another(tmp_path: Path):
    path = tmp_path / "intervals.tsv"
    path.write_text("file\tsplit\tstart0\tend\na.wav\ttrain\t0\t1000\n")
    (tmp_path / "manifest.json").write_text('{"mamba_bio_audio": "0.1.0", "sample_rate_hz": 8000}')
    with pytest.raises(InputError, match=r"8,000 Hz, by manifest\.json.*set data\.sample_rate_hz=8000"):
        read_splits(str(path), {"a.wav": 2000}, 16_000)
    assert read_splits(str(path), {"a.wav": 1000}, 8_000)["train"] == [Span("a.wav", 0, 1000)]


def test_genome_intervals_without_a_file_column_are_not_ours(tmp_path: Path):
    path = tmp_path / "intervals.tsv"
    path.write_text("chr1\t0\t100\ttrain\n")
    assert not has_split_columns(str(path))
