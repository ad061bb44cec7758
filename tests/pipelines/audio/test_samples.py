"""The report of sampled sound beside held-out recordings, and the distance by which settings are fitted."""

import numpy as np
import pytest

from mamba_bio_audio.pipelines.audio import samples as report
from mamba_bio_audio.pipelines.audio.measures import JUDGED, analyse, measure
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec
from mamba_bio_audio.pipelines.spans import Span

CODEC, RATE = AudioCodec(sample_rate_hz=2000), 2000


def melody(seconds, seed):
    """Notes that die away, in a little noise, as levels."""
    generator = np.random.default_rng(seed)
    time = np.arange(seconds * RATE) / RATE
    since, pitches = time % 0.25, generator.uniform(150, 600, int(seconds * 4) + 1)
    pitch = pitches[(time / 0.25).astype(int)]
    audio = 0.4 * np.exp(-since / 0.1) * np.sin(2 * np.pi * pitch * since) + generator.normal(0, 0.002, len(time))
    return CODEC.encode(audio.astype(np.float32))


class Recordings:
    """A corpus of two recordings, of which one is validation and one is test."""

    def __init__(self, seconds=30):
        self.levels = {"valid": melody(seconds, 1), "test": melody(seconds, 2), "train": melody(seconds, 3)}

    def spans(self, split):
        return [Span(split, 0, len(self.levels[split]))]

    def fetch(self, span):
        return self.levels[span.record][span.start : span.end]


def noise(seconds, seed):
    return CODEC.encode(np.random.default_rng(seed).normal(0, 0.2, seconds * RATE).astype(np.float32))


def test_held_out_pieces_are_whole_and_from_the_splits_that_were_asked_for():
    corpus = Recordings()
    pieces = report.held_out(corpus, 10 * RATE)
    assert {len(piece) for piece in pieces} == {10 * RATE}
    assert 30 < len(pieces) <= 64
    wholes = b"".join(corpus.levels[split].tobytes() for split in ("valid", "test"))
    assert all(piece.tobytes() in wholes for piece in pieces)
    only = report.held_out(corpus, 10 * RATE, ("valid",))
    assert all(piece.tobytes() in corpus.levels["valid"].tobytes() for piece in only)
    # Clips that are all shorter come whole.
    assert [len(piece) for piece in report.held_out(Recordings(3), 10 * RATE)] == [3 * RATE] * 2


def test_recordings_are_inside_and_noise_is_not():
    named = [report.Sample("melody", melody(10, 7)), report.Sample("noise", noise(10, 7))]
    found = report.sample_report(named, CODEC, Recordings())
    seconds, whole = found["pieces"]
    assert (seconds["seconds"], whole["seconds"]) == (1, 10)
    assert (seconds["count"], whole["count"]) == (20, 2)
    good, bad = (row["pieces"][1]["outside"][0] for row in found["rows"])
    assert len(good) <= 1
    assert {"flatness", "entropy", "level"} <= set(bad)
    assert whole["inside"]["entropy"] == 1
    assert 0.5 < whole["held_out_inside_all"] < 1
    assert all(0.85 < whole["held_out_inside"][name] <= 1 for name in JUDGED)
    assert seconds["inside_all"] == sum(not names for row in found["rows"] for names in row["pieces"][0]["outside"])
    text = report.describe_samples(found)
    assert "held out: 5 %" in text
    assert "of the held-out pieces themselves" in text
    assert report.picture(found).startswith(b"\x89PNG")


def test_numbers_are_those_of_the_measures():
    named = [report.Sample("a", melody(5, 7)), report.Sample("b", melody(5, 8))]
    corpus = Recordings()
    found = report.sample_report(named, CODEC, corpus)
    limit = found["click_limit"]
    for (_, levels, _), row in zip(named, found["rows"], strict=True):
        sound = analyse(levels, CODEC)
        for second in range(5):
            own = measure(sound, second * RATE, (second + 1) * RATE, limit)
            shown = {name: values[second] for name, values in row["pieces"][0]["values"].items()}
            assert shown == pytest.approx(own, rel=1e-4, abs=1e-6)
    recorded = [analyse(levels, CODEC) for levels in report.held_out(corpus, 5 * RATE)]
    level = [measure(sound, 0, 5 * RATE, limit)["level"] for sound in recorded]
    assert found["pieces"][1]["held_out"]["level"] == pytest.approx(np.percentile(level, (5, 50, 95)))


