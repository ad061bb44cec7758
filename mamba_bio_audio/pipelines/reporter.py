"""What a long job tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial


class Reporter:
    """Receives the notes and progress of a long job; this one ignores them, and subclasses show them."""

    def note(self, text: str) -> None:
        """A line about something that takes long, or that was decided on the user's behalf."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """How far one part of the job is.

        Args:
            what: the part, for example "indexing hg38.fa.gz".
            done: units done, of any kind.
            total: units in all; None where that is not known.
        """

    def part(self, what: str) -> Callable[[int, int | None], None]:
        """A callback (done, total) for one part of the job."""
        return partial(self.progress, what)
