"""What `mba bench` can measure: each with its cases, how a case is written, and what yields a row for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mamba_bio_audio.run.kernel_speed import KernelCase, kernels
from mamba_bio_audio.run.sample_speed import SampleCase, sample
from mamba_bio_audio.run.timing import Row
from mamba_bio_audio.run.train_speed import TrainCase, train


class Benchmark(NamedTuple):
    """One of them; `rows` takes the device, `seconds` for each row, `cases`, and what else it is told."""

    case: Callable[[str], Any]
    rows: Callable[..., Iterator[Row]]


BENCHMARKS = {
    "kernels": Benchmark(KernelCase.of, kernels),
    "train": Benchmark(TrainCase.of, train),
    "sample": Benchmark(SampleCase.of, sample),
}
