"""Recorded clips that samples of a model are compared with."""

import numpy as np
import torch

from mamba_bio_audio.pipelines.audio.listening import ClipListener
from mamba_bio_audio.pipelines.audio.quantize import AudioCodec


def test_recorded_clips_end_where_the_recording_ends() -> None:
    codec = AudioCodec(8)
    loud = codec.encode(np.full(200, 0.5, np.float32)).astype(np.int64)
    targets = torch.from_numpy(np.where(np.arange(200) < 150, loud, -100))
    listener = ClipListener(codec, 200, [{"targets": targets}] * 3)
    # 150 samples are one frame of 1,024 each.
    assert listener._recorded_frames().shape == (3, 64)
    short = ClipListener(codec, 100, [{"targets": targets}] * 200)
    assert short._recorded_frames().shape == (64, 64)
