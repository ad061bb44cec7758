"""The operations of the package, and the only door into `kernels/`.

    selective_scan          the state space recurrence of Mamba, real or complex, selective or time-invariant
    causal_conv1d           short depthwise causal convolution
    rms_norm                normalisation with a fp32 residual stream
    linear_cross_entropy    output head and loss without all logits
    mamba_mixer             projections, convolution and scan of one layer, keeping little for backward (GPU)

Every operation takes `backend`: "auto" (the fastest that fits the inputs), "triton" (CUDA), "torch" (any
device; the CPU path) or "reference" (sequential and obvious, differentiable to any order, for tests).
Inputs are channels-last and never mutated; states go in and come out with gradients both ways. Letters: B
batch, L length, D channels, N states, W filter width, V vocabulary.
"""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import Literal, overload

import torch
from torch import Tensor

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.kernels.causal_conv1d import causal_conv1d_ref, causal_conv1d_torch, next_tail
from mamba_bio_audio.kernels.linear_cross_entropy import linear_cross_entropy_ref, linear_cross_entropy_torch
from mamba_bio_audio.kernels.rms_norm import rms_norm_ref, rms_norm_torch
from mamba_bio_audio.kernels.selective_scan.blocked import selective_scan_blocked
from mamba_bio_audio.kernels.selective_scan.ref import selective_scan_ref

__all__ = [
    "causal_conv1d",
    "linear_cross_entropy",
    "live_backend",
    "mamba_mixer",
    "mixer_runs_fused",
    "plain_torch",
    "rms_norm",
    "selective_scan",
]

