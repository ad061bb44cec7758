"""The judge: published size, its pictures, training, augmentation, impostors."""

import numpy as np
import pytest
import torch

from mamba_bio_audio.evaluation.judge import (
    SMALL,
    Judge,
    LogMel,
    accuracy,
    augment,
    augment_pictures,
    false_clips,
    impostors,
    joined_halves,
    judge_clips,
    train_judge,
)
from mamba_bio_audio.pipelines.audio.digits import CLIP_SAMPLES, one_second


def tones(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes of clips: pitches an octave apart, any phase and loudness, a little noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    time = np.arange(CLIP_SAMPLES) / 16_000
    clips = [
        generator.uniform(0.2, 0.8) * np.sin(2 * np.pi * 300 * 3**label * time + generator.uniform(0, 6))
        + 0.01 * generator.standard_normal(CLIP_SAMPLES)
        for label in labels
    ]
    return np.stack(clips).astype(np.float32), labels.astype(np.int64)


def test_published_size_and_shapes() -> None:
    judge = Judge("resnext")
    assert judge.num_parameters() == 34_425_546
    features, logits = judge.eval()(torch.zeros(2, CLIP_SAMPLES))
    assert (features.shape, logits.shape) == ((2, 1024), (2, 10))
    assert Judge("small").num_parameters() < 300_000


def test_pictures_are_relative_to_the_loudest_point() -> None:
    clips = torch.from_numpy(tones(3, 0)[0])
    pictures = LogMel()(clips)
    assert pictures.shape == (3, 1, 32, 32)
    assert pictures.amax((1, 2, 3)) == pytest.approx([0, 0, 0], abs=1e-6)
    assert pictures.min() >= -1
    torch.testing.assert_close(LogMel()(clips * 0.5), pictures, atol=1e-4, rtol=0)
    # The band of the tone rises with its class.
    assert pictures[:, 0].mean(2).argmax(1).diff().min() > 0
    assert torch.isfinite(LogMel()(torch.zeros(1, CLIP_SAMPLES))).all()


def kinds(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes that differ in texture: a tone, noise, and clicks."""
    generator = np.random.default_rng(seed)
    clips, labels = tones(count, seed)
    clips[1::3] = 0.3 * generator.standard_normal(clips[1::3].shape)
    clips[2::3] = 0.01 * clips[2::3]
    for row in clips[2::3]:
        row[generator.integers(0, 2000) :: 4000] = 0.9
    return clips, labels


def test_training_tells_classes_apart_and_is_reproducible() -> None:
    clips, labels = kinds(60, 1)
    valid, valid_labels = kinds(18, 2)
    config = SMALL._replace(epochs=6, batch_size=12)
    judge, rows = train_judge(clips, labels, valid, valid_labels, config)
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert accuracy(judge, *kinds(30, 3)) > 0.9
    judged = judge_clips(judge, valid, batch_size=5)
    assert judged.features.shape == (18, 128)
    np.testing.assert_allclose(judged.probabilities.sum(1), 1)
    np.testing.assert_allclose(judged.probabilities, judge_clips(judge, valid).probabilities, atol=1e-5)
    again, _ = train_judge(clips, labels, valid, valid_labels, config)
    assert torch.equal(again.head.weight, judge.head.weight)


def test_augmentation_keeps_shapes_and_about_half_of_everything() -> None:
    clips = torch.from_numpy(tones(200, 4)[0][:, :4000].copy())
    generator = np.random.default_rng(0)
    changed = augment(clips, generator, [np.zeros(9000, np.float32)])
    assert changed.shape == clips.shape
    assert torch.isfinite(changed).all()
    same = (changed - clips).abs().amax(1) < 1e-6
    # Neither gain nor speed nor noise: one in eight.
    assert 0.04 < same.float().mean() < 0.25
    pictures = torch.linspace(-1, 0, 32).expand(100, 1, 32, 32)
    moved = augment_pictures(pictures, generator)
    assert moved.shape == pictures.shape
    assert moved.min() >= -1 - 1e-5
    assert moved.max() <= 1e-5
    assert 0.1 < ((moved - pictures).abs().amax((1, 2, 3)) < 1e-5).float().mean() < 0.45


def test_impostors_are_as_loud_and_made_of_the_same() -> None:
    clips = tones(6, 5)[0]
    made = impostors(clips)
    np.testing.assert_array_equal(made["reversed"][:, ::-1], clips)
    np.testing.assert_array_equal(np.sort(made["shuffled"]), np.sort(clips))
    np.testing.assert_allclose(made["noise"].std(1), clips.std(1), rtol=0.1)
    # Shaped noise is loud where the clip is, in its bands, and shares no samples with it.
    clips[:, 8000:] = 0
    shaped = impostors(clips)["shaped noise"]
    assert np.abs(shaped[:, 8800:]).max() < 1e-3
    np.testing.assert_allclose(shaped[:, :8000].std(1), clips[:, :8000].std(1), rtol=0.1)
    pitch, of_clip = (np.abs(np.fft.rfft(x)).argmax(1) for x in (shaped, clips))
    np.testing.assert_allclose(pitch, of_clip, atol=50)
    assert max(abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(shaped, clips, strict=True)) < 0.9
    assert len(one_second(np.ones(20_000))) == len(one_second(np.ones(5))) == CLIP_SAMPLES


def test_false_clips_are_fresh_and_leave_silence_in_its_place() -> None:
    clips = np.zeros((400, 4000), np.float32)
    clips[:, 1000:2000] = np.linspace(0.1, 0.9, 1000)
    generator = np.random.default_rng(0)
    made = false_clips(clips, generator)
    assert made.dtype == np.float32
    assert np.isfinite(made).all()
    # Few pieces may come in their own order.
    assert (np.abs(made - clips).max(1) > 0.01).mean() > 0.98
    assert not np.array_equal(false_clips(clips, generator), made)
    np.testing.assert_array_equal(false_clips(clips, np.random.default_rng(0)), made)
    # About half of them have sound only where the clip has; backwards is a quarter of either half.
    kept = (np.abs(made[:, :1000]).max(1) == 0) & (np.abs(made[:, 2000:]).max(1) == 0)
    assert 0.4 < kept.mean() < 0.65
    inside = (made[:, 1000:2000] == clips[:, 1999:999:-1]).all(1) & kept
    outside = (made == clips[:, ::-1]).all(1)
    assert 0.07 < inside.mean() < 0.19
    assert 0.07 < outside.mean() < 0.19
    # Nothing breaks on silence and on a sound of one sample.
    tiny = np.zeros((40, 4000), np.float32)
    tiny[20:, 7] = 0.5
    assert np.isfinite(false_clips(tiny, generator)).all()


def test_joined_halves_are_of_two_classes() -> None:
    clips = np.zeros((2, 4000), np.float32)
    clips[0, 1000:2000], clips[1, 500:3500] = 0.25, 0.75
    made = joined_halves(clips, np.array([0, 1]))
    assert (made[:, :500] == 0).all()
    # 500 samples of the first and 1,500 of the second, faded over 80; and the other way round.
    assert (made[0, 1000:1420] == 0.25).all()
    assert (made[0, 1500:2920] == 0.75).all()
    assert (made[0, 2920:] == 0).all()
    assert (np.diff(made[0, 1419:1501]) > 0).all()
    assert (made[1, 500:1920] == 0.75).all()
    assert (made[1, 2000:2420] == 0.25).all()
    assert (made[1, 2420:] == 0).all()


def words(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes of clips that are each two notes, told apart by the first."""
    clips, labels = tones(count, seed)
    second = 0.5 * np.sin(2 * np.pi * 5000 * np.arange(CLIP_SAMPLES) / 16_000)
    clips[:, 8000:] = second[8000:]
    return clips, labels


def test_a_recogniser_refuses_impostors_of_clips_it_never_heard() -> None:
    config = SMALL._replace(epochs=8, batch_size=12)
    clips, labels = words(60, 1)
    recogniser, _ = train_judge(clips, labels, *words(18, 2), config, no_digit=True)
    assert recogniser.head.out_features == 4
    unheard, unheard_labels = words(30, 3)
    assert accuracy(recogniser, unheard, unheard_labels) > 0.8
    refused = [accuracy(recogniser, made, np.full(len(made), 3)) for made in impostors(unheard).values()]
    assert np.mean(refused) > 0.85
    assert min(refused) > 0.6
