"""The judge: published size, its pictures, training, augmentation, impostors."""

import numpy as np
import pytest
import torch

from mamba_bio_audio.evaluation.judge import (
    CLIP_SAMPLES,
    SMALL,
    Judge,
    LogMel,
    accuracy,
    augment,
    augment_pictures,
    impostors,
    judge_clips,
    one_second,
    train_judge,
)


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
    assert len(one_second(np.ones(20_000))) == len(one_second(np.ones(5))) == CLIP_SAMPLES
