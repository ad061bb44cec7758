"""How CUDA graphs are recorded, so that each of them can be replayed beside, and outlive, any other."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def recorded_in(graph: Any, pool: Any = None) -> Iterator[None]:
    """Records what happens within it, which ran before, as a CUDA graph.

    PyTorch keeps the memory that cuBLAS works in by stream, and records all graphs on the same one. Two of them replayed
    beside each other would work in the same memory, so that gradients of one get into those of the other, and the end of one
    graph frees what another still works in (PyTorch issue 193402). So every graph gets memory for that of its own, which
    nothing finds after it.

    Args:
        graph: a `torch.cuda.CUDAGraph`.
        pool: the memory that it shares with graphs which never run beside it; by default it has its own.
    """
    collects = gc.isenabled()
    # A graph of others that is collected while this one is recorded would spoil it.
    gc.disable()
    torch._C._cuda_clearCublasWorkspaces()
    try:
        # Other threads, such as a loader's that pins memory, go on meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
        if collects:
            gc.enable()
