"""What is said of audio beside a model's likelihood."""

from mamba_bio_audio.pipelines.audio.evaluation import AudioNotes
from mamba_bio_audio.pipelines.scores import Part, Scored, Scores, SplitScores

FOUND = SplitScores("valid", 256, "last step", 900, Scores(nats=2.0, bits=3.0, perplexity=7.4))


def notes(**more) -> AudioNotes:
    return AudioNotes(quantizer="mu-law 8 bit standard", sample_rate_hz=16_000, **more)


def test_the_best_yardstick_is_the_one_to_beat() -> None:
    text = notes(yardsticks={"unigram": 5.0, "order 1": 3.25, "LPC-32": 4.0}).text(FOUND)
    assert "valid split: 900 samples at 16,000 Hz scored once, windows of 256" in text
    assert "bits per sample             mu-law 8 bit standard\nmodel (last step)              3.0000" in text
    assert text.endswith("The model is 0.2500 bits below order 1.")
    worse = notes(yardsticks={"unigram": 2.5}, yardsticks_left_out="order 2: not counted").text(FOUND)
    assert "order 2: not counted" in worse
    assert worse.endswith("The model is 0.5000 bits above unigram: it has learnt less than that.")
    assert "The model is" not in notes().text(FOUND)


def test_parts_and_recordings_are_named() -> None:
    part = Part(max_bases=1000, windows=4, of_windows=9, of_bases=2000)
    recordings = {"a.wav": Scored(model=Scores(nats=1.0, bits=1.5, perplexity=2.7), scored=400)}
    lines = notes(part=part, recordings=recordings).text(FOUND).splitlines()
    assert lines[1].endswith("4 of 9 windows, 900 of 2,000 samples; yardsticks on the same samples")
    assert lines[-1].split() == ["a.wav", "1.5000"]
