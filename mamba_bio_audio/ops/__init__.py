"""The operations of the package, and the only door into `kernels/`.

    selective_scan          the state space recurrence of Mamba, real or complex, selective or time-invariant
    causal_conv1d           short depthwise causal convolution
    ssd                     the state space dual: the recurrence of Mamba-2, retention and linear attention
    rms_norm                normalisation with a fp32 residual stream
    gated_rms_norm          normalisation of groups of channels with a gate
    linear_cross_entropy    output head and loss without all logits
    mamba_mixer             a whole Mamba layer: projections, convolution and scan
    mamba2_mixer            a whole Mamba-2 layer: projections, convolution, dual and gated norm

Every operation takes `backend`: "auto" (the fastest that fits the inputs), "triton" (CUDA), "torch" (any
device; the CPU path) or "reference" (sequential and obvious, differentiable to any order, for tests).
Inputs are channels-last and never mutated; states go in and come out with gradients both ways. Letters: B
batch, L length, D channels, N states, W filter width, V vocabulary.

Each file holds one operation: signature, checks, choice of path, and its registration as an operator for
torch.compile and torch.export. They share `calls.py` and `operators.py`.
"""

from mamba_bio_audio.kernels.mixer.inputs import Mamba2Weights
from mamba_bio_audio.ops.calls import live_backend, plain_torch
from mamba_bio_audio.ops.causal_conv1d import causal_conv1d
from mamba_bio_audio.ops.gated_rms_norm import gated_rms_norm
from mamba_bio_audio.ops.linear_cross_entropy import linear_cross_entropy
from mamba_bio_audio.ops.mamba2_mixer import mamba2_mixer
from mamba_bio_audio.ops.mamba_mixer import MixerWeights, mamba_mixer
from mamba_bio_audio.ops.rms_norm import rms_norm
from mamba_bio_audio.ops.selective_scan import selective_scan
from mamba_bio_audio.ops.ssd import ssd

__all__ = [
    "Mamba2Weights",
    "MixerWeights",
    "causal_conv1d",
    "gated_rms_norm",
    "linear_cross_entropy",
    "live_backend",
    "mamba2_mixer",
    "mamba_mixer",
    "plain_torch",
    "rms_norm",
    "selective_scan",
    "ssd",
]
