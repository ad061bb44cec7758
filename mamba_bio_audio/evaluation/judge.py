"""The judge of spoken digits: a classifier of one-second clips whose features and probabilities score generated clips.

    resnext   ResNeXt-29, cardinality 8, base width 64 (Xie et al. 2017), in the layout for 32 x 32 images with one
              input channel: 34,425,546 parameters, 1,024 features. The network behind the published SC09 scores, but
              trained here.
    small     four convolutions, 0.2 million parameters, 128 features, for CPUs.

A clip is 16,000 samples, cut or padded with silence, seen as 32 mel bands x 32 frames: power in dB below its own
loudest point, down to -80. Scores from another judge, even another training of the same network, cannot be compared with
published ones; its own accuracy on clips it never saw tells how far it can be trusted.

A judge names a digit for anything, and is often as certain about garbage as about speech. Whether a clip is a digit at
all is therefore decided by a second network, the recogniser: the same network with one more class, "no digit", which it
learns from impostors made afresh for every batch (`false_clips`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mamba_bio_audio.evaluation.audio_metrics import Judged
from mamba_bio_audio.pipelines.audio.digits import CLIP_SAMPLES, RATE_HZ, one_second

Kind = Literal["small", "resnext"]
_MELS, _FFT, _HOP, _FLOOR_DB = 32, 2048, 512, 80.0


class JudgeConfig(NamedTuple):
    """Training settings of a judge; the defaults are those of the published one."""

    kind: Kind = "resnext"
    epochs: int = 70
    batch_size: int = 96
    lr: float = 1e-2
    weight_decay: float = 1e-2
    augment: bool = True
    seed: int = 0


SMALL = JudgeConfig(kind="small", epochs=20, lr=3e-2, weight_decay=1e-3)


class LogMel(nn.Module):
    """Turns clips (B, 16000) into images (B, 1, 32, 32): dB below each clip's maximum, divided by 80, so 0 down to -1."""

    def __init__(self) -> None:
        super().__init__()
        from torchaudio.transforms import MelSpectrogram

        self.mel = MelSpectrogram(
            RATE_HZ,
            n_fft=_FFT,
            hop_length=_HOP,
            n_mels=_MELS,
            power=2,
            norm="slaney",
            mel_scale="slaney",
            pad_mode="constant",
        )

    def forward(self, clips: Tensor) -> Tensor:
        power = self.mel(clips)
        level = 10 * torch.log10(power.clamp(min=1e-10))
        level = (level - level.amax((1, 2), keepdim=True)).clamp(min=-_FLOOR_DB)
        return level[:, None] / _FLOOR_DB