def test_without_recordings_there_is_no_verdict():
    found = report.sample_report([report.Sample("a", melody(1, 7))], CODEC)
    (part,) = found["pieces"]
    assert "held_out" not in part
    assert found["rows"][0]["pieces"][0]["outside"] is None
    assert "inside" not in report.describe_samples(found)
    assert report.picture(found).startswith(b"\x89PNG")


def test_a_seam_is_heard():
    time = np.arange(4 * RATE) / RATE
    tone = 0.3 * np.sin(2 * np.pi * 101.3 * time) + np.random.default_rng(0).normal(0, 0.003, len(time))
    whole = CODEC.encode(tone.astype(np.float32))
    prompt, rest = whole[: 2 * RATE], whole[2 * RATE :]
    # Half a second later in the tone, at twice its level.
    jump = CODEC.encode((2 * tone[2 * RATE + 1007 :]).astype(np.float32))
    found = report.sample_report(
        [report.Sample("on", rest, prompt), report.Sample("jump", jump, prompt)], CODEC, Recordings()
    )
    smooth, loud = (
        dict(zip(found["seam"]["own"], values, strict=True))
        for values in zip(*found["seam"]["own"].values(), strict=True)
    )
    assert smooth["level"] == pytest.approx(0, abs=0.3)
    assert loud["level"] == pytest.approx(6.02, abs=0.3)
    assert loud["error"] > 10 > 5 > smooth["error"]
    assert set(found["seam"]["held_out"]) == {"error", "level"}
    assert "where the prompt ends" in report.describe_samples(found)


def test_what_lies_at_an_end_of_a_range_counts_as_half():
    ranges = {"level": [-30.0, -27.0, -20.0], "clicks": [0.0, 0.0, 1.0], "onsets": [2.0, 2.0, 2.0]}
    values = {
        "level": np.array([-30.0, -25.0, -20.0, -19.0, -10.0]),
        "clicks": np.array([0.0, 0.5, 1.0, 0.9, 3.0]),
        "onsets": np.array([2.0, 2.0, 3.0, 1.0, 2.0]),
    }
    found = report.safely(values, ranges)
    assert found["level"] == pytest.approx([0.5, 1, 0.5, 0.1587, 0], abs=1e-4)
    # There are no fewer clicks than none.
    assert found["clicks"] == pytest.approx([1, 1, 0.5, 0.8413, 0], abs=1e-4)
    assert found["onsets"].tolist() == [1, 1, 0, 0, 1]


def test_the_distance_is_small_for_recordings_and_large_for_noise():
    matcher = report.SoundMatcher(Recordings(), CODEC, 3 * RATE)
    near, far = (matcher.match([matcher.measure(make(3, seed)) for seed in (11, 12, 13)]) for make in (melody, noise))
    assert set(near.parts) == set(JUDGED) == set(matcher.recorded_values())
    assert near.distance == pytest.approx(sum(near.parts.values()))
    assert near.distance < 2 < 5 < far.distance
    assert (far.inside["flatness"], near.inside["level"] > 0.3) == (0, True)
    themselves = [matcher.measure(levels) for levels in report.held_out(Recordings(), 3 * RATE)]
    assert matcher.match(themselves).distance == pytest.approx(0, abs=1e-9)
    # One piece that is noise counts, but not without end.
    spoiled = matcher.match([*themselves[1:], matcher.measure(noise(3, 1))])
    assert 0 < spoiled.distance < far.distance / 2
    # What is not kept does not count.
    pair = [matcher.measure(melody(3, 11)), matcher.measure(noise(3, 1))]
    assert matcher.match(pair, [1, 0]).inside == matcher.match(pair[:1]).inside
    assert matcher.match(pair, [1, 0]).safely == matcher.match(pair[:1]).safely != matcher.match(pair).safely
    assert matcher.match(pair, [1, 0]).distance == pytest.approx(matcher.match(pair[:1]).distance)
    assert matcher.match(pair, [0, 1]).values == matcher.match(pair[1:]).values
