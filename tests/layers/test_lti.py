"""S4D and H3 beside scipy's `lfilter`, one filter for each mode, in fp64."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.signal import lfilter

from mamba_bio_audio.layers.h3 import H3Config
from mamba_bio_audio.layers.s4d import DiagonalSsm, S4dConfig
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig

WIDTH, LENGTH = 4, 300


def filtered(ssm: DiagonalSsm, u, copies: int = 1):
    """(B, L, D) through the recurrence of every mode of every channel."""
    A = -ssm.A_log.exp().numpy() + 1j * ssm.A_imag.numpy()
    dt, C, D = ssm.log_dt.exp().numpy(), torch.view_as_complex(ssm.C).numpy(), ssm.D.numpy()
    y = np.empty_like(u)
    for channel in range(u.shape[2]):
        of = channel // copies
        y[..., channel] = D[of] * u[..., channel]
        for mode in range(A.shape[1]):
            decay = np.exp(dt[of] * A[of, mode])
            held = (decay - 1) / A[of, mode]
            h = lfilter([held], [1, -decay], u[..., channel].astype(complex), axis=1)
            y[..., channel] += 2 * (C[of, mode] * h).real
    return y


def made(config):
    torch.manual_seed(0)
    layer = config.layers(WIDTH, 3)[0].double().requires_grad_(False)
    return layer, torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)


def same(actual, expected):
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error < 1e-10, error


def test_s4d():
    layer, x = made(S4dConfig(d_state=12, mlp="none"))
    y = torch.from_numpy(filtered(layer.ssm, x.numpy()))
    a, b = layer.out_proj(F.gelu(y)).chunk(2, -1)
    same(layer(x)[0].numpy(), (a * torch.sigmoid(b)).numpy())


def test_h3():
    for head in (1, 2):
        layer, x = made(H3Config(d_state=6, d_shift=9, head_dim=head))
        # At first B is 1 and then zeros, and the filter is C.
        layer.shift_B.normal_()
        q, k, v = layer.in_proj(x).numpy().transpose(2, 0, 1).reshape(3, WIDTH, 2, LENGTH)
        shifted = np.empty_like(k)
        for channel in range(WIDTH):
            B, C = layer.shift_B[channel].numpy(), layer.shift_C[channel].numpy()
            taps = [sum(B[n] * C[n + tap] for n in range(9 - tap)) for tap in range(9)]
            shifted[channel] = lfilter(taps, [1], k[channel], axis=1) + layer.shift_D[channel].item() * k[channel]
        pairs = [
            shifted[base + a] * v[base + b] for base in range(0, WIDTH, head) for a in range(head) for b in range(head)
        ]
        y = filtered(layer.ssm, np.stack(pairs, -1), head * head).reshape(2, LENGTH, WIDTH // head, head, head)
        gate = q.transpose(1, 2, 0).reshape(2, LENGTH, WIDTH // head, head)
        out = layer.out_proj(torch.from_numpy(np.einsum("xlgab,xlga->xlgb", y, gate).reshape(2, LENGTH, WIDTH)))
        same(layer(x)[0].numpy(), out.numpy())


def test_narrow_weights_leave_the_recurrence_wide():
    for name in ("s4d-glu", "h3"):
        model = build_model(ModelConfig(mixer=name, d_model=16, num_layers=1, vocab_size=8)).to(torch.bfloat16)
        kinds = {key: parameter.dtype for key, parameter in model.named_parameters()}
        assert {key: kind for key, kind in kinds.items() if ".ssm." in key}
        for key, kind in kinds.items():
            assert kind == (torch.float32 if ".ssm." in key else torch.bfloat16), key


def test_published_size_of_h3():
    """Fu et al.'s layer: 4 (D^2 + D) + 2 D N + D, and 3 N + 2 a channel, of which N are a factor that ours has in C."""
    layer = H3Config().layers(128, 1)[0]
    assert sum(p.numel() for p in layer.parameters()) + 128 * 64 == 4 * (128**2 + 128) + 2 * 128 * 64 + 128 + 128 * 194
