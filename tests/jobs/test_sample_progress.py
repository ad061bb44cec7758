"""What `mba sample` says while nothing is drawn yet."""

import threading

import pytest

from mamba_bio_audio.jobs.sample_progress import showing, unless_soon


class Clock:
    """Timers that end when the test says so."""

    def __init__(self, monkeypatch) -> None:
        self.running: list = []

        class Timer:
            def __init__(timer, seconds, call) -> None:
                timer.seconds, timer.call = seconds, call

            def start(timer) -> None:
                self.running.append(timer)

            def cancel(timer) -> None:
                if timer in self.running:
                    self.running.remove(timer)

        monkeypatch.setattr(threading, "Timer", Timer)

    def ring(self) -> None:
        for timer in self.running[:]:
            self.running.remove(timer)
            timer.call()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def test_a_line_is_shown_once_where_nothing_is_heard(clock, capsys):
    with unless_soon("compiling", 5.0) as heard:
        assert [timer.seconds for timer in clock.running] == [5.0]
        heard(False)
        assert len(clock.running) == 1
        assert capsys.readouterr().err == ""
        clock.ring()
        assert capsys.readouterr().err == "compiling\n"
        heard(False)
        assert not clock.running
    assert capsys.readouterr().err == ""


def test_nothing_is_shown_once_it_runs(clock, capsys):
    with unless_soon("compiling", 5.0) as heard:
        heard(True)
        heard(False)
        assert not clock.running
    with unless_soon("compiling", 5.0):
        assert clock.running
    assert not clock.running


@pytest.mark.parametrize(("quiet", "device", "waits"), [(False, "cuda", 1), (True, "cuda", 0), (False, "cpu", 0)])
def test_only_a_gpu_compiles(clock, capsys, quiet, device, waits):
    with showing("base", None, quiet, device) as (sampling, reading):
        assert len(clock.running) == waits
        reading(10, 20)
        assert len(clock.running) == waits
        sampling(5, 10)
        assert not clock.running
    assert capsys.readouterr().err == ""
