"""What `mba evaluate --suite` finds in its folder: settings, data and results of an earlier call."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import read_json, write_json
from mamba_bio_audio.jobs.suite_options import SuiteOptions
from mamba_bio_audio.jobs.suite_results import SuiteResult

if TYPE_CHECKING:
    from mamba_bio_audio.jobs.evaluate_suite import Asked
    from mamba_bio_audio.pipelines.dna.suites import Task

WHOLE, SETTINGS = "suite.json", "settings.json"


def _settings(asked: Asked) -> dict[str, Any]:
    """What the results of a folder belong to; tasks may be others."""
    own = asked.options.model_dump(mode="json", include=set(SuiteOptions.model_fields) - {"task", "force", "quiet"})
    more = {"folder": str(asked.folder.resolve()), "overrides": list(asked.overrides)}
    return dict(json.loads(json.dumps(own | more)))


def check_settings(asked: Asked, out: Path) -> None:
    """Refuse to continue what was begun with other settings."""
    place, now = out / SETTINGS, _settings(asked)
    if place.exists() and read_json(place) != now:
        raise InputError(
            f"{asked.out}: was begun with other settings; choose another --out, or replace it with --force"
        )
    write_json(place, now)


def check_data(asked: Asked, task: Task, out: Path) -> None:
    """Refuse results, or half-done work, that are of other files; noted before a task is begun."""
    place, now = out / "tasks" / f"{task.name}.data.json", {"sha256": task.fingerprint()}
    if place.exists() and read_json(place) != now:
        raise InputError(
            f"{task.path}: the files have changed since {asked.out} was made of them; choose another --out, or replace it with "
            "--force"
        )
    # Not where they are kept by an earlier version, which did not note them.
    if not place.exists() and not (out / "tasks" / f"{task.name}.json").exists():
        write_json(place, now)


def finished(asked: Asked, tasks: list[Task]) -> SuiteResult | None:
    """What the folder holds, if it is finished and of the same settings and tasks; nothing is done again."""
    places = [asked.out / name for name in (WHOLE, SETTINGS)]
    if asked.options.force or not all(place.exists() for place in places) or read_json(places[1]) != _settings(asked):
        return None
    found = SuiteResult.model_validate(read_json(places[0]) | {"shown_again": True})
    if [task.task for task in found.tasks] != [task.name for task in tasks]:
        return None
    for task in tasks:
        check_data(asked, task, asked.out)
    return found


def open_test(place: Path) -> list[str]:
    """Note that the test split is read now."""
    opened = read_json(place) if place.exists() else []
    opened.append(datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    write_json(place, opened)
    return list(opened)
