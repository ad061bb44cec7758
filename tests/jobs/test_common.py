"""How long jobs tell of their progress where there is no terminal."""

import pytest
import torch

from mamba_bio_audio.jobs import common


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, in seconds."""
    now = [0.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(common.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    return now


def test_a_log_gets_a_line_a_minute(clock, capsys):
    with common.counters(quiet=False) as tell:
        for seconds in range(0, 150, 10):
            clock[0] = seconds
            tell("bases read", 1000 * seconds, 150_000)
        clock[0] = 200
        tell("values written", 5, None)
    out, told = capsys.readouterr()
    assert told.splitlines() == ["bases read: 60,000 of 150,000", "bases read: 120,000 of 150,000", "values written: 5"]
    assert not out


def test_it_says_that_threads_wait_for_each_other_on_busy_cores(clock, capsys, monkeypatch):
    monkeypatch.setattr(common.os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with common.counters(quiet=False) as tell:
        clock[0] = 100
        tell("bases read", 5, 10)
    assert "bases read: 5 of 10; the cores are busy (load average 1000.0)" in capsys.readouterr().err


def test_a_quiet_job_tells_nothing(clock, capsys):
    with common.counter("bases", "read", quiet=True) as tell:
        clock[0] = 100
        tell(5, 10)
    assert capsys.readouterr() == ("", "")
