import numpy as np
import pytest
import torch
from torchaudio.functional import mu_law_decoding, mu_law_encoding

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec

BITS = range(8, 13)
PCM16 = (np.arange(-32768, 32768) / 32768).astype(np.float32)


def noise_ratio_db(codec: AudioCodec, audio: np.ndarray) -> float:
    error = codec.decode(codec.encode(audio)) - audio
    return float(10 * np.log10((audio**2).mean() / (error**2).mean()))


@pytest.fixture(scope="module")
def laplace() -> np.ndarray:
    """Distributed as speech and music roughly are."""
    return np.clip(np.random.default_rng(0).laplace(0, 0.1, 200_000), -1, 1).astype(np.float32)


@pytest.mark.parametrize("bits", BITS)
def test_standard_mu_law_is_torchaudios(bits):
    codec = AudioCodec(bits)
    random = np.random.default_rng(bits).uniform(-1.2, 1.2, 100_000).clip(-1, 1)
    for audio in (PCM16.astype(np.float64), random):
        expected = mu_law_encoding(torch.from_numpy(audio), 2**bits).numpy()
        assert (codec.encode(audio) == expected).all()
    levels = np.arange(2**bits)
    expected = mu_law_decoding(torch.from_numpy(levels), 2**bits).numpy()
    np.testing.assert_allclose(codec.decode(levels), expected, atol=1e-6)


def test_8_bit_mu_law_of_16_bit_audio_is_torchaudios_in_single_precision():
    assert (AudioCodec().encode(PCM16) == mu_law_encoding(torch.from_numpy(PCM16), 256).numpy()).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("quantizer", ["mu-law", "linear"])
def test_standard_levels(bits, quantizer):
    codec = AudioCodec(bits, quantizer)
    levels = np.arange(codec.vocab_size)
    assert codec.vocab_size == len(codec.sample_ids) == 2**bits
    # Decoding and encoding again changes nothing, and all levels occur.
    assert (codec.encode(codec.decode(levels)) == levels).all()
    assert (np.diff(codec.decode(levels)) > 0).all()
    silence, low, high = codec.encode(np.array([0.0, -1.0, 1.0]))
    assert (silence, low, high) == (codec.zero_level, 0, codec.vocab_size - 1)
    assert codec.encode(np.array([-7.0, 7.0])).tolist() == [0, codec.vocab_size - 1]
    # The two levels beside zero lie at equal distance.
    beside = codec.decode(np.array([codec.zero_level - 1, codec.zero_level]))
    assert beside[0] == pytest.approx(-beside[1], rel=1e-4)
    assert codec.encode(PCM16).dtype == (np.uint8 if bits == 8 else np.int16)


def test_mu_law_beside_zero():
    assert AudioCodec().decode(np.array([127, 128])) == pytest.approx([-8.6e-5, 8.6e-5], rel=0.01)


@pytest.mark.parametrize(
    ("bits", "quantizer", "decibel"), [(8, "mu-law", 37.7), (10, "mu-law", 48.1), (12, "mu-law", 58.6)]
)
def test_noise_of_mu_law(laplace, bits, quantizer, decibel):
    """Audio-data 3.4."""
    assert noise_ratio_db(AudioCodec(bits, quantizer), laplace) == pytest.approx(decibel, abs=0.3)


@pytest.mark.parametrize("bits", BITS)
def test_noise_of_linear(bits):
    """A full-scale uniform signal: 6.02 dB per bit."""
    audio = np.random.default_rng(0).uniform(-1, 1, 100_000).astype(np.float32)
    assert noise_ratio_db(AudioCodec(bits, "linear"), audio) == pytest.approx(6.02 * bits, abs=0.1)


def published(audio: np.ndarray, bits: int, quantizer: str) -> np.ndarray:
    """Audio-data 3.2 and 3.3 as they stand, with logarithms."""
    levels, mu = 2**bits, 2**bits - 1
    scaled = 2 * (audio - audio.min()) / (audio.max() - audio.min() + 1e-6) - 1
    if quantizer == "mu-law":
        scaled = np.sign(scaled) * np.log1p(mu * np.abs(scaled + 1e-8)) / np.log1p(mu)
    return np.floor((scaled + 1) / 2 * (levels - 0.01) + 0.005).astype(int)


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("quantizer", ["mu-law", "linear"])
def test_sashimi_is_the_published_formula(laplace, bits, quantizer):
    codec = AudioCodec(bits, quantizer, "sashimi")
    audio = laplace.astype(np.float64) * 0.3 + 0.1
    assert (codec.encode(audio) == published(audio, bits, quantizer)).all()
    rows = audio.reshape(4, -1)
    assert (codec.encode(rows) == np.stack([published(row, bits, quantizer) for row in rows])).all()


def test_sashimi_is_what_the_reference_says_of_it():
    codec = AudioCodec(variant="sashimi")
    assert codec.encode(np.zeros(5, np.float32)).tolist() == [0] * 5
    sine = np.sin(np.linspace(0, 1000, 100_000)).astype(np.float32)
    decoded = codec.decode(codec.encode(sine))
    assert (decoded.min(), decoded.max()) == pytest.approx((-1, 0.957), abs=1e-3)
    assert noise_ratio_db(codec, sine) == pytest.approx(31.9, abs=0.1)
    assert noise_ratio_db(AudioCodec(), sine) == pytest.approx(38.4, abs=0.1)


def test_sashimi_part_of_an_item_with_the_items_range(laplace):
    codec = AudioCodec(variant="sashimi")
    whole = codec.encode(laplace)
    scale = float(laplace.min()), float(laplace.max())
    assert (codec.encode(laplace[100:200], scale=scale) == whole[100:200]).all()
    assert (codec.encode(laplace[100:200]) != whole[100:200]).any()
    with pytest.raises(ValueError, match="only to the variant sashimi"):
        AudioCodec().encode(laplace, scale=scale)


def test_level_of_a_sample_does_not_depend_on_its_place(laplace):
    codec = AudioCodec(12)
    whole = codec.encode(laplace)
    for size in (1, 3, 1001):
        parts = np.concatenate([codec.encode(laplace[low : low + size]) for low in range(0, 3003, size)])
        assert (parts[:3003] == whole[:3003]).all()


def test_mistakes_are_named():
    codec = AudioCodec()
    with pytest.raises(ValueError, match="NaN"):
        codec.encode(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="int16"):
        codec.encode(np.zeros(3, np.int16))
    with pytest.raises(ValueError, match=r"0\.\.255, found 0\.\.256"):
        codec.decode(np.array([0, 256]))
    with pytest.raises(ValueError, match="float32"):
        codec.decode(np.zeros(3, np.float32))
    with pytest.raises(InputError, match="choose 8 to 12"):
        AudioCodec(16)
    with pytest.raises(InputError, match="alaw"):
        AudioCodec(8, "alaw")
    assert "mu-law 8 bit standard" in repr(codec) == "AudioCodec(mu-law 8 bit standard, 16000 Hz)"


def test_a_prompt_in_letters_is_refused():
    with pytest.raises(InputError, match="give the prompt as levels"):
        AudioCodec().check_prompt("ACGT")
