"""All programs of an interpreted launch at once: one runs at a time, and hands on when it waits for the others."""

import inspect
import threading

import pytest

try:
    import triton.language as tl  # under this name the interpreter patches it

    from mamba_bio_audio.kernels.decode import grid
except ModuleNotFoundError:
    pass


class Turns:
    """A kernel's interpreted function; its programs are threads, of which one has the turn.

    A wait that the others never answer is an error.
    """

    def __init__(self, own, programs):
        self.own, self.programs = own, programs
        self.change = threading.Condition()
        self.calls = 0

    def take(self, program):
        from triton.runtime.interpreter import interpreter_builder

        with self.change:
            assert self.change.wait_for(lambda: self.turn == program, 120)
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
            if int(tl.load(counter_p).handle.data.item()) >= int(target.handle.data.item()):
                return
            self.hand_on(me)
            self.take(me)
        raise AssertionError("a wait is never answered")

    def run_program(self, program, arguments):
        try:
            self.take(program)
            self.own(**arguments)
        except Exception as error:  # raised by the launch
            self.errors.append(error)
        finally:
            self.running.discard(program)
            self.hand_on(program)

    def __call__(self, **arguments):
        self.calls += 1
        if self.calls % self.programs != 1 % self.programs:
            return  # the executor calls once for each program; the first call of a launch runs all
        self.turn, self.running, self.errors = 0, set(range(self.programs)), []
        threads = [
            threading.Thread(target=self.run_program, args=(p, arguments), name=str(p)) for p in range(self.programs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]


@pytest.fixture
def take_turns(monkeypatch):
    """`take_turns(kernel, programs)`: from now on a launch of the kernel has that many programs, which take turns."""
    from triton.runtime.interpreter import InterpretedFunction

    def begin(kernel, programs):
        monkeypatch.setattr(InterpretedFunction, "rewritten_fn", {})  # functions take their globals in when rewritten
        turns = Turns(kernel.rewrite(), programs)
        monkeypatch.setattr(grid, "_await", turns.wait)

        def run(**arguments):
            turns(**arguments)

        run.__signature__, run.__annotations__ = inspect.signature(turns.own), turns.own.__annotations__
        monkeypatch.setattr(kernel, "rewrite", lambda: run)

    return begin
