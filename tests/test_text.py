"""Names that others chose do no harm where they are shown."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.text import cell, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("chr1:1-2 (é, 日本, a b)", "chr1:1-2 (é, 日本, a b)"),
        ("a\x1b[31mred\x1b]0;title\x07", r"a\x1b[31mred\x1b]0;title\x07"),
        ("one\r\ntwo\tthree", r"one\r\ntwo\tthree"),
        ("bidi\u202e\u2066\u200f", r"bidi\u202e\u2066\u200f"),
        ("line\u2028paragraph\u2029next\x85", r"line\u2028paragraph\u2029next\x85"),
        ("jos\udcc3\udca9", r"jos\xc3\xa9"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("", ""),
    ],
)
def test_invisible_characters_are_written_out(text, shown):
    assert printable(text) == shown


def test_messages_keep_their_lines():
    assert printable("a\n\tb\r\x1b", lines=True) == "a\n\tb\\r\\x1b"


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_shown_text_is_one_line_of_utf8_and_stays(text):
    shown = printable(text)
    shown.encode("utf-8")
    assert len(shown.splitlines()) <= 1
    assert printable(shown) == shown


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-x", "@sum(a1)", "=HYPERLINK(1)", "-1-1", "\t=1", "\r=1"]
)
def test_no_cell_is_a_formula(text):
    stream = io.StringIO()
    csv.writer(stream, delimiter="\t").writerow([cell(text)])
    (row,) = csv.reader(io.StringIO(stream.getvalue()), delimiter="\t")
    assert row[0][0] not in "=+-@\t\r"
    assert row[0].removeprefix("'") == printable(text)


@pytest.mark.parametrize("text", ["-0.5", "+1e-3", "-inf", "chr1", "", "+", "-", "a=b", 3, -3])
def test_numbers_and_strands_stay(text):
    assert cell(text) == str(text)
