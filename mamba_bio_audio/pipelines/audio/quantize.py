"""Converts between samples and levels: mu-law and linear quantisers of 8 to 12 bits.

With Q = 2^bits levels and mu = Q - 1:

    standard mu-law   c = sign(x) ln(1 + mu |x|) / ln(1 + mu),  level = floor((c + 1) / 2 * mu + 1/2)
    standard linear   level = floor((x + 1) / 2 * (Q - 0.01) + 0.005)
    sashimi           x scaled to [-1, 1] by the minimum and maximum of the item, then compressed (mu-law) or not,
                      level = floor((c + 1) / 2 * (Q - 0.01) + 0.005),  decoded as c = level / (Q / 2) - 1

`standard` gives each level a fixed meaning: silence is always Q / 2. Its mu-law is torchaudio's (G.711 without the tables).
`sashimi` reproduces the data of the published likelihoods (Goel et al. 2022; Gu & Dao 2023): the same sound has different
levels in different windows, silence can be any level, and decoding is half a level too low. Use it only for comparisons.

What mu-law does: it keeps the quantisation error proportional to the loudness of each sample, about 38 dB below it at 8
bits. That says little about how a recording sounds: quiet passages of loud files have audible noise, where more bits help.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.config import AudioDataConfig

QUANTIZERS = ("mu-law", "linear")
VARIANTS = ("standard", "sashimi")


class AudioCodec:
    """Codec between audio in [-1, 1] and levels.

    >>> codec = AudioCodec(bits=8)
    >>> codec.encode(np.array([-1.0, 0.0, 0.5, 1.0], np.float32))
    array([  0, 128, 239, 255], dtype=uint8)

    Attributes:
        vocab_size: number of levels, Q.
        zero_level, pad_id: Q / 2, with which inputs are padded; in `standard` the level of silence.
        start_id: what inputs begin with: Q / 2, or as a token of its own Q, which is never predicted.
        sample_ids: ids that may be sampled: all of them.
        sample_rate_hz: sample rate of the audio.
        description: the quantiser in words, without which a likelihood has no meaning.
        edges: smallest sample value of level 1, 2, ..., Q - 1; in `sashimi` within the scaled range.
    """

    name = "audio"
    unit = "sample"

    def __init__(
        self,
        bits: int = 8,
        quantizer: Literal["mu-law", "linear"] = "mu-law",
        variant: Literal["standard", "sashimi"] = "standard",
        sample_rate_hz: int = 16_000,
        start: Literal["level", "token"] = "level",
    ) -> None:
        if not 8 <= bits <= 12:
            raise InputError(f"data.bits is {bits}; choose 8 to 12")
        if quantizer not in QUANTIZERS or variant not in VARIANTS:
            raise InputError(
                f"no quantiser {quantizer!r} of variant {variant!r}; choose from {QUANTIZERS} and {VARIANTS}"
            )
        self.bits = bits
        self.quantizer = quantizer
        self.variant = variant
        self.sample_rate_hz = sample_rate_hz
        self.vocab_size = 2**bits
        self.zero_level = self.pad_id = self.vocab_size // 2
        self.start_id = self.vocab_size if start == "token" else self.zero_level
        self.sample_ids = tuple(range(self.vocab_size))
        self.description = f"{quantizer} {bits} bit {variant}"
        self._dtype = np.dtype(np.uint8 if bits == 8 else np.int16)
        self.edges = self._lower_edges()
        self._values = self._decoded()

    @classmethod
    def of(cls, config: AudioDataConfig) -> AudioCodec:
        """The quantiser that a data section describes."""
        return cls(config.bits, config.quantizer, config.variant, config.sample_rate_hz, config.start)

    def check_sequence(self, samples: ArrayLike) -> None:
        """Refuse what is not one channel of samples.

        Raises:
            InputError: text, or an array of another shape or type.
        """
        if isinstance(samples, str):
            raise InputError("this model reads audio; pass float samples in [-1, 1], not text")
        values = np.asarray(samples)
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.floating):
            raise InputError(
                f"audio is float samples in [-1, 1] of shape (L,), not {values.dtype} of shape {values.shape}"
            )

    def check_prompt(self, text: str) -> None:
        """Refuse a prompt in letters.

        Raises:
            InputError: always.
        """
        raise InputError(
            "this model continues audio; give the prompt as levels: model.codec.encode(samples in [-1, 1])"
        )

    def encode(self, audio: ArrayLike, scale: tuple[float, float] | None = None) -> NDArray[np.uint8 | np.int16]:
        """Quantise audio to levels.

        Args:
            audio: float, nominally in [-1, 1]; values beyond are clipped. `sashimi` scales each row, along the last axis,
                separately.
            scale: for `sashimi`, minimum and maximum of the whole recording if `audio` is only a part of it.

        Returns:
            uint8 (8 bits) or int16, in the shape of `audio`.
        """
        samples = np.asarray(audio)
        if not np.issubdtype(samples.dtype, np.floating):
            raise ValueError(f"encode() takes floating-point audio in [-1, 1], not {samples.dtype}")
        if not np.isfinite(samples).all():
            raise ValueError("encode() takes finite audio; this has NaN or infinite samples")
        if self.variant == "sashimi":
            samples = self._scaled(samples.astype(np.float64), scale)
        elif scale is not None:
            raise ValueError("scale applies only to the variant sashimi; leave it out")
        # Edges instead of logarithms give the same result on every machine and at every position of an array.
        return np.searchsorted(self.edges, samples, side="right").astype(self._dtype)

    def decode(self, ids: ArrayLike) -> NDArray[np.float32]:
        """Turn levels into audio, float32 in [-1, 1], in the shape of `ids`; `sashimi` audio keeps its scaled range."""
        values = np.asarray(ids)
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"decode() takes integer levels, not {values.dtype}")
        if values.size and (values.min() < 0 or values.max() >= self.vocab_size):
            raise ValueError(f"levels must be in 0..{self.vocab_size - 1}, found {values.min()}..{values.max()}")
        return self._values[values]

    def centres(self) -> NDArray[np.float64]:
        """Middle of each level's range of sample values, (Q,)."""
        edges = np.concatenate([[-1.0], self.edges, [1.0]])
        return (edges[:-1] + edges[1:]) / 2

    def _lower_edges(self) -> NDArray[np.float64]:
        """Smallest sample value of level 1, 2, ..., Q - 1."""
        mu, level = self.vocab_size - 1, np.arange(1, self.vocab_size)
        if self.quantizer == "mu-law" and self.variant == "standard":
            return self._expand(2 * (level - 0.5) / mu - 1)
        edges = 2 * (level - 0.005) / (self.vocab_size - 0.01) - 1
        return self._expand(edges) if self.quantizer == "mu-law" else edges

    def _decoded(self) -> NDArray[np.float32]:
        level = np.arange(self.vocab_size)
        if self.variant == "sashimi":
            compressed = level / self.zero_level - 1
        elif self.quantizer == "linear":
            # The middle of the level.
            return (2 * (level + 0.495) / (self.vocab_size - 0.01) - 1).astype(np.float32)
        else:
            compressed = 2 * level / (self.vocab_size - 1) - 1
        return (self._expand(compressed) if self.quantizer == "mu-law" else compressed).astype(np.float32)

    def _expand(self, compressed: NDArray[np.float64]) -> NDArray[np.float64]:
        mu = self.vocab_size - 1
        return np.sign(compressed) * np.expm1(np.abs(compressed) * np.log1p(mu)) / mu

    def _scaled(self, samples: NDArray[np.float64], scale: tuple[float, float] | None) -> NDArray[np.float64]:
        if not samples.size:
            return samples
        if scale is None:
            low, high = samples.min(-1, keepdims=True), samples.max(-1, keepdims=True)
        else:
            low, high = np.float64(scale[0]), np.float64(scale[1])
        scaled = 2 * (samples - low) / (high - low + 1e-6) - 1
        # The published code compresses |x + 1e-8| and keeps the sign of x.
        return np.sign(scaled) * np.abs(scaled + 1e-8) if self.quantizer == "mu-law" else scaled

    def __repr__(self) -> str:
        return f"AudioCodec({self.description}, {self.sample_rate_hz} Hz)"
