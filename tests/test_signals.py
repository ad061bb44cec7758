"""Signals save what can be continued, and clean up what cannot."""

import os
import signal
import subprocess
import sys

import pytest

from mamba_bio_audio.signals import STOPPING, Interrupted, StopSignal, interrupt_on_signals

# Waits for the parent's signal, then says what became of it.
PROGRAM = """
import sys, time
from pathlib import Path
from mamba_bio_audio.signals import Interrupted, StopSignal, interrupt_on_signals
try:
    with interrupt_on_signals():
        if sys.argv[1] == "save":
            with StopSignal() as stop:
                print("ready", flush=True)
                while stop.number is None:
                    time.sleep(0.01)
                Path(sys.argv[2]).write_text(f"saved after {stop.number}")
        else:
            print("ready", flush=True)
            time.sleep(100)
except Interrupted as error:
    Path(sys.argv[2]).write_text(f"cleaned up after {error.number}")
"""


def start(how: str, path: object, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*before, sys.executable, "-c", PROGRAM, how, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "ready\n":
        assert line, process.communicate()
    return process


@pytest.mark.parametrize("how", ["save", "clean up"])
@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_every_stopping_signal(number: signal.Signals, how: str, tmp_path) -> None:
    process = start(how, tmp_path / "what")
    process.send_signal(number)
    process.communicate(timeout=600)
    assert process.returncode == 0
    done = {"save": "saved", "clean up": "cleaned up"}[how]
    assert (tmp_path / "what").read_text() == f"{done} after {number.value}"


def test_signals_in_use() -> None:
    assert {number.name for number in STOPPING} == {"SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"}


def test_nohup_is_respected(tmp_path) -> None:
    process = start("save", tmp_path / "what", ("nohup",))
    # Had it been heeded, it would be the first of the two and the one that is named.
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    assert (tmp_path / "what").read_text() == f"saved after {signal.SIGTERM.value}"


def test_a_lost_terminal_does_not_end_the_saving(tmp_path) -> None:
    """With the terminal closed every write to it fails, also the message about the signal."""
    import pty

    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "save", str(tmp_path / "what")], stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    said = b""
    # To the end of the line: a write that the closing cuts short is an error of `print`.
    while not said.endswith(b"\n"):
        said += os.read(main, 1000)
    assert said == b"ready\r\n"
    os.close(main)
    process.send_signal(signal.SIGHUP)
    process.wait(timeout=600)
    assert process.returncode == 0
    assert (tmp_path / "what").read_text() == f"saved after {signal.SIGHUP.value}"


def test_messages_that_nobody_reads_do_not_end_the_saving(tmp_path) -> None:
    process = start("save", tmp_path / "what")
    assert process.stderr is not None
    # Ctrl-C ends a `tee` that shows the messages as well.
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(600) == 0
    assert (tmp_path / "what").read_text() == f"saved after {signal.SIGINT.value}"


def test_second_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGHUP)
        assert (stop.number, ended) == (signal.SIGUSR1, [])
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [130]


def wait_in_cleaning_up(done: list[str]) -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("cleaned up")


def test_cleaning_up_is_not_disturbed_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in STOPPING]
    done: list[str] = []
    with pytest.raises(Interrupted, match="SIGTERM"), interrupt_on_signals():
        wait_in_cleaning_up(done)
    assert done == ["cleaned up"]
    assert [signal.getsignal(number) for number in STOPPING] == before