BACKENDS = ("auto", "triton", "torch", "reference")
MAX_CONV_WIDTH = 8
# Whether "auto" leaves Triton alone. For the process, not the thread: backward passes run in threads of autograd's.
_plain = False
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@overload
def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None = ..., z: Tensor | None = ..., dt_bias: Tensor | None = ..., *,
    dt_softplus: bool = ..., h0: Tensor | None = ..., return_state: Literal[True], reset: Tensor | None = ...,
    exact_zoh: bool = ..., precise: bool = ..., backend: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None = ..., z: Tensor | None = ..., dt_bias: Tensor | None = ..., *,
    dt_softplus: bool = ..., h0: Tensor | None = ..., return_state: Literal[False] = ...,
    reset: Tensor | None = ..., exact_zoh: bool = ..., precise: bool = ..., backend: str = ...,
) -> Tensor: ...  # fmt: skip
def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    *,
    dt_softplus: bool = True,
    h0: Tensor | None = None,
    return_state: bool = False,
    reset: Tensor | None = None,
    exact_zoh: bool = False,
    precise: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs the diagonal state space recurrence of Mamba over time.

        h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t      y_t = sum_n C_t h_t + D u_t      out_t = y_t silu(z_t)

    with dt = softplus(dt + dt_bias). Mamba (arXiv 2312.00752) section 3.2 and algorithm 2. Complex exactly
    when `A` has a trailing axis of 2 (real and imaginary part): then y_t = 2 Re(sum_n C_t h_t) + D u_t and
    N counts complex modes.

    Args:
        u: Input (B, L, D), any L >= 1.
        dt: Step size before bias and softplus, (B, L, D), or (D,) if it does not depend on time.
        A: Continuous-time decay (D, N) or (D, N, 2), already negative (real part), not its logarithm.
        B: Input map (B, L, N[, 2]), or (D, N[, 2]) if it does not depend on time.
        C: Readout, shapes as `B` and independent of it.
        D: Skip weight (D,).
        z: Gate (B, L, D), applied as silu(z).
        dt_bias: Bias of the step size (D,).
        dt_softplus: Whether to apply softplus (linear above 20); without it `dt` must be positive already.
        h0: State before the first position (B, D, N[, 2]); None means zeros.
        return_state: Whether to return the state after the last position as well.
        reset: Bool (B, L), True where the state is zeroed before the position (start of a packed sequence).
        exact_zoh: Whether to hold the input exactly, b = (exp(dt A) - 1) / A B u (paper equation 4),
            instead of the first-order b = dt B u.
        precise: Whether to add (exp(dt A) - 1) h to h, so that decays within rounding of 1 keep their value:
            for memories beyond about 1e5 steps.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        out (B, L, D) in the dtype of `u`, or (out, state) with state (B, D, N[, 2]) in fp32 (fp64 if any
        input is fp64).

    Raises:
        InputError: Shapes, dtypes or devices that do not fit, or an unknown or unavailable backend.
    """
    _check_scan(u, dt, A, B, C, D, z, dt_bias, h0, reset)
    if _tracing(backend):
        from mamba_bio_audio import torch_ops

        with torch.autocast(u.device.type, enabled=False):
            out, state = torch_ops.selective_scan(
                u, dt, A, B, C, D, z, dt_bias, h0, reset, dt_softplus, exact_zoh, precise
            )
        return (out, state) if return_state else out

    def cannot() -> str | None:
        from mamba_bio_audio.kernels.selective_scan import general_op

        # The state is fp64 where any input is, and the kernels have none.
        if any(t is not None and t.dtype == torch.float64 for t in (D, z, dt_bias, h0)):
            return "float64 D, z, dt_bias or h0"
        return general_op.unsupported_reason(u, dt, A, B, C)

    choice = _choose("selective_scan", backend, u, cannot)
    run: Callable[..., tuple[Tensor, Tensor]]
    if choice == "triton":
        from mamba_bio_audio.kernels.selective_scan.general_op import selective_scan_general
        from mamba_bio_audio.kernels.selective_scan.triton_op import selective_scan_triton, supports

        # Real and selective has kernels of its own, faster ones.
        real_selective = supports(u, dt, A, B, C, exact_zoh=exact_zoh)
        run = partial(selective_scan_triton, return_state=True) if real_selective else selective_scan_general  # type: ignore[assignment]
    else:
        run = selective_scan_ref if choice == "reference" else selective_scan_blocked
    autocast = torch.is_autocast_enabled(u.device.type)
    # State and sums stay in fp32 under autocast, in every backend.
    with torch.autocast(u.device.type, enabled=False) if autocast else nullcontext():
        out, state = run(
            u, dt, A, B, C, D, z, dt_bias,
            h0=h0, reset=reset, dt_softplus=dt_softplus, exact_zoh=exact_zoh, precise=precise,
        )  # fmt: skip
    return (out, state) if return_state else out


@overload
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = ..., *, activation: str | None = ...,
    tail: Tensor | None = ..., return_tail: Literal[True], reset: Tensor | None = ..., backend: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = ..., *, activation: str | None = ...,
    tail: Tensor | None = ..., return_tail: Literal[False] = ...,
    reset: Tensor | None = ..., backend: str = ...,
) -> Tensor: ...  # fmt: skip
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    tail: Tensor | None = None,
    return_tail: bool = False,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolves each channel with its own short causal filter.

        out_t = silu(bias + sum_k weight[:, k] x_(t - W + 1 + k))

    Mamba (arXiv 2312.00752) section 3.4, figure 3 (W = 4).

    Args:
        x: Input (B, L, D), any L >= 1.
        weight: Filters (D, W), the last tap on the current position, 1 <= W <= 8.
        bias: (D,).
        activation: "silu" or None.
        tail: The W - 1 inputs before the span (B, W-1, D); None means zeros.
        return_tail: Whether to return the last W - 1 inputs, the `tail` of the span that follows.
        reset: Bool (B, L), True where a packed sequence starts; no tap reaches back across it.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        out (B, L, D) in the dtype of `x` (sums in fp32, fp64 for fp64), or (out, tail) with tail (B, W-1,
        D) in x.dtype, zeros where an input lies before a missing `tail` or before the last reset.

    Raises:
        InputError: Shapes, dtypes or devices that do not fit, or an unknown or unavailable backend.
    """
    if x.ndim != 3 or x.shape[1] < 1:
        raise InputError(f"causal_conv1d: x must be (B, L, D) with L >= 1, not {_shape(x)}")
    batch, length, channels = x.shape
    if weight.ndim != 2 or weight.shape[0] != channels or not 1 <= weight.shape[1] <= MAX_CONV_WIDTH:
        raise InputError(
            f"causal_conv1d: weight must be (D={channels}, 1 <= W <= {MAX_CONV_WIDTH}), not {_shape(weight)}"
        )
    width = weight.shape[1]
    if activation not in ("silu", None):
        raise InputError(f'causal_conv1d: activation must be "silu" or None, not {activation!r}')
    where = "causal_conv1d"
    _check(where, x, "x", x.shape, x)
    _check(where, weight, "weight", weight.shape, x)
    _check(where, bias, "bias", (channels,), x)
    _check(where, tail, "tail", (batch, width - 1, channels), x)
    _check_reset(where, reset, (batch, length), x)
    if _tracing(backend):
        from mamba_bio_audio import torch_ops

        out = torch_ops.causal_conv1d(x, weight, bias, tail, reset, activation == "silu")
        return (out, next_tail(x, tail, width, reset)) if return_tail else out

    def cannot() -> str | None:
        from mamba_bio_audio.kernels import causal_conv1d_triton

        return causal_conv1d_triton.unsupported_reason(x, weight)

    choice = _choose(where, backend, x, cannot)
    run: Callable[..., Tensor] = causal_conv1d_ref if choice == "reference" else causal_conv1d_torch
    if choice == "triton":
        from mamba_bio_audio.kernels.causal_conv1d_triton import causal_conv1d_triton as run
    out = run(x, weight, bias, activation=activation, tail=tail, reset=reset)
    return (out, next_tail(x, tail, width, reset)) if return_tail else out


