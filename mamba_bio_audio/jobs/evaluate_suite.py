"""`mba evaluate --suite`: the field's benchmarks, with bars on the same splits.

For each task: rates are chosen on validation with the first seed, every seed is trained with the best one, and then the
test split is read, once. k-mer regression and a small convolutional network are tuned on the same validation split, and so is
logistic regression on the vectors of a pretrained model (frozen).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import MARKER, Maker, growing_folder, read_json, write_json, write_text
from mamba_bio_audio.jobs.suite_kept import SETTINGS, WHOLE, check_data, check_settings, finished, open_test
from mamba_bio_audio.jobs.suite_options import FIXED, SuiteOptions
from mamba_bio_audio.jobs.suite_results import Gain, ModelScores, SuiteResult, TaskResult, predictions_table
from mamba_bio_audio.pipelines.contract import Progress
from mamba_bio_audio.run.folder import RUN_FILES

if TYPE_CHECKING:
    from mamba_bio_audio.evaluation.cnn import Labelled
    from mamba_bio_audio.pipelines.data import DataModule
    from mamba_bio_audio.pipelines.dna.suites import Task
    from mamba_bio_audio.run.config import RunConfig

TABLE = "suite.csv"
PREDICTIONS = "predictions"
MAKER = Maker(
    "evaluate --suite",
    (
        WHOLE,
        TABLE,
        SETTINGS,
        "tasks/*.json",
        f"{PREDICTIONS}/*.csv",
        *(f"runs/*/*/{name}" for name in (MARKER, *RUN_FILES)),
    ),
)
KMERS = (3, 4, 5, 6, 7)
# Rates that are tried, times that of the recipe.
RATES = (1 / 3, 1.0, 3.0)


class Asked(NamedTuple):
    """The options of one call."""

    suite: Literal["gue", "genomic-benchmarks", "nucleotide-transformer"]
    folder: Path
    out: Path
    options: SuiteOptions
    overrides: tuple[str, ...]
    device: str
    progress: Progress

    @property
    def seeds(self) -> list[int]:
        """Of each training."""
        return [int(part) for part in self.options.seeds.split(",")]

    @property
    def arms(self) -> list[str]:
        """What is trained."""
        return self.options.arms.split(",")


class Arm(NamedTuple):
    """One way of training our model: its name in the tables, and its settings."""

    name: str
    settings: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Its name in the names of runs."""
        return self.name.replace(", ", "-").replace(" ", "-")


class Trial(NamedTuple):
    """A model that is ready to be tested: for each seed, how it gives class probabilities of ids."""

    name: str
    chosen: str
    candidates: list[dict[str, Any]]
    predict: Mapping[int, Callable[[Sequence[Any]], Any]]


class Stopped(Exception):
    """A signal ended a training; its name is the argument."""


