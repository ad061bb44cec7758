"""The watch over the cores, on clocks and loads that are made up."""

import pytest

from mamba_bio_audio.training import cores
from mamba_bio_audio.training import progress as module
from mamba_bio_audio.training.config import TrainConfig
from mamba_bio_audio.training.cores import CoreWatch
from mamba_bio_audio.training.progress import Progress


def told(watch: CoreWatch, steps: list[float], length: int | None = None) -> list[int]:
    """Numbers of the steps, which take so many seconds for 100 tokens, that something was told after."""
    return [at for at, seconds in enumerate(steps) if watch.step(100, seconds, length)]


def test_told_once_after_twenty_slow_seconds() -> None:
    watch = CoreWatch(2, 2, lambda: 3.4)
    # Best 1 s; 4 s is a quarter of the rate: five of them are 20 s.
    assert told(watch, [3.0, 1.0, 1.1] + [4.0] * 12) == [7]
    watch = CoreWatch(2, 2, lambda: 3.4)
    told(watch, [1.0])
    text = None
    while text is None:
        text = watch.step(100, 4.0)
    assert "at 25% of its best rate" in text
    assert "load average 3.4, 2 cores" in text
    assert "OMP_NUM_THREADS=1" in text
    assert "--resume" in text


def test_a_step_of_half_a_minute_is_told_at_the_second() -> None:
    assert told(CoreWatch(4, 4, lambda: 9.0), [1.0, 30.0, 30.0, 30.0]) == [2]


@pytest.mark.parametrize(
    ("threads", "load", "steps"),
    [
        (1, 9.0, [1.0] + [30.0] * 5),  # one thread waits for nobody
        (2, 2.0, [1.0] + [30.0] * 5),  # nobody else wants the cores: a slow disk
        (2, 9.0, [1.0] + [2.9] * 30),  # not below a third
        (2, 9.0, [1.0] + [9.0, 9.0, 1.0] * 9),  # never for 20 s
        (2, 9.0, [1.0, 40.0, 1.0, 40.0]),  # single stalls
    ],
)
def test_not_told(threads: int, load: float, steps: list[float]) -> None:
    assert told(CoreWatch(threads, 2, lambda: load), steps) == []


def test_lengths_have_rates_of_their_own() -> None:
    """Of a length warm-up: longer sequences may be slower, and are only compared among themselves."""
    watch = CoreWatch(2, 2, lambda: 9.0)
    assert told(watch, [1.0, 1.0], length=128) == []
    assert told(watch, [10.0] * 5, length=4096) == []
    assert told(watch, [40.0] * 5, length=4096) == [1]


def test_without_a_load_average() -> None:
    """Windows has none."""
    assert told(CoreWatch(2, 2, None), [1.0] + [30.0] * 5) == []


def test_progress_prints_the_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Between its own lines, and also when it is quiet; time spent in a validation is none of a step's."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    config = TrainConfig(steps=100, length=10, tokens_per_step=100, micro_batch=10, lr=1e-3)
    progress = Progress(config, True, "tokens", CoreWatch(2, 2, lambda: 3.0))
    progress.start()
    for at in range(4):
        now[0] += 1.0
        progress.step(at, config.tokens_per_step, None)
        now[0] += 60.0
        progress.validation(at, 1.0)
    assert capsys.readouterr().err == ""
    for at in range(9):
        now[0] += 5.0
        progress.step(at, config.tokens_per_step, None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "set OMP_NUM_THREADS=1" in lines[0]


def test_the_machine_is_asked() -> None:
    assert cores.cores() >= 1
    watch = cores.watch_cores(2)
    assert watch.load is None or watch.load() >= 0
