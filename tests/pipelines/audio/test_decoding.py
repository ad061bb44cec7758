"""A window equals the same span of the whole decode, for each codec and container."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mamba_bio_audio.pipelines.audio.decoding import Decoder, window
from mamba_bio_audio.pipelines.audio.files import decode, open_file
from mamba_bio_audio.pipelines.audio.prepare import prepare_audio

# GSM and its like are for telephones.
TELEPHONE = ("GSM610", "G721_32", "G723_24", "G723_40", "NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32")
CASES = [
    *(
        (suffix, container, subtype, {})
        for suffix, container in (
            ("wav", "WAV"),
            ("wav", "WAVEX"),
            ("wav", "RF64"),
            ("flac", "FLAC"),
            ("ogg", "OGG"),
            ("aiff", "AIFF"),
            ("caf", "CAF"),
            ("au", "AU"),
            ("w64", "W64"),
        )
        for subtype in soundfile.available_subtypes(container)
        # libsndfile cannot write the first, nor read what it writes of the second.
        if subtype not in ("MPEG_LAYER_III", "DWVW_12")
    ),
    *(
        (suffix, container, soundfile.default_subtype(container), {})
        for suffix, container in (
            ("8svx", "SVX"),
            ("avr", "AVR"),
            ("htk", "HTK"),
            ("sf", "IRCAM"),
            ("sph", "NIST"),
            ("paf", "PAF"),
            ("pvf", "PVF"),
            ("voc", "VOC"),
            ("xi", "XI"),
        )
    ),
    *(
        ("mp3", "MP3", "MPEG_LAYER_III", {"bitrate_mode": mode, "compression_level": level})
        for mode in ("CONSTANT", "AVERAGE", "VARIABLE")
        for level in (0.1, 0.5, 0.8)
    ),
]
MONO_ONLY = (*TELEPHONE, "DWVW_16", "DWVW_24", "DPCM_16", "SVX", "HTK")
RATES = {"OPUS": 48_000, "HTK": 16_000, **dict.fromkeys(TELEPHONE, 8000)}


def sound(samples: int, channels: int, rate_hz: int) -> np.ndarray:
    """Notes, a sweep and bursts of noise, so that bit rates vary."""
    time = np.arange(samples) / rate_hz
    noise = np.random.default_rng(0).normal(0, 0.05, samples) * (time % 1 > 0.6)
    notes = 0.4 * np.sin(2 * np.pi * 440 * time) * np.exp(-6 * (time % 0.5))
    mono = notes + 0.2 * np.sin(2 * np.pi * 700 * time**1.5) + noise
    return np.stack([mono, 0.5 * np.roll(mono, 1000)][:channels], 1).astype(np.float32)


def write(path: str, audio: np.ndarray, rate_hz: int, subtype: str | None = None, **options) -> None:
    """In blocks, because libsndfile crashes on millions of samples of Vorbis at once."""
    with soundfile.SoundFile(path, "w", rate_hz, audio.shape[1], subtype, **options) as file:
        for start in range(0, len(audio), 1 << 16):
            file.write(audio[start : start + (1 << 16)])


class OneRead(soundfile.SoundFile):
    """soundfile seeks to where it is after a read, which not all codecs can."""

    def seekable(self):
        return False


def whole(path: str) -> np.ndarray:
    """All of a file in one read; mono."""
    with OneRead(path) as file:
        return file.read(file.frames, dtype="float32", always_2d=True).mean(1, dtype=np.float32)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("suffix", "container", "subtype", "options"),
    CASES,
    ids=["-".join(map(str, (case[1], case[2], *case[3].values()))) for case in CASES],
)
def test_windows_are_pieces_of_the_whole_decode(tmp_path, suffix, container, subtype, options, channels):
    if channels == 2 and {subtype, container} & set(MONO_ONLY):
        pytest.skip("only mono exists")
    path, rate = str(tmp_path / f"a.{suffix}"), RATES.get(container, RATES.get(subtype, 44_100))
    # Seeking in Vorbis goes wrong behind the first pages only.
    samples = 200_000 if container == "OGG" else 80_000
    write(path, sound(samples, channels, rate), rate, subtype, format=container, **options)
    expected, file = whole(path), open_file(path)
    assert (file.frames, file.channels, file.codec) == (len(expected), channels, subtype)
    assert abs(expected).max() > 0.3
    starts = np.random.default_rng(1).integers(0, len(expected) - 3000, 12).tolist()
    for start in [0, *starts, len(expected) - 3000, len(expected) - 700, len(expected) - 1]:
        stop = min(start + 3000, len(expected))
        np.testing.assert_allclose(file.read(start, stop, rate), expected[start:stop], rtol=0, atol=1e-6)
    np.testing.assert_allclose(file.read(0, file.frames, rate), expected, rtol=0, atol=1e-6)
    decoded = decode(path, tmp_path / "decoded")
    np.testing.assert_array_equal(decoded.read(0, file.frames, rate), expected)
    np.testing.assert_array_equal(decoded.read(50_000, 53_000, rate), expected[50_000:53_000])


# Lower constant rates leave no room for an info frame.
@pytest.mark.parametrize(("mode", "level"), [("CONSTANT", 0.4), ("AVERAGE", 0.99), ("VARIABLE", 0.99)])
@pytest.mark.parametrize("rate", [8000, 24_000, 48_000])
def test_ten_frames_before_a_window_are_enough_for_the_least_bits(tmp_path, rate, mode, level):
    path = str(tmp_path / "a.mp3")
    write(path, sound(8 * rate, 1, rate), rate, bitrate_mode=mode, compression_level=level)
    expected, file = whole(path), open_file(path)
    for start in np.random.default_rng(2).integers(0, len(expected) - 1000, 40).tolist():
        np.testing.assert_allclose(
            file.read(start, start + 1000, rate), expected[start : start + 1000], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_nothing_glitches_where_blocks_of_preparation_meet(tmp_path, suffix):
    (tmp_path / "in").mkdir()
    path = str(tmp_path / "in" / f"a.{suffix}")
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.9} if suffix == "mp3" else {}
    write(path, 0.5 * sound(1_200_000, 1, 16_000), 16_000, **options)
    prepare_audio([str(tmp_path / "in")], tmp_path / "out")
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir() if not entry.name.startswith(".mba")) == [
        "a.flac",
        "intervals.tsv",
        "manifest.json",
    ]
    prepared = soundfile.read(tmp_path / "out" / "a.flac", dtype="float32")[0]
    # Half a step of 16 bits.
    np.testing.assert_allclose(prepared, whole(path), rtol=0, atol=1.0001 / 32768)


def test_windows_in_order_are_decoded_once(tmp_path, monkeypatch):
    path = str(tmp_path / "a.ogg")
    write(path, sound(2_000_000, 1, 16_000), 16_000)
    expected, decoded = whole(path), []
    frames_of = Decoder.frames_of

    def counted(self, count):
        found = frames_of(self, count)
        decoded.append(len(found))
        return found

    monkeypatch.setattr(Decoder, "frames_of", counted)
    for start in range(0, 1_990_000, 9000):
        np.testing.assert_array_equal(window(path, "VORBIS", start, start + 10_000)[:, 0], expected[start:][:10_000])
    assert sum(decoded) == 2_000_000
    decoded.clear()
    np.testing.assert_array_equal(window(path, "VORBIS", 300_000, 300_100)[:, 0], expected[300_000:300_100])
    assert sum(decoded) < 600_000


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = str(tmp_path / "a.ogg")
    write(path, sound(50_000, 1, 16_000), 16_000)
    window(path, "VORBIS", 0, 100)
    write(path, -0.5 * sound(40_000, 1, 16_000), 16_000)
    np.testing.assert_array_equal(window(path, "VORBIS", 20_000, 30_000)[:, 0], whole(path)[20_000:30_000])