def evaluate_suite(asked: Asked) -> SuiteResult:
    """Every task of a suite; finished ones are kept in `asked.out`, and not done again.

    Raises:
        InputError: there is no such task, or the folder holds the results of other settings.
    """
    from mamba_bio_audio.pipelines.dna.suites import find_tasks
    from mamba_bio_audio.run.environment import environment

    keys = [text.partition("=")[0] for text in asked.overrides]
    twice = next((key for key in ("train.steps", "train.validate_every") if key in keys), None)
    if asked.options.epochs is not None and twice is not None:
        raise InputError(f"--epochs says what {twice} is; leave one of them out")
    tasks = find_tasks(asked.suite, asked.folder, asked.options.task)
    if not [*_arms(asked), *_frozen(asked)] and not {"kmers", "cnn", *FIXED} & set(asked.arms):
        raise InputError("--arms frozen and finetuned need --pretrained RUN")
    if (kept := finished(asked, tasks)) is not None:
        return kept
    # As it is now: a source tree may change while this runs.
    machine = environment(asked.device)
    with growing_folder(asked.out, MAKER, WHOLE, inputs=[asked.folder], force=asked.options.force) as out:
        check_settings(asked, out)
        for name in ("tasks", PREDICTIONS):
            (out / name).mkdir(exist_ok=True)
        done: list[TaskResult] = []
        stopped = None
        for number, task in enumerate(tasks):
            asked.progress("tasks", number, len(tasks))
            place = out / "tasks" / f"{task.name}.json"
            check_data(asked, task, out)
            try:
                if not place.exists():
                    write_json(place, _evaluate_task(asked, task, out).model_dump(mode="json"))
            except Stopped as signal:
                stopped = str(signal)
                break
            done.append(TaskResult.model_validate(read_json(place)))
        result = SuiteResult(
            suite=asked.suite,
            out=str(asked.out),
            seeds=asked.seeds,
            recipe=asked.options.recipe,
            overrides=list(asked.overrides),
            pretrained=list(asked.options.pretrained),
            machine=machine,
            tasks=done,
            stopped_by=stopped,
            unfinished=[task.name for task in tasks[len(done) :]],
        )
        write_text(out / TABLE, result.table())
        if stopped is None:
            write_json(out / WHOLE, result.to_json())
    return result


def _arms(asked: Asked) -> list[Arm]:
    """Ways of training that were asked for."""
    arms = [Arm("from scratch")] if "scratch" in asked.arms else []
    if "finetuned" in asked.arms:
        arms += [Arm(f"{name}, fine-tuned", (f"head.pretrained={run}",)) for name, run in _pretrained(asked).items()]
    return arms


def _frozen(asked: Asked) -> dict[str, str]:
    """Pretrained models that are read as they are."""
    return _pretrained(asked) if "frozen" in asked.arms else {}


def _pretrained(asked: Asked) -> dict[str, str]:
    """Pretrained models by the names of their folders."""
    names = [Path(run).resolve().name for run in asked.options.pretrained]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--pretrained: two models would be called {twice!r}; rename one of the folders")
    return dict(zip(names, asked.options.pretrained, strict=True))


def _evaluate_task(asked: Asked, task: Task, out: Path) -> TaskResult:
    """Choose on validation, then read the test split."""
    import numpy as np

    from mamba_bio_audio.evaluation.suite import gain, test_scores, verdict
    from mamba_bio_audio.pipelines.dna.class_duplicates import related
    from mamba_bio_audio.pipelines.scores import labelled_sequences

    length = _longest(task)
    data = _open(asked, task, length)
    described = data.summary()
    known = Known.of(data)
    trials = [*_bars(asked, task, data, known)]
    ours = {
        trial.name: trial
        for trial in (
            *_probes(asked, task, known, data.codec.reverse_complement),
            *_ours(asked, task, data, length, out / "runs" / task.name),
        )
    }
    ways = [f"{name}, {way}" for name in _pretrained(asked) for way in ("frozen", "fine-tuned")]
    trials += [ours[name] for name in ("from scratch", *ways) if name in ours]
    opened = open_test(out / "tasks" / f"{task.name}.opened.json")
    test = data.evaluation_dataset("test")
    rows, y = labelled_sequences(test)
    clean = data.corpus.strata("test").get("not in train", np.ones(len(y), dtype=bool))
    labelled = data.corpus.labelled
    groups = np.array(related(test.windows, labelled.identity, labelled.near))
    found = {trial.name: {seed: predict(rows) for seed, predict in trial.predict.items()} for trial in trials}
    write_text(out / PREDICTIONS / f"{task.name}.csv", predictions_table(found, y, clean, groups, data.corpus.classes))

    def scores(p: Any, seed: int) -> dict[str, Any]:
        whole = len(np.unique(y[clean])) == len(data.corpus.classes)
        return {
            "seed": seed,
            "all": test_scores(p, y),
            "clean": test_scores(p[clean], y[clean]) if whole else None,
        }

    models = [
        ModelScores(
            name=trial.name,
            chosen=trial.chosen,
            candidates=trial.candidates,
            seeds=[scores(p, seed) for seed, p in found[trial.name].items()],  # type: ignore[misc]
        )
        for trial in trials
    ]
    gains = []
    for at, against in _pairs([trial.name for trial in trials]):
        row = gain([*found[at].values()], [*found[against].values()], y, groups)
        bounds = [None if math.isnan(bound) else bound for bound in (row.low, row.high)]
        gains.append(
            Gain(model=at, against=against, value=row.value, low=bounds[0], high=bounds[1], verdict=verdict(row))
        )
    conflicts = described["label_conflicts"]
    return TaskResult(
        task=task.name,
        metric=task.metric,
        stranded=task.stranded,
        classes=list(data.corpus.classes),
        length=length,
        sizes={split: row["regions"] for split, row in described["splits"].items()},
        faults={
            "valid_dropped": described["dropped_from_valid"],
            "test_equal": described["shared_sequences"]["train/test"],
            "test_near": described["near_sequences"]["train/test"],
            "two_labels": conflicts["sequences"],
            "ceiling": conflicts["ceiling"]["test"],
        },  # type: ignore[arg-type]
        models=models,
        gains=gains,
        published=dict(task.published),
        published_as=task.published_as,
        test_opened=opened,
    )


