"""Headers of growing WAV files, against libsndfile."""

import numpy as np
import soundfile

from mamba_bio_audio.pipelines.audio import wav


def test_header_and_samples_are_read_back(tmp_path) -> None:
    audio = np.sin(np.arange(999) / 7)
    data = wav.header(999, 16_000) + wav.pcm(audio)
    assert len(data) == wav.HEADER_BYTES + 999 * wav.SAMPLE_BYTES
    (tmp_path / "a.wav").write_bytes(data)
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (999, 16_000, 1, "PCM_16")
    np.testing.assert_allclose(soundfile.read(tmp_path / "a.wav")[0], audio, atol=1e-4)


def test_clipping_and_the_largest_file() -> None:
    assert np.frombuffer(wav.pcm(np.array([-2.0, -1.0, 0.0, 1.0, 2.0])), "<i2").tolist() == [
        -32768,
        -32767,
        0,
        32767,
        32767,
    ]
    assert len(wav.header(wav.MAX_SAMPLES, 16_000)) == 44
