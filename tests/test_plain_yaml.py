"""YAML as plain text: what is read, and everything that computes or is ambiguous refused with its line."""

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.plain_yaml import Plain, dump, parse


def test_words_stay_as_they_were_written():
    read = parse("a: 010\nb: [yes, 1e5, 2026-01-01]\nc: {d: ~}\ne:\ng: ${oc.env:HOME}\nf: 'no'\n", "here")
    assert read == {
        "a": "010",
        "b": ["yes", "1e5", "2026-01-01"],
        "c": {"d": "~"},
        "e": "",
        "f": "no",
        "g": "${oc.env:HOME}",
    }
    assert isinstance(read["a"], Plain)
    assert not isinstance(read["f"], Plain)
    assert read["e"].null
    assert read["c"]["d"].null
    assert not read["a"].null
    assert parse("# nothing\n", "here") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x", "here, line 1: anchors"),
        ("a: [1]\nb: *x", "here, line 2: anchors"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "here, line 1: anchors"),
        ("a: !!python/object/apply:os.system [id]", "here, line 1: tags"),
        ("a: !!python/name:os.system", "here, line 1: tags"),
        ("a: !!binary aGVsbG8=", "here, line 1: tags"),
        ("!mine {a: 1}", "here, line 1: tags"),
        ("a: 1\nb: 2\na: 3", "here, line 3: duplicate key 'a'"),
        ("a: {b: 1, 'b': 2}", "here, line 1: duplicate key 'b'"),
        ("? [1]\n: 2", "here, line 1: a key must be a word"),
        ("a: 1\n---\nb: 2", "here, line 3: a second document"),
        ("[" * 100_000, "nested deeper than 32 levels"),
        ("{a: " * 100_000, "nested deeper than 32 levels"),
        ("a: b: c", "here is not valid YAML"),
        ("a: \x1b[31m", "here is not valid YAML"),
        ("a: [", "here is not valid YAML"),
        ("a: " + "x" * (4 << 20), "characters are too long for a configuration"),
    ],
)
def test_what_is_more_than_plain_is_refused(text, message):
    with pytest.raises(InputError) as error:
        parse(text, "here")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "word", ["no", "010", "~", "null", "1e5", "# x", "a: b", "é\u202e", "\udce9", "a\nb", "[x]", ""]
)
def test_what_is_written_is_read_again(word):
    read = parse(dump({"a": word, "b": [word], "c": None, "d": 1e-5}), "here")
    assert read["a"] == word
    assert read["b"] == [word]
    assert read["c"].null
    assert float(read["d"]) == 1e-5