def _pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    """Each of ours against both bars, and what is pretrained against what is not."""
    for at, name in enumerate(names):
        if name != "CNN" and not name.endswith("-mers"):
            yield from ((name, other) for other in names[:at] if other in ("k-mers", "CNN", "from scratch"))


def _longest(task: Task) -> int:
    from mamba_bio_audio.pipelines.dna.classes_config import DnaClassesConfig
    from mamba_bio_audio.pipelines.dna.labelled import open_labelled

    return max(len(region) for region in open_labelled(DnaClassesConfig.model_validate(task.settings())).regions)


def _config(asked: Asked, task: Task, length: int, *more: str) -> RunConfig:
    """The recipe for one task: as many sequences a step as it has, each of them whole."""
    from mamba_bio_audio.run.pretrained import configure

    # What the recipe says before its length is changed; a length warm-up would cut examples.
    overrides = list(asked.overrides)
    plain = configure(asked.options.recipe, [f"data.path={task.path}", *overrides, *more], gives_way=True)
    if plain.head is None:
        raise InputError(f"--recipe {asked.options.recipe} has no head; choose one that trains a classifier")
    sequences = max(1, plain.train.tokens_per_step // plain.train.length)
    settings = [f"data.{key}={value}" for key, value in task.settings().items()]
    size = [f"train.length={length}", f"train.tokens_per_step={sequences * length}", "train.length_warmup=[]"]
    # The section model is for training from scratch; a pretrained model brings its own.
    return configure(asked.options.recipe, [*overrides, *settings, *size, *more], gives_way=True)


def _open(asked: Asked, task: Task, length: int) -> DataModule:
    from mamba_bio_audio.run.data import open_data

    # What one of the arms refuses is told before anything is trained.
    configs = [_config(asked, task, length, *arm.settings) for arm in _arms(asked)] or [_config(asked, task, length)]
    data = open_data(configs[0], asked.device)
    data.setup()
    return data


class Known(NamedTuple):
    """Ids and classes of the training and validation sequences."""

    train: Labelled
    valid: Labelled
    classes: int

    @classmethod
    def of(cls, data: DataModule) -> Known:
        """Those of a task, as they are read."""
        from mamba_bio_audio.evaluation.cnn import Labelled
        from mamba_bio_audio.pipelines.scores import labelled_sequences

        corpus = data.corpus
        train = Labelled(*labelled_sequences(data.dataset(corpus.windows(data.length))))
        return cls(train, Labelled(*labelled_sequences(data.evaluation_dataset("valid"))), len(corpus.classes))


def _probes(asked: Asked, task: Task, known: Known, reverse: Callable[[Any], Any]) -> Iterator[Trial]:
    """Logistic regression on the mean hidden states of pretrained models, in the middle, at three quarters and at the end.

    Of either strand side by side where it is known, else of both together. Other layers than the last are worth a lot: on dev
    of mouse_0 .795 instead of .749 (AUROC), on that of prom_core_tata .814 instead of .800.
    """
    import numpy as np

    from mamba_bio_audio.inference.embed import embed
    from mamba_bio_audio.pipelines.dna.kmers import fit_regression
    from mamba_bio_audio.run import saved

    def vectors(model: Any, rows: Sequence[Any]) -> Any:
        count = model.hidden_layers
        layers: list[Any] = [*sorted({max(1, count // 2) - 1, max(1, 3 * count // 4) - 1}), "final"]
        readings = [list(rows), [reverse(row) for row in rows]]
        found = [[np.asarray(embed(model, reading, layer)) for layer in layers] for reading in readings]
        ahead, back = (np.concatenate(parts, 1) for parts in found)
        return np.concatenate([ahead, back], 1) if task.stranded else (ahead + back) / 2

    for name, run in _frozen(asked).items():
        model = saved.load(run).to(asked.device)
        train, valid = (vectors(model, part.rows) for part in (known.train, known.valid))
        fit = fit_regression(train, known.train.labels, valid, known.valid.labels)

        def predict(rows: Sequence[Any], model: Any = model, fit: Any = fit) -> Any:
            return np.asarray(fit.model.predict_proba(vectors(model, rows)), dtype=np.float64)

        yield Trial(f"{name}, frozen", f"penalty 1/{fit.strength:g}", fit.table, {0: predict})


def _bars(asked: Asked, task: Task, data: DataModule, known: Known) -> list[Trial]:
    """Simple models, tuned on validation."""
    import numpy as np

    from mamba_bio_audio.evaluation.cnn import RATES as CNN_RATES
    from mamba_bio_audio.evaluation.cnn import CnnTask, cnn_probabilities, fit_cnn
    from mamba_bio_audio.pipelines.dna.kmers import fit_kmers

    train, valid, classes = known
    trials = []
    for arm, sizes in {"kmers": KMERS, **FIXED}.items():
        if arm not in asked.arms:
            continue
        fits = [fit_kmers(*train, *valid, classes, sizes=sizes, both_strands=both) for both in (True, False)]
        best = min(fits, key=lambda fit: min(row["valid_nats"] for row in fit.table))
        strand = "both strands together" if best.both_strands else "one strand"
        candidates = [row | {"both_strands": fit.both_strands} for fit in fits for row in fit.table]
        chosen = f"k = {best.k}, {strand}, penalty 1/{best.strength:g}"
        if arm == "kmers":
            chosen = "; ".join([chosen, *best.edges])
        name = "k-mers" if arm == "kmers" else f"{sizes[0]}-mers"
        trials.append(Trial(name, chosen, candidates, {0: best.probabilities}))
    if "cnn" in asked.arms:
        reverse = None if task.stranded else data.codec.reverse_complement
        work = CnnTask(train, valid, classes, data.codec.vocab_size, reverse, asked.device)
        seeds = asked.seeds
        first = [fit_cnn(work, seed=seeds[0], rate=rate) for rate in CNN_RATES]
        top = min(first, key=lambda fit: fit.valid_nats)
        fitted = {seeds[0]: top} | {seed: fit_cnn(work, seed=seed, rate=top.rate) for seed in seeds[1:]}
        predict = {seed: partial(cnn_probabilities, fit.model, task=work) for seed, fit in fitted.items()}
        candidates = [{"rate": fit.rate, "valid_nats": fit.valid_nats, "epoch": fit.epoch} for fit in first]
        trials.append(Trial("CNN", f"rate {top.rate:g}", candidates, predict))
    assert all(np.isfinite(row["valid_nats"]) for trial in trials for row in trial.candidates)
    return trials


def _ours(asked: Asked, task: Task, data: DataModule, length: int, runs: Path) -> Iterator[Trial]:
    """Our model in each way of training it."""
    for arm in _arms(asked):
        base = _config(asked, task, length, *arm.settings)
        settings = (*arm.settings, *_passes(asked, base, data))
        rates = [float(part) for part in asked.options.rates.split(",")] if asked.options.rates else None
        rates = rates or [float(f"{base.train.lr * factor:.2g}") for factor in RATES]
        seeds = asked.seeds
        name = arm.folder

        def trained(
            rate: float, seed: int, settings: tuple[str, ...] = settings, name: str = name
        ) -> tuple[Path, float]:
            config = _config(asked, task, length, *settings, f"train.lr={rate}", "train.lr_head=null", f"seed={seed}")
            return _train(asked, config, runs / f"{name}-lr{rate:g}-seed{seed}", data)

        tried = {rate: trained(rate, seeds[0]) for rate in rates}
        best = min(rates, key=lambda rate: tried[rate][1])
        found = {seeds[0]: tried[best][0]} | {seed: trained(best, seed)[0] for seed in seeds[1:]}
        for rate in rates:
            if rate != best:
                shutil.rmtree(tried[rate][0])
        yield Trial(
            arm.name,
            f"rate {best:g}",
            [{"rate": rate, "valid_nats": nats} for rate, (_, nats) in tried.items()],
            {seed: partial(_probabilities, run, task, asked.device) for seed, run in found.items()},
        )


def _passes(asked: Asked, base: RunConfig, data: DataModule) -> tuple[str, ...]:
    """Settings of --epochs."""
    if asked.options.epochs is None:
        return ()
    steps = math.ceil(asked.options.epochs * len(data.training_windows(data.length)) / base.train.sequences_per_step)
    # Rounded up: one more validation just before the last one would say nothing new.
    often = math.ceil(steps / max(1, round(asked.options.epochs)))
    return f"train.steps={steps}", f"train.validate_every={often}", f"train.checkpoint_every={steps}"


def _train(asked: Asked, config: RunConfig, run: Path, data: DataModule) -> tuple[Path, float]:
    """A finished run and its best validation loss; trained unless an interrupted call has finished it before."""
    from mamba_bio_audio.run.begin import Session
    from mamba_bio_audio.run.train import train

    manifest = run / "manifest.json"
    before = read_json(manifest).get("result") if manifest.exists() else None
    if before and before["stopped_by"] is None:
        return run, float(before["valid_nats"])
    if run.exists():
        shutil.rmtree(run)
    run.parent.mkdir(parents=True, exist_ok=True)
    result = train(config, run, Session(asked.device, quiet=True), data)
    if result.stopped_by is not None:
        raise Stopped(result.stopped_by)
    assert result.valid_nats is not None
    return run, result.valid_nats


def _probabilities(run: Path, task: Task, device: str, rows: Sequence[Any]) -> Any:
    """Class probabilities (n, K) of a run's best weights."""
    import numpy as np

    from mamba_bio_audio.inference.classify import classify
    from mamba_bio_audio.inference.streaming import Passes, positions
    from mamba_bio_audio.run import saved
    from mamba_bio_audio.training.config import resolve_precision

    model = saved.load_classifier(run).to(device)
    passes = Passes(device, resolve_precision(model.config.train.precision, device) == "bf16")
    step = max(1, positions(device) // max(map(len, rows)))
    codec = model.codec
    return np.concatenate(
        [
            classify(
                model,
                rows[at : at + step],
                pad_id=codec.pad_id,
                reverse=codec.reverse_complement,
                strand="forward" if task.stranded else "both",
                passes=passes,
            )
            for at in range(0, len(rows), step)
        ]
    )