class _Bottleneck(nn.Module):
    """ResNeXt's block: 1x1, grouped 3x3, 1x1, and a shortcut."""

    def __init__(self, width: int, out: int, stride: int, cardinality: int, base: int) -> None:
        super().__init__()
        inner = cardinality * base * (out // 256)
        self.body = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=cardinality, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if width != out or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Judge(nn.Module):
    """Maps clips (B, 16000) in [-1, 1] to features and logits.

    Args:
        kind: the network.
        classes: number of classes.
    """

    def __init__(self, kind: Kind = "resnext", classes: int = 10) -> None:
        super().__init__()
        self.spectrum = LogMel()
        layers: list[nn.Module]
        if kind == "resnext":
            layers = [nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
            width = 64
            for out, stride in ((256, 1), (512, 2), (1024, 2)):
                for block in range(3):
                    layers.append(_Bottleneck(width, out, stride if block == 0 else 1, cardinality=8, base=64))
                    width = out
        else:
            layers, width = [], 1
            for out in (32, 64, 96, 128):
                layers += [
                    nn.Conv2d(width, out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(),
                    nn.MaxPool2d(2),
                ]
                width = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def features(self, pictures: Tensor) -> Tensor:
        """Features (B, d), the input of the last layer."""
        return self.body(pictures).mean((2, 3))

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(self.spectrum(clips))
        return features, self.head(features)

    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())


def judge_clips(judge: Judge, clips: NDArray[np.float32], batch_size: int = 256) -> Judged:
    """Features and class probabilities of clips (n, 16000), on the judge's device."""
    device = next(judge.parameters()).device
    features, probabilities = [], []
    judge.eval()
    with torch.inference_mode():
        for low in range(0, len(clips), batch_size):
            found, logits = judge(torch.from_numpy(clips[low : low + batch_size]).to(device))
            features.append(found.float().cpu())
            probabilities.append(logits.double().softmax(1).cpu())
    return Judged(torch.cat(features).numpy(), torch.cat(probabilities).numpy())


def accuracy(judge: Judge, clips: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of clips whose most probable class is the right one."""
    return float((judge_clips(judge, clips).probabilities.argmax(1) == labels).mean())


def train_judge(
    clips: NDArray[np.float32],
    labels: NDArray[np.int64],
    valid_clips: NDArray[np.float32],
    valid_labels: NDArray[np.int64],
    config: JudgeConfig,
    *,
    no_digit: bool = False,
    device: str = "cpu",
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[Judge, list[dict[str, Any]]]:
    """Train a judge: SGD with momentum, class-balanced sampling with replacement, rate cut when validation stagnates.

    Args:
        clips, labels: (n, 16000) and (n,).
        valid_clips, valid_labels: determine the learning rate, and which epoch's weights are kept.
        config: training settings.
        no_digit: train a recogniser, with one more class at the end for impostors; these make up half of every batch,
            and half of the clips to validate on.
        device: "cpu" or "cuda".
        progress: called with (epochs done, epochs in all).

    Returns:
        The judge of the best epoch in eval mode, and one row per epoch.
    """
    classes = int(labels.max()) + 1
    if no_digit:
        false = false_clips(valid_clips, np.random.default_rng(config.seed))
        valid_clips = np.concatenate([valid_clips, false])
        valid_labels = np.concatenate([valid_labels, np.full(len(false), classes)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        judge = Judge(config.kind, classes + no_digit)
    judge = judge.to(device)
    optimizer = torch.optim.SGD(judge.parameters(), config.lr, momentum=0.9, weight_decay=config.weight_decay)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=5)
    generator = np.random.default_rng(config.seed)
    noise = [pink_noise(2 * CLIP_SAMPLES, generator) for _ in range(64)]
    weights = 1 / np.bincount(labels)[labels]
    weights /= weights.sum()
    best, kept, rows = -1.0, {}, []
    batches = max(1, len(clips) // config.batch_size)
    for epoch in range(config.epochs):
        judge.train()
        order = generator.choice(len(clips), (batches, min(config.batch_size, len(clips))), p=weights)
        losses = []
        for index in order:
            heard, named = clips[index], labels[index]
            if no_digit:
                half = len(index) // 2
                heard[half:], named[half:] = false_clips(heard[half:], generator), classes
            x, y = torch.from_numpy(heard).to(device), torch.from_numpy(named).to(device)
            if config.augment:
                x = augment(x, generator, noise)
            pictures = judge.spectrum(x)
            if config.augment:
                pictures = augment_pictures(pictures, generator)
            loss = F.cross_entropy(judge.head(judge.features(pictures)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        right = accuracy(judge, valid_clips, valid_labels)
        rows.append({"epoch": epoch, "train_nats": float(torch.stack(losses).mean()), "valid_accuracy": right})
        plateau.step(1 - right)
        if right > best:
            best, kept = right, {name: tensor.detach().clone() for name, tensor in judge.state_dict().items()}
        if progress is not None:
            progress(epoch + 1, config.epochs)
    judge.load_state_dict(kept)
    return judge.eval(), rows


def augment(clips: Tensor, generator: np.random.Generator, noise: Sequence[NDArray[np.float32]]) -> Tensor:
    """Change gain (0.7 to 1.1), speed with pitch (by up to 20 %) and add noise (up to 45 %), each to half of the clips."""
    count, size = clips.shape
    device = clips.device

    def draw(low: float, high: float, otherwise: float) -> Tensor:
        values = np.where(generator.random(count) < 0.5, generator.uniform(low, high, count), otherwise)
        return torch.from_numpy(values.astype(np.float32)).to(device)[:, None]

    speed = draw(0.8, 1.2, 1.0)
    at = torch.arange(size, device=device)[None] * speed
    low = at.long().clamp(max=size - 2)
    inside = at <= size - 1
    between = at - low
    faster = clips.gather(1, low) * (1 - between) + clips.gather(1, low + 1) * between
    clips = torch.where(inside, faster, 0.0) * draw(0.7, 1.1, 1.0)
    pieces = []
    for number in generator.integers(0, len(noise), count):
        recording = noise[number]
        start = int(generator.integers(0, max(1, len(recording) - size)))
        pieces.append(one_second(recording[start:], size))
    background = np.stack(pieces)
    share = draw(0.0, 0.45, 0.0)
    return (1 - share) * clips + share * torch.from_numpy(background).to(device)


def augment_pictures(pictures: Tensor, generator: np.random.Generator) -> Tensor:
    """Stretch by up to 20 % and shift by up to 8 frames along time, each with probability one half per image."""
    count = len(pictures)
    stretch = np.where(generator.random(count) < 0.5, generator.uniform(0.8, 1.2, count), 1.0)
    shift = np.where(generator.random(count) < 0.5, generator.integers(-8, 9, count), 0)
    theta = np.zeros((count, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, 0, 2] = stretch, 1, shift * 2 / pictures.shape[-1]
    grid = F.affine_grid(torch.from_numpy(theta).to(pictures.device), list(pictures.shape), align_corners=False)
    # Beyond the edges is the floor, -1.
    return F.grid_sample(pictures + 1, grid, align_corners=False) - 1


def pink_noise(size: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Noise whose power falls with frequency, with a peak of 1."""
    spectrum = np.fft.rfft(generator.standard_normal(size))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, size)
    return (noise / np.abs(noise).max()).astype(np.float32)


def impostors(clips: NDArray[np.float32], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Clips that are not digits, four made from each clip.

    noise           white noise, as loud as the clip
    reversed        the clip backwards
    shuffled        the clip's 50 ms pieces in random order
    shaped noise    noise with the clip's spectrum and, over 50 ms, its loudness
    """
    generator = np.random.default_rng(seed)
    loud = clips.std(1, keepdims=True)
    noise = (generator.standard_normal(clips.shape) * loud).astype(np.float32)
    pieces = clips.reshape(len(clips), 20, -1)
    shuffled = np.stack([row[generator.permutation(20)] for row in pieces]).reshape(clips.shape)
    return {
        "noise": np.clip(noise, -1, 1),
        "reversed": clips[:, ::-1].copy(),
        "shuffled": shuffled,
        "shaped noise": np.stack([_shaped(clip, clip.shape[0] // 20, generator) for clip in clips]),
    }


def false_clips(clips: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """One impostor made from each clip, of the kinds of `impostors` but more varied, for training a recogniser.

    Half of them keep the silence around the sound in place, so that the position of silence gives nothing away; pieces
    are 20 to 100 ms long and cross-faded over up to 5 ms, so that clicks give nothing away.
    """
    made = clips.copy()
    for row, clip in enumerate(clips):
        part = slice(*_sounding(clip)) if generator.random() < 0.5 else slice(None)
        sound = clip[part]
        match generator.integers(4):
            case 0:
                false = np.clip(generator.standard_normal(len(sound)) * sound.std(), -1, 1)
            case 1:
                false = sound[::-1]
            case 2:
                size, fade = generator.uniform((0.02, 0), (0.1, 0.005)) * RATE_HZ
                false = _shuffled(sound, int(size), int(fade), generator)
            case _:
                false = _shaped(sound, int(generator.uniform(0.01, 0.1) * RATE_HZ), generator)
        made[row, part] = false
    return made


def joined_halves(clips: NDArray[np.float32], labels: NDArray[np.int64], seed: int = 0) -> NDArray[np.float32]:
    """The first half of each clip's sound, cross-faded over 5 ms into the second half of a clip of another class.

    Half of each is right, so these are not impostors: they show the score of a model whose sounds are right but whose
    words are not.
    """
    generator = np.random.default_rng(seed)
    made, fade = np.zeros_like(clips), RATE_HZ // 200
    for row, label in enumerate(labels):
        others = np.flatnonzero(labels != label)
        pair = clips[row], clips[generator.choice(others) if len(others) else row]
        (start, stop), (low, high) = (_sounding(clip) for clip in pair)
        first, second = pair[0][: (start + stop) // 2].copy(), pair[1][(low + high) // 2 : high].copy()
        overlap = min(fade, len(first), len(second))
        ramp = np.arange(1, overlap + 1, dtype=np.float32) / (overlap + 1)
        first[len(first) - overlap :] *= 1 - ramp
        second[:overlap] *= ramp
        at = len(first) - overlap
        end = min(at + len(second), clips.shape[1])
        made[row, : len(first)] = first
        made[row, at:end] += second[: end - at]
    return made


def _sounding(clip: NDArray[np.float32]) -> tuple[int, int]:
    """First and one past the last sample above 2 % of the peak; the whole clip if there is none."""
    loud = np.flatnonzero(np.abs(clip) > 0.02 * np.abs(clip).max())
    return (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(clip))


def _shuffled(sound: NDArray[np.float32], size: int, fade: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """At least four pieces of `size` samples in random order, each cross-faded with its predecessor; then silence."""
    size = max(1, min(size, len(sound) // 4))
    cuts = [0, *range(int(generator.integers(1, size + 1)), len(sound), size), len(sound)]
    out, at = np.zeros_like(sound), 0
    for number in generator.permutation(len(cuts) - 1):
        piece = sound[cuts[number] : cuts[number + 1]].copy()
        overlap = min(fade, len(piece), at)
        ramp = np.arange(1, overlap + 1, dtype=np.float32) / (overlap + 1)
        piece[:overlap] *= ramp
        out[at - overlap : at] *= 1 - ramp
        out[at - overlap : at - overlap + len(piece)] += piece
        at += len(piece) - overlap
    return out


def _shaped(sound: NDArray[np.float32], width: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Noise with a sound's spectrum and, smoothed over `width` samples, its loudness."""
    from scipy.ndimage import uniform_filter1d

    def loudness(x: NDArray[np.floating]) -> NDArray[np.float64]:
        power = uniform_filter1d(np.square(x, dtype=np.float64), min(width, len(x)), mode="constant")
        return np.sqrt(np.maximum(power, 1e-12))

    spectrum = np.fft.rfft(sound)
    noise = np.fft.irfft(np.abs(spectrum) * np.exp(2j * np.pi * generator.random(len(spectrum))), len(sound))
    return np.clip(noise / loudness(noise) * loudness(sound), -1, 1).astype(np.float32)
