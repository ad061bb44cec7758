"""What tests of several folders share."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import settings

from mamba_bio_audio.signals import STOPPING

# Started in the background of a script, or by nohup, this process ignores some of them, and so would all that the tests start.
for _number in STOPPING:
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

# On a machine under load any example may take any time.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside this checkout, `../shared/data`, or where `MBA_SHARED_DATA` says; skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MBA_SHARED_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


def pytest_report_header() -> str:
    """The pair that everything here depends on most."""
    triton = importlib.util.find_spec("triton") and importlib.metadata.version("triton")
    return f"torch {torch.__version__}, triton {triton or 'is not installed'}"


class OnGpu(torch.Tensor):
    """A tensor of the CPU that says it lies on a GPU."""

    is_cuda = True


class RecordedCuda:
    """Stands in for streams and graphs of `torch.cuda` and writes down what is asked of them, in order.

    Nothing is recorded: within `torch.cuda.graph` everything runs as usual.

    Attributes:
        log: what happened; tests add to it what happens between.
        at_capture: called when a graph begins, to look at what it would find.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.at_capture: Any = lambda: None

    def stream(self, name: str) -> Any:
        cuda = self

        class Stream:
            def wait_stream(self, other: Any) -> None:
                cuda.log.append(f"{name} waits for {other}")

            def __str__(self) -> str:
                return name

        return Stream()

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.log.append(f"on {stream}")
        yield
        self.log.append(f"off {stream}")

    @contextlib.contextmanager
    def graph(self, graph: Any, capture_error_mode: str, pool: Any = None) -> Iterator[None]:
        self.log.append(f"graph, {capture_error_mode}, {'' if gc.isenabled() else 'no '}collection")
        self.at_capture()
        yield
        self.log.append("end of graph")

    def new_graph(self) -> Any:
        cuda = self

        class Graph:
            def replay(self) -> None:
                cuda.log.append("replay")

        return Graph()


@pytest.fixture
def recorded_cuda(monkeypatch: pytest.MonkeyPatch) -> RecordedCuda:
    """`torch.cuda` writes down what is asked of streams and graphs; `tensor.as_subclass(on_gpu)` makes the code ask."""
    cuda = RecordedCuda()
    main = cuda.stream("main")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: cuda.stream("beside"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.cuda, "stream", cuda.on)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", cuda.new_graph)
    monkeypatch.setattr(torch.cuda, "graph", cuda.graph)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: cuda.log.append("empty cache"))
    forget = lambda: cuda.log.append("cuBLAS begins anew")  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", forget, raising=False)
    return cuda


@pytest.fixture
def on_gpu() -> type[torch.Tensor]:
    """A class for `tensor.as_subclass`: what is on the CPU says it is on a GPU."""
    return OnGpu


class PeerLayer(torch.nn.Module):
    """mamba_ssm's layer: its arguments, parameters and call."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        from mamba_bio_audio.layers.config import SsmConfig
        from mamba_bio_audio.layers.mamba import MambaLayer

        super().__init__()
        config = SsmConfig(complex=False, selective=True, d_state=d_state, d_conv=d_conv, expand=expand)
        self.layer = MambaLayer(d_model, config)

    def forward(self, hidden_states: torch.Tensor, inference_params: Any = None) -> torch.Tensor:
        found: torch.Tensor = self.layer(hidden_states)[0]
        return found


class PeerConfig:
    made: ClassVar[list[Any]] = []

    def __init__(self, d_model: int = 2560, n_layer: int = 64, vocab_size: int = 50277, ssm_cfg: Any = None) -> None:
        self.width, self.vocabulary = d_model, vocab_size
        self.made.append(ssm_cfg)


class PeerModel(torch.nn.Module):
    def __init__(self, config: PeerConfig) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(config.vocabulary, config.width)
        self.head = torch.nn.Linear(config.width, config.vocabulary)

    def cuda(self, device: Any = None) -> PeerModel:
        return self

    def forward(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.embedding(input_ids)))


def _peer_scan(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: Any = False,
) -> Any:
    assert delta_softplus
    return u * torch.sigmoid(z)


@pytest.fixture
def mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for what is imported from mamba_ssm; not from its first file, which is empty on the GPU machine."""
    for name, content in {
        "mamba_ssm": {"__version__": "0.0"},
        "mamba_ssm.modules": {},
        "mamba_ssm.modules.mamba_simple": {"Mamba": PeerLayer},
        "mamba_ssm.models": {},
        "mamba_ssm.models.config_mamba": {"MambaConfig": PeerConfig},
        "mamba_ssm.models.mixer_seq_simple": {"MambaLMHeadModel": PeerModel},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": _peer_scan},
    }.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
