"""One token per base, in the vocabulary of HyenaDNA and Caduceus.

[CLS] 0, [SEP] 1, [BOS] 2, [MASK] 3, [PAD] 4, [RESERVED] 5, [UNK] 6, A 7, C 8, G 9, T 10, N 11. Tokens do not depend on
case. Every letter other than A, C, G and T becomes N: IUPAC ambiguity codes, gaps, and even the U of RNA, because genome
archives write RNA genomes with T, so that a U indicates the wrong kind of file rather than a thymine.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mamba_bio_audio.errors import InputError

TOKENS = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
# What sequences are written with: bases, ambiguity codes, gaps and stops.
LETTERS = bytes([*range(65, 91), *range(97, 123), *b"-*."])
PAD, A, C, G, T, N = 4, 7, 8, 9, 10, 11

_ENCODE = np.full(256, N, dtype=np.uint8)
for _letter, _id in (("A", A), ("C", C), ("G", G), ("T", T)):
    _ENCODE[ord(_letter)] = _ENCODE[ord(_letter.lower())] = _id
_DECODE = np.frombuffer(b"NNNNNNNACGTN", dtype=np.uint8)
_COMPLEMENT = np.arange(256, dtype=np.uint8)
_COMPLEMENT[[A, C, G, T]] = [T, G, C, A]


class DnaTokenizer:
    """Codec between DNA text and token ids: a table lookup in both directions.

    >>> codec = DnaTokenizer()
    >>> codec.encode("acgtR")
    array([ 7,  8,  9, 10, 11], dtype=uint8)
    >>> codec.decode(codec.reverse_complement(codec.encode("AACGN")))
    'NCGTT'
    """

    name = "dna"
    unit = "base"
    description = "bases as letters"
    start_id = None
    vocab = TOKENS
    vocab_size = len(TOKENS)
    pad_id = PAD
    unknown_id = N
    base_ids = (A, C, G, T)
    sample_ids = (A, C, G, T)

    def encode(self, sequence: str | bytes | bytearray | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Token ids of a sequence.

        Args:
            sequence: text, or ASCII codes as bytes or a uint8 array of any shape.

        Returns:
            uint8, one id per character, same shape as an array input.
        """
        if isinstance(sequence, str):
            sequence = sequence.encode("ascii", "replace")
        if isinstance(sequence, bytes | bytearray):
            sequence = np.frombuffer(sequence, dtype=np.uint8)
        if sequence.dtype != np.uint8:
            raise ValueError(f"encode() takes ASCII codes of dtype uint8, not {sequence.dtype}; pass text or bytes")
        return _ENCODE[sequence]

    def check_sequence(self, text: str) -> None:
        """Refuse what is not the text of one sequence: letters, gaps and stops.

        Raises:
            InputError: something else, or a text with another character; names the first one and its position, from 1.
        """
        if not isinstance(text, str):
            raise InputError(f"a sequence of DNA is text, not {type(text).__name__}; token ids need no encoding")
        if foreign := text.encode("ascii", "replace").translate(None, LETTERS):
            at = next(i for i, letter in enumerate(text) if letter.encode("ascii", "replace")[0] == foreign[0])
            raise InputError(
                f"{text[at]!r} at position {at + 1:,} is not a base; pass only the letters of one sequence"
            )

    def check_prompt(self, text: str) -> None:
        """Refuse a prompt that contains anything but A, C, G, T and N, in upper or lower case.

        Raises:
            InputError: it does; names the first such character and its position, from 1.
        """
        at = next((i for i, letter in enumerate(text) if letter not in "ACGTNacgtn"), None)
        if at is not None or not text:
            where = f"has {text[at]!r} at position {at + 1:,}" if at is not None else "is empty"
            raise InputError(f"the prompt {where}; use only A, C, G, T and N")

    def decode(self, ids: ArrayLike) -> str:
        """Text of a one-dimensional sequence of ids: A, C, G, T, and N for every other token."""
        values = np.asarray(ids)
        if values.ndim != 1:
            raise ValueError(f"decode() takes one sequence of ids, not an array of shape {values.shape}")
        if not values.size:
            return ""
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"decode() takes integer ids, not {values.dtype}")
        if values.min() < 0 or values.max() >= self.vocab_size:
            raise ValueError(f"token ids must be in 0..{self.vocab_size - 1}, found {values.min()}..{values.max()}")
        return _DECODE[values].tobytes().decode("ascii")

    def reverse_complement(self, ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The opposite strand read 5' to 3': positions reversed, A <-> T, C <-> G, all else kept."""
        return _COMPLEMENT[np.asarray(ids, dtype=np.uint8)[..., ::-1]]

    def count_unknown(self, ids: NDArray[np.uint8]) -> int:
        """Number of ids that are not A, C, G or T."""
        values = np.asarray(ids)
        return int(values.size - np.count_nonzero((values >= A) & (values <= T)))

    def __repr__(self) -> str:
        return "DnaTokenizer()"