@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-5, *, residual: Tensor, backend: str = "auto"
) -> tuple[Tensor, Tensor]: ...
@overload
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-5, *, residual: None = None, backend: str = "auto"
) -> Tensor: ...
def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-5, *, residual: Tensor | None = None, backend: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalises channels by their root mean square, after adding the residual stream if one is given.

        r = x + residual        y = r / sqrt(mean(r^2) + eps) weight

    Zhang and Sennrich (arXiv 1910.07467); pre-norm with an fp32 residual stream as in Mamba.

    Args:
        x: (..., D).
        weight: (D,).
        eps: Added to the mean square.
        residual: Residual stream (..., D), same shape as `x`, usually fp32.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        y (..., D) in the dtype of `x`; with `residual`, (y, r) where r is fp32 (fp64 if an input is fp64).

    Raises:
        InputError: Shapes, dtypes or devices that do not fit, or an unknown or unavailable backend.
    """
    if x.ndim < 1 or x.shape[-1] < 1:
        raise InputError(f"rms_norm: x must be (..., D), not {_shape(x)}")
    _check("rms_norm", x, "x", x.shape, x)
    _check("rms_norm", weight, "weight", x.shape[-1:], x)
    _check("rms_norm", residual, "residual", x.shape, x)
    if _tracing(backend):
        from mamba_bio_audio import torch_ops

        y, *streams = torch_ops.rms_norm(x, weight, residual, eps)
        return (y, streams[0]) if streams else y

    def cannot() -> str | None:
        from mamba_bio_audio.kernels import rms_norm_triton

        return rms_norm_triton.unsupported_reason(x, weight, residual)

    choice = _choose("rms_norm", backend, x, cannot)
    run: Callable[..., tuple[Tensor, Tensor]] = rms_norm_ref if choice == "reference" else rms_norm_torch
    if choice == "triton":
        from mamba_bio_audio.kernels.rms_norm_triton import rms_norm_triton as run
    y, stream = run(x, weight, eps, residual)
    return y if residual is None else (y, stream)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Applies the output head and sums the cross entropy, without holding the logits of all positions.

        loss = sum_i -log softmax(weight x_i)[target_i]        over positions with target_i != ignore_index

    Args:
        x: Features (..., D).
        weight: Output head (V, D).
        targets: Class of each position (...), integers in [0, V) or `ignore_index`.
        ignore_index: Target of positions that are not scored.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        (loss, count): summed loss in nats, a 0-dimensional fp32 tensor (fp64 if an input is fp64), and the
        number of scored positions, a 0-dimensional int64 tensor.

    Raises:
        InputError: Shapes, dtypes, devices or targets that do not fit, or an unknown or unavailable backend.
    """
    where = "linear_cross_entropy"
    if x.ndim < 1 or x.shape[-1] < 1:
        raise InputError(f"{where}: x must be (..., D), not {_shape(x)}")
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1] or weight.shape[0] < 1:
        raise InputError(f"{where}: weight must be (V, D={x.shape[-1]}), not {_shape(weight)}")
    _check(where, x, "x", x.shape, x)
    _check(where, weight, "weight", weight.shape, x)
    if targets.shape != x.shape[:-1]:
        raise InputError(f"{where}: targets must be {tuple(x.shape[:-1])} for x {_shape(x)}, not {_shape(targets)}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InputError(f"{where}: targets must be integers, not {targets.dtype}")
    if targets.device != x.device:
        raise InputError(f"{where}: targets are on {targets.device}, x is on {x.device}")
    if _tracing(backend):
        from mamba_bio_audio import torch_ops

        with torch.autocast(x.device.type, enabled=False):
            return torch_ops.linear_cross_entropy(x, weight, targets, ignore_index)

    def cannot() -> str | None:
        from mamba_bio_audio.kernels import linear_cross_entropy_triton

        return linear_cross_entropy_triton.unsupported_reason(x, weight)

    # A large vocabulary is no reason for a notice: there the products bind and the torch path is as good.
    choice = _choose(where, backend, x, cannot, announce=False)
    if targets.device.type == "cpu":
        wrong = ((targets < 0) | (targets >= weight.shape[0])) & (targets != ignore_index)
        if wrong.any():
            raise InputError(
                f"{where}: target {int(targets[wrong][0])} is outside [0, {weight.shape[0]}) "
                f"and is not ignore_index={ignore_index}"
            )
    run = linear_cross_entropy_ref if choice == "reference" else linear_cross_entropy_torch
    if choice == "triton":
        from mamba_bio_audio.kernels.linear_cross_entropy_triton import linear_cross_entropy_triton as run
    with torch.autocast(x.device.type, enabled=False):
        return run(x, weight, targets, ignore_index)


def _activation_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def mixer_runs_fused(x: Tensor, weights: Sequence[Tensor | None]) -> bool:
    """Whether `mamba_mixer` can run this call: on a GPU that Triton can use, in bf16, fp16 or fp32.

    Args:
        x: input of the layer (B, L, M).
        weights: as in `mamba_mixer`.
    """
    # A compiled graph keeps only inputs of operations anyway, and sees more of a layer made of them.
    if torch.compiler.is_compiling() or _plain or x.device.type != "cuda" or no_triton(x.device) is not None:
        return False
    from mamba_bio_audio.kernels.mamba_mixer import MixerWeights, unsupported_reason

    return unsupported_reason(_activation_dtype(x), MixerWeights(*weights)) is None  # type: ignore[arg-type]


def mamba_mixer(
    x: Tensor,
    weights: Sequence[Tensor | None],
    *,
    tail: Tensor | None = None,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    precise: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a whole real, selective Mamba mixer, recomputing in backward what it would otherwise keep.

    Equal to the projections, `causal_conv1d` and `selective_scan` called one after another; it exists where
    `mixer_runs_fused` says so. Mamba (arXiv 2312.00752) section 3.4 and appendix D.

    Args:
        x: (B, L, M), any L >= 1. Under autocast everything but states and sums is in its dtype.
        weights: in_proj (2 E, M), its bias or None, convolution (E, W), its bias or None, x_proj (R + 2 N, E),
            dt_proj (E, R), its bias (E), A_log (E, N), D (E), out_proj (M, E), its bias or None.
        tail: the W - 1 inputs of the convolution before the span (B, W-1, E); None means zeros.
        h0: state before the span (B, E, N); None means zeros.
        reset: bool (B, L), True where the state is zeroed before the position.
        precise: as in `selective_scan`.

    Returns:
        y (B, L, M), the tail after the span, and the state after it (B, E, N) in fp32.

    Raises:
        InputError: x, tail, h0 or reset of a wrong shape, dtype or device.
    """
    from mamba_bio_audio.kernels.mamba_mixer import MixerWeights, mamba_mixer_triton

    where, w = "mamba_mixer", MixerWeights(*weights)  # type: ignore[arg-type]
    if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != w.in_proj.shape[1]:
        raise InputError(f"{where}: x must be (B, L, M={w.in_proj.shape[1]}) with L >= 1, not {_shape(x)}")
    # The kernels read what they are told is there.
    (inner, width), batch = w.conv.shape, x.shape[0]
    _check(where, tail, "tail", (batch, width - 1, inner), x)
    _check(where, h0, "h0", (batch, *w.A_log.shape), x)
    _check_reset(where, reset, (batch, x.shape[1]), x)
    dtype = _activation_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        return mamba_mixer_triton(
            x,
            w,
            tail=tail,
            h0=h0,
            reset=reset,
            precise=precise,
            dtype=dtype,
        )


def _tracing(backend: str) -> bool:
    """Whether torch.compile or torch.export is looking, for which the operators of `torch_ops` are there."""
    return backend == "auto" and torch.compiler.is_compiling()


def _choose(
    where: str, backend: str, x: Tensor, cannot: Callable[[], str | None], *, announce: bool = True
) -> Literal["triton", "torch", "reference"]:
    """The backend of one call; "auto" takes Triton wherever it can run it, and says once where it cannot.

    Args:
        cannot: why the Triton kernel cannot run this call, or None; asked only where Triton is usable.
        announce: whether falling back on a GPU deserves a notice.
    """
    if backend not in BACKENDS:
        raise InputError(f"{where}: unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend in ("torch", "reference"):
        return backend  # type: ignore[return-value]
    if backend == "auto" and (_plain or x.device.type != "cuda"):
        return "torch"
    of_device = no_triton(x.device)
    reason = of_device or cannot()
    if reason is None:
        return "triton"
    if backend == "triton":
        raise InputError(f'{where}: backend "triton" cannot run this call: {reason}; use "auto" or "torch"')
    if announce:
        # What is true of the device is said once, not once for each operation.
        _say_once(f"{'everything' if of_device else where} runs on the plain PyTorch path: {reason}")
    return "torch"


@contextmanager
def plain_torch() -> Iterator[None]:
    """Within it "auto" is the plain PyTorch path on every device, for comparisons with the Triton kernels."""
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


@cache
def no_triton(device: torch.device) -> str | None:
    """Why Triton kernels cannot run on a device, or None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return f"tensors are on {device.type}"
    if torch.version.hip is not None:
        return "the kernels are written for NVIDIA GPUs"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if not (os.environ.get("CC") or any(shutil.which(name) for name in ("gcc", "clang"))):
        return "Triton needs a C compiler and there is none (install gcc, or set CC)"
    return None


@cache
def _say_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def live_backend(device: str) -> str:
    """What "auto" stands for on "cpu" or "cuda", in words."""
    if device != "cuda":
        return "torch"
    reason = "asked for" if _plain else no_triton(torch.device("cuda", torch.cuda.current_device()))
    return f"torch ({reason})" if reason else "triton (mixer, scan, convolution, norm, loss), torch for the rest"


def _shape(t: Tensor) -> str:
    return str(tuple(t.shape))


def _check(where: str, t: Tensor | None, name: str, shape: tuple[int, ...], like: Tensor) -> None:
    if t is None:
        return
    if t.shape != shape:
        raise InputError(f"{where}: {name} must be {tuple(shape)}, not {_shape(t)}")
    if t.dtype not in _FLOATS:
        raise InputError(f"{where}: {name} must be a floating-point tensor, not {t.dtype}")
    if t.device != like.device:
        raise InputError(f"{where}: {name} is on {t.device}, the input is on {like.device}")


def _check_reset(where: str, reset: Tensor | None, shape: tuple[int, int], like: Tensor) -> None:
    if reset is None:
        return
    if reset.dtype != torch.bool or reset.shape != shape:
        raise InputError(f"{where}: reset must be bool (B, L) = {shape}, not {reset.dtype} {_shape(reset)}")
    if reset.device != like.device:
        raise InputError(f"{where}: reset is on {reset.device}, the input is on {like.device}")


def _check_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    h0: Tensor | None,
    reset: Tensor | None,
) -> None:
    where = "selective_scan"
    if u.ndim != 3 or u.shape[1] < 1:
        raise InputError(f"{where}: u must be (B, L, D) with L >= 1, not {_shape(u)}")
    batch, length, channels = u.shape
    if A.ndim not in (2, 3) or A.shape[0] != channels or A.shape[1] < 1 or (A.ndim == 3 and A.shape[2] != 2):
        raise InputError(f"{where}: A must be (D={channels}, N) or complex (D={channels}, N, 2), not {_shape(A)}")
    states = A.shape[1:]
    _check(where, u, "u", u.shape, u)
    _check(where, A, "A", A.shape, u)
    _check(where, dt, "dt", (channels,) if dt.ndim == 1 else u.shape, u)
    for name, t in (("B", B), ("C", C)):
        selective, fixed = (batch, length, *states), (channels, *states)
        if t.shape not in (selective, fixed):
            kind = "complex A" if A.ndim == 3 else "real A"
            raise InputError(f"{where}: {name} must be {selective}, or {fixed} (LTI), for {kind}, not {_shape(t)}")
        _check(where, t, name, t.shape, u)
    _check(where, D, "D", (channels,), u)
    _check(where, z, "z", u.shape, u)
    _check(where, dt_bias, "dt_bias", (channels,), u)
    _check(where, h0, "h0", (batch, *A.shape), u)
    _check_reset(where, reset, (batch, length), u)
