"""`mba compare`: several models trained on the very same batches, each at the best of the same few rates."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator, model_validator

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import MARKER, Maker, growing_folder, read_json, write_json, write_text
from mamba_bio_audio.jobs.common import resolve_device
from mamba_bio_audio.jobs.compare_results import ArmResult, CompareResult, RunScores, Spread
from mamba_bio_audio.jobs.contract import Cli, Device, Force, Options, Overrides
from mamba_bio_audio.run.folder import RUN_FILES
from mamba_bio_audio.text import show

if TYPE_CHECKING:
    from mamba_bio_audio.run.compare import Comparison, Plan, Run

COMMAND = "compare"
PANEL = "Measure"

WHOLE, TABLE, RUNS, PICTURE, SETTINGS = "compare.json", "compare.csv", "runs.csv", "compare.png", "settings.json"
MAKER = Maker(
    "compare",
    (
        *(WHOLE, TABLE, RUNS, PICTURE, SETTINGS, "unfinished.safetensors", "data.json", "speed/*.json"),
        *(f"runs/*/{name}" for name in (MARKER, *RUN_FILES, "scores.json", "curve.csv")),
    ),
)
# Rates that are tried, times that of the recipe.
RATES = (1 / 3, 1.0, 3.0)


class CompareOptions(Options):
    """Options of `mba compare`."""

    recipe: Annotated[str, Cli(argument=True)] = Field(
        description="Recipe of a language model (mba configs lists them), or YAML file."
    )
    mixers: Annotated[str, Cli(metavar="NAME,NAME,...")] = Field(
        "", description="Models to compare: the recipe's with each of these as model.mixer."
    )
    arm: Annotated[tuple[str, ...], Cli(metavar="NAME=KEY=VALUE,...")] = Field(
        (),
        description="Another model to compare, under a name of your own: the recipe's with these keys of model and train "
        "(not the data), or a variant of the recipe as @VARIANT; repeatable. 'plain=' is the recipe as it is.",
    )
    overrides: Overrides = ()
    rates: Annotated[str | None, Cli(metavar="X,X,...")] = Field(
        None,
        description="Learning rates to choose from on validation, for each model; default: a third of, once and three times "
        "its train.lr.",
    )
    seeds: Annotated[str, Cli(metavar="N,N,...")] = Field(
        "0,1,2", description="Seeds of the trainings; all models read the same batches under the same seed."
    )
    sweep_steps: int | None = Field(
        None,
        ge=1,
        description="Steps of the trainings that a rate is chosen by, with the first seed; default: train.steps, and then "
        "the best one counts as that seed's training.",
    )
    every_rate: bool = Field(
        False, description="Train every seed at every rate; the rate with the lowest mean loss is compared."
    )
    together: int | None = Field(
        None,
        ge=1,
        description="Trainings beside each other on a GPU; default: as many as have 131,072 positions in a step.",
    )
    max_time: float | None = Field(
        None, gt=0, description="Stop after so many seconds, everything saved; the same command goes on from there."
    )
    only: Annotated[str, Cli(metavar="NAME,NAME,...")] = Field(
        "",
        description="Train only these of the models, and measure no speed: for several processes beside each other, each "
        "with an --out of its own. --take brings them together.",
    )
    take: Annotated[tuple[Path, ...], Cli(metavar="FOLDER")] = Field(
        (), description="Take the finished runs of another folder of the same comparison; repeatable."
    )
    out: Path | None = Field(None, description="Folder of tables, picture and runs; default runs/compare-<recipe>.")
    device: Device = "auto"
    force: Force = False

    @field_validator("seeds")
    @classmethod
    def _whole(cls, text: str) -> str:
        parts = text.split(",")
        if not all(part.isdecimal() and int(part) < 2**63 for part in parts) or len(set(map(int, parts))) < len(parts):
            raise ValueError(f"got {text!r}; write different whole numbers, separated by commas, for example 0,1,2")
        return text

    @field_validator("rates")
    @classmethod
    def _positive(cls, text: str | None) -> str | None:
        try:
            rates = [] if text is None else [float(part) for part in text.split(",")]
        except ValueError:
            rates = [math.nan]
        if not all(0 < rate < math.inf for rate in rates) or len(set(rates)) < len(rates):
            raise ValueError(
                f"got {text!r}; write different numbers above 0, separated by commas, for example 1e-3,4e-3"
            )
        return text

    @model_validator(mode="after")
    def _two(self) -> CompareOptions:
        names = self.names
        if len(names) < 2:
            raise ValueError("a comparison needs two models; name them with --mixers A,B or --arm")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two models are called {twice!r}; name them differently")
        if strange := next((name for name in self.trained if name not in names), None):
            raise ValueError(f"only: no model is called {strange!r}; choose from {', '.join(names)}")
        return self

    @property
    def trained(self) -> tuple[str, ...]:
        """Models that --only names."""
        return tuple(name for name in self.only.split(",") if name)

    @property
    def names(self) -> list[str]:
        """Of the models."""
        mixers = [name for name in self.mixers.split(",") if name]
        return [*mixers, *(text.partition("=")[0] for text in self.arm)]

    def settings(self) -> dict[str, tuple[list[str], list[str]]]:
        """Variants and overrides of each model by its name."""
        found: dict[str, tuple[list[str], list[str]]] = {}
        for name in self.mixers.split(","):
            if name:
                found[name] = [], [f"model.mixer={name}"]
        for text in self.arm:
            name, _, keys = text.partition("=")
            parts = _parts(keys)
            found[name] = (
                [part[1:] for part in parts if part.startswith("@")],
                [part for part in parts if not part.startswith("@")],
            )
        return found


def _parts(text: str) -> list[str]:
    """KEY=VALUE or @VARIANT of an arm. A comma that neither follows belongs to a value, such as a list or a pattern."""
    return [part.strip() for part in re.split(r",(?=\s*(?:@|[\w.]+=|$))", text) if part.strip()]


def plan_of(options: CompareOptions) -> Plan:
    """What is compared.

    Raises:
        InputError: a mistake in a model's settings.
    """
    from mamba_bio_audio.run.compare import Plan, check_name, check_plan
    from mamba_bio_audio.run.config import load_config

    given = None if options.rates is None else tuple(sorted(map(float, options.rates.split(","))))
    arms, rates = {}, {}
    for name, (variants, overrides) in options.settings().items():
        check_name(name)
        recipe = options.recipe
        for variant in variants:
            recipe += ("-" if "@" in recipe else "@") + variant
        foreign = next((text for text in overrides if not text.startswith(("model.", "train."))), None)
        if foreign is not None:
            raise InputError(f"arm {name}: {foreign}: models differ in model.* and train.*; give other keys with --set")
        try:
            arms[name] = load_config(recipe, [*options.overrides, *overrides])
        except InputError as error:
            raise InputError(f"arm {name}: {error}") from None
        rates[name] = given or tuple(float(f"{factor * arms[name].train.lr:.4g}") for factor in RATES)
    first = next(iter(arms.values()))
    device, elsewhere = _device(options)
    seeds = tuple(map(int, options.seeds.split(",")))
    steps = options.sweep_steps or first.train.steps
    if options.every_rate:
        steps = first.train.steps
    plan = Plan(arms, rates, seeds, steps, options.every_rate, options.together, device, options.trained, elsewhere)
    check_plan(plan)
    return plan


def _device(options: CompareOptions) -> tuple[str, bool]:
    """Where the runs are made, which for what is taken is where it was, and whether there is no such device here."""
    here = resolve_device(options.device)
    there = {settings["device"] for folder in options.take if (settings := _read(folder / SETTINGS)) is not None}
    device = str(there.pop()) if options.device == "auto" and len(there) == 1 else here
    return device, (device, here) == ("cuda", "cpu")


def run(options: CompareOptions) -> CompareResult:
    """Train several sequence models on the same batches, as far as the time allows, and compare what is finished."""
    # The time of imports counts.
    began = time.perf_counter()
    from mamba_bio_audio.run.compare import Comparison
    from mamba_bio_audio.run.recipes import locate
    from mamba_bio_audio.signals import StopSignal

    plan = plan_of(options)
    out = options.out or Path("runs") / f"compare-{locate(options.recipe).folder_name}"
    settings = _settings(options, plan)
    if not options.force and (out / WHOLE).exists() and _read(out / SETTINGS) == settings:
        return CompareResult.model_validate(read_json(out / WHOLE))

    def tell(text: str) -> None:
        if not options.quiet:
            show(text, file=sys.stderr, flush=True)

    until = math.inf if options.max_time is None else began + options.max_time
    with growing_folder(out, MAKER, WHOLE, force=options.force) as folder, StopSignal() as stop:
        if (folder / SETTINGS).exists() and _read(folder / SETTINGS) != settings:
            raise InputError(f"{out}: was begun with other settings; choose another --out, or replace it with --force")
        write_json(folder / SETTINGS, settings)
        comparison = Comparison(plan, folder, stop, until, tell)
        for other in options.take:
            if _read(other / SETTINGS) != settings:
                raise InputError(f"--take {other}: is no folder of this comparison; give the command that made it")
            comparison.take(other)
        done = comparison.run()
        result = _result(options, comparison, out, done)
        _write(folder, result, comparison)
        if done and not plan.only:
            write_json(folder / WHOLE, result.to_json())
    return result


def _settings(options: CompareOptions, plan: Plan) -> dict[str, Any]:
    """What the results of a folder belong to."""
    left_out = {"max_time", "together", "only", "take", "force", "quiet", "out"}
    own = options.model_dump(mode="json", exclude=left_out)
    arms = {name: config.model_dump(mode="json", exclude={"description"}) for name, config in plan.arms.items()}
    return dict(json.loads(json.dumps(own | {"device": plan.device, "configurations": arms})))


def _read(place: Path) -> Any:
    return read_json(place) if place.exists() else None


def _result(options: CompareOptions, comparison: Comparison, out: Path, whole: bool) -> CompareResult:
    plan, train = comparison.plan, comparison.plan.first.train
    wanted: dict[Run, None] = {run: None for arm in plan.here for run in plan.sweep(arm)}
    tried = [arm for arm in plan.here if all(comparison.scores(run) is not None for run in plan.sweep(arm))]
    wanted |= {run: None for arm in tried for run in plan.final(arm, comparison.chosen(arm))}
    found = {run: comparison.scores(run) for run in wanted}
    rows = tuple(
        RunScores(**scores, folder=f"runs/{run.folder}") for run, scores in found.items() if scores is not None
    )
    ready = [arm for arm in tried if all(found[run] is not None for run in plan.final(arm, comparison.chosen(arm)))]
    speeds = [speed for arm in ready if (speed := comparison.speed(arm)) is not None]
    # Among models of which some are not measured, the fastest one is not known.
    known = bool(ready) and len(speeds) == len(ready)
    equal = train.steps * min(speed["seconds_per_step"] for speed in speeds) if known else None
    arms = [_arm(options, comparison, arm, equal) for arm in ready]
    arms.sort(key=lambda arm: math.inf if arm.test.mean is None else arm.test.mean)
    if arms:
        arms = [arm.model_copy(update={"against_best": _against(arm, arms[0], len(plan.seeds))}) for arm in arms]
    stopped = comparison.stop.number
    return CompareResult(
        recipe=options.recipe,
        out=str(out),
        overrides=options.overrides,
        device=plan.device,
        unit=comparison.data.codec.unit,
        steps=train.steps,
        tokens=train.steps * train.tokens_per_step,
        seeds=plan.seeds,
        sweep_steps=plan.sweep_steps,
        every_rate=plan.every_rate,
        machine=_machine(comparison, rows),
        arms=tuple(arms),
        runs=rows,
        equal_seconds=equal,
        unfinished=0 if whole else sum(scores is None for scores in found.values()),
        unmeasured=0 if whole or plan.only else sum(comparison.speed(arm) is None for arm in plan.arms),
        foreign=plan.foreign,
        stopped_by=None if stopped is None else signal.Signals(stopped).name,
    )


def _machine(comparison: Comparison, rows: tuple[RunScores, ...]) -> dict[str, Any]:
    """This machine, or the one where what was taken is from."""
    from mamba_bio_audio.run.environment import environment

    if not comparison.plan.foreign or not rows:
        return environment("cpu" if comparison.plan.foreign else comparison.plan.device)
    manifest = read_json(comparison.out / rows[0].folder / "manifest.json")
    return {key: value for key, value in manifest.items() if key not in ("seed", "data")}


def _arm(options: CompareOptions, comparison: Comparison, name: str, equal: float | None) -> ArmResult:
    plan, rate = comparison.plan, comparison.chosen(name)
    runs = plan.final(name, rate)
    scores: list[dict[str, Any]] = [comparison.scores(run) or {} for run in runs]
    speed, rates = comparison.speed(name) or {}, plan.rates[name]
    answered = {
        key: Spread.of([row[key] for row in scores]) for key in ("valid_right", "test_right") if key in scores[0]
    }
    variants, overrides = options.settings()[name]
    return ArmResult(
        name=name,
        settings=(*(f"@{variant}" for variant in variants), *overrides),
        parameters=comparison.parameters(name),
        rate=rate,
        at_edge=len(rates) > 1 and rate in (rates[0], rates[-1]),
        memory_bytes=speed.get("memory_bytes"),
        tokens_per_second=speed.get("tokens_per_second"),
        seconds=plan.first.train.steps * speed["seconds_per_step"] if speed else None,
        valid=Spread.of([row["valid_nats"] for row in scores]),
        test=Spread.of([row["test_nats"] for row in scores]),
        **answered,
        in_equal_time=None if equal is None else _within(comparison, runs, equal / speed["seconds_per_step"]),
        against_best="",
    )


def _within(comparison: Comparison, runs: list[Run], steps: float) -> float | None:
    """Mean validation loss of the last validations within so many steps."""
    found = []
    for run in runs:
        before = [row["valid_nats"] for row in comparison.curve(run) if row["step"] <= steps * (1 + 1e-9)]
        if not before:
            return None
        found.append(before[-1])
    mean = sum(found) / len(found)
    return mean if math.isfinite(mean) else None


def _against(arm: ArmResult, best: ArmResult, seeds: int) -> str:
    """Whether an arm is told from the best one."""
    if arm.test.mean is None or best.test.mean is None:
        return "diverged"
    if arm is best:
        return "best"
    if seeds < 2:
        return "one seed"
    gap = arm.test.mean - best.test.mean
    return "worse" if gap > max(arm.test.width, best.test.width) else "not separated"


def _write(folder: Path, result: CompareResult, comparison: Comparison) -> None:
    """Tables and picture of what is finished."""
    for name, rows in ((TABLE, result.arms), (RUNS, result.runs)):
        plain = [_flat(row.model_dump(mode="json")) for row in rows]
        if plain:
            text = io.StringIO()
            writer = csv.DictWriter(text, plain[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(plain)
            write_text(folder / name, text.getvalue())
    if result.arms:
        from mamba_bio_audio.evaluation.figures import loss_curves

        curves = {
            arm.name: (
                [comparison.curve(run) for run in comparison.plan.final(arm.name, arm.rate)],
                None if arm.seconds is None else arm.seconds / result.steps,
            )
            for arm in result.arms
        }
        loss_curves(curves, result.tokens // result.steps, result.unit, folder / PICTURE)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Nested values under names with underscores, lists with spaces."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= {f"{key}_{name}": inner for name, inner in value.items()}
        else:
            found[key] = " ".join(map(str, value)) if isinstance(value, list) else value
    return found
