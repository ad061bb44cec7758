from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna.tokenizer import TOKENS, DnaTokenizer

codec = DnaTokenizer()
any_letters = st.text(st.characters(min_codepoint=1, max_codepoint=255))


def test_vocabulary_is_that_of_hyenadna_and_caduceus() -> None:
    assert (
        *("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]"),
        *("A", "C", "G", "T", "N"),
    ) == TOKENS
    assert (codec.name, codec.vocab_size, codec.pad_id, codec.unknown_id) == ("dna", 12, 4, 11)
    assert codec.base_ids == codec.sample_ids == (7, 8, 9, 10)


@given(any_letters)
def test_encode_equals_a_loop(text: str) -> None:
    expected = [{"A": 7, "C": 8, "G": 9, "T": 10}.get(letter.upper(), 11) for letter in text]
    assert codec.encode(text).tolist() == expected
    assert codec.count_unknown(codec.encode(text)) == expected.count(11)


@given(any_letters)
def test_decode_inverts_encode(text: str) -> None:
    expected = "".join(letter.upper() if letter in "ACGTacgt" else "N" for letter in text)
    assert codec.decode(codec.encode(text)) == expected


@given(st.text("ACGTNacgtnRYK"))
def test_reverse_complement(text: str) -> None:
    ids = codec.encode(text)
    pairs = {"A": "T", "C": "G", "G": "C", "T": "A"}
    expected = "".join(pairs.get(letter.upper(), "N") for letter in reversed(text))
    assert codec.decode(codec.reverse_complement(ids)) == expected
    assert (codec.reverse_complement(codec.reverse_complement(ids)) == ids).all()


def test_reverse_complement_of_a_batch_turns_each_row() -> None:
    rows = ["AACGT", "TTTGN", "CCAGA"]
    ids = np.stack([codec.encode(row) for row in rows])
    turned = codec.reverse_complement(ids)
    assert [codec.decode(row) for row in turned] == ["ACGTT", "NCAAA", "TCTGG"]
    assert (codec.reverse_complement(ids[None])[0] == turned).all()


def test_reverse_complement_keeps_special_tokens() -> None:
    assert codec.reverse_complement(np.arange(12, dtype=np.uint8)).tolist() == [
        *(11, 7, 8, 9, 10),
        *(6, 5, 4, 3, 2, 1, 0),
    ]


@pytest.mark.parametrize("given_as", ["text", "bytes", "array"])
def test_encode_input_kinds(given_as: str) -> None:
    value: Any = {"text": "ACGTU", "bytes": b"ACGTU", "array": np.frombuffer(b"ACGTU", dtype=np.uint8)}[given_as]
    ids = codec.encode(value)
    assert ids.dtype == np.uint8
    assert ids.tolist() == [7, 8, 9, 10, 11]


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        codec.encode(np.zeros(3, dtype=np.int64))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"0\.\.11"):
        codec.decode([12])
    with pytest.raises(ValueError, match="one sequence"):
        codec.decode([[7], [8]])
    assert codec.decode([]) == ""


@pytest.mark.parametrize(
    ("text", "shown"), [("", "is empty"), ("ACGU", "'U' at position 4"), ("-", "'-' at position 1")]
)
def test_prompts_are_written_in_bases(text: str, shown: str) -> None:
    codec.check_prompt("ACGTNacgtn")
    with pytest.raises(InputError, match=shown):
        codec.check_prompt(text)
