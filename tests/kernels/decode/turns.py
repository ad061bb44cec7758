"""All programs of an interpreted launch at once: one runs at a time, and hands on when it waits for the others."""

import inspect
import threading

import pytest
import triton
import triton.language as tl

from mamba_bio_audio.kernels.decode import grid


class Turns:
    """Threads of which one has the turn; a wait that the others' arrivals never answer is an error, not a hang."""

    def __init__(self, own, programs):
        self.own, self.programs = own, programs
        self.change = threading.Condition()
        self.turn, self.running, self.errors = 0, set(range(programs)), []
        self.__signature__ = inspect.signature(own)
        self.names = list(self.__signature__.parameters)

    def take(self, program):
        with self.change:
            assert self.change.wait_for(lambda: self.turn == program, 120)
        from triton.runtime.interpreter import interpreter_builder

        interpreter_builder.set_grid_idx(program, 0, 0)
        if self.errors:
            raise RuntimeError("another program failed")

    def hand_on(self, program):
        following = [p % self.programs for p in range(program + 1, program + 1 + self.programs)]
        with self.change:
            self.turn = next((p for p in following if p in self.running), -1)
            self.change.notify_all()

    def wait(self, counter_p, target):
        me = int(threading.current_thread().name)
        for _ in range(2 * self.programs):
            if int(tl.load(counter_p).handle.data.item()) >= int(getattr(target, "handle", target).data.item()):
                return
            self.hand_on(me)
            self.take(me)
        raise AssertionError("a wait is never answered")

    def __call__(self, **arguments):
        def body(program):
            try:
                self.take(program)
                self.own(**arguments)
            except Exception as error:  # the launch raises it
                self.errors.append(error)
            finally:
                self.running.discard(program)
                self.hand_on(program)

        if self.turn != 0:  # the executor calls once for each program, and the first call runs all
            return
        threads = [threading.Thread(target=body, args=(p,), name=str(p)) for p in range(self.programs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]


@pytest.fixture
def take_turns(monkeypatch):
    """`take_turns(kernel, programs)`: the kernel's launches have that many programs, which take turns."""
    from triton.runtime.interpreter import InterpretedFunction

    monkeypatch.setattr(InterpretedFunction, "rewritten_fn", {})  # functions take their globals in when rewritten

    def begin(kernel: triton.runtime.KernelInterface, programs: int) -> None:
        own = kernel.rewrite()

        def rewrite():
            turns = Turns(own, programs)
            monkeypatch.setattr(grid, "_await", turns.wait)
            monkeypatch.setitem(InterpretedFunction.rewritten_fn, grid.wait.fn, grid.wait.rewriter.rewrite_ast())

            def run(**arguments):
                turns(**arguments)

            run.__signature__ = turns.__signature__
            return run

        monkeypatch.setattr(kernel, "rewrite", rewrite)

    return begin
