"""Windows and macOS, as far as Linux can show it: what they lack is hidden, and data workers are spawned."""

import ast
import json
import pickle
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mamba_bio_audio.pipelines.stream import stop_workers
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.data import open_data

PACKAGE = Path(__file__).parent.parent / "mamba_bio_audio"

# The libraries come first: how they manage on other systems is their affair.
HIDE = """
import os, signal, sys
import torch, lightning, numpy, soundfile, matplotlib.pyplot, sklearn, scipy.stats, torchmetrics, tensorboard, filelock
import torch.utils.tensorboard, lightning.pytorch.loggers, torch.utils.data, multiprocessing.pool, jinja2
for name in ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "triton", "pysam"):
    sys.modules[name] = None
for name in (
    "fork", "forkpty", "getuid", "geteuid", "getgid", "getpgid", "setsid", "killpg", "sysconf", "sched_getaffinity",
    "uname", "fchmod", "chown", "mkfifo", "statvfs", "nice", "getloadavg", "posix_fadvise",
):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGUSR2", "SIGALRM", "SIGQUIT", "alarm", "setitimer", "pthread_sigmask"):
    if hasattr(signal, name):
        delattr(signal, name)
"""


def python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@cache
def of_a_gpu(path: Path) -> bool:
    """Modules of `kernels/` that begin with importing Triton, themselves or through another one of them."""
    if PACKAGE / "kernels" not in path.parents:
        return False
    names: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    files = [PACKAGE.parent / (name.replace(".", "/") + ".py") for name in names]
    return any(name.split(".")[0] == "triton" for name in names) or any(of_a_gpu(f) for f in files if f.exists())


TINY = [
    "data.path=demo",
    "model.d_model=8",
    "model.num_layers=1",
    "train.length=32",
    "train.tokens_per_step=64",
    "train.steps=2",
    "train.validate_every=2",
    "train.validation_tokens=256",
]


@pytest.mark.slow
def test_the_cpu_path_needs_nothing_that_only_linux_has(tmp_path):
    """Imports everything, then trains, resumes and samples; fails before at `import resource`."""
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
        if not of_a_gpu(path) and path.name not in ("__init__.py", "__main__.py")
    ]
    assert len(modules) > 100
    code = HIDE + (
        "import importlib, json\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(name)\n"
        "from mamba_bio_audio.cli.main import run\n"
        "def mba(*arguments):\n"
        "    try:\n"
        "        run(list(arguments))\n"
        "    except SystemExit as ended:\n"
        "        assert not ended.code, (arguments, ended.code)\n"
        "settings = [part for text in json.loads(sys.argv[3]) for part in ('--set', text)]\n"
        "out = os.path.join(sys.argv[2], 'run')\n"
        "mba('pretrain', 'dna/tiny', *settings, '--out', out, '--device', 'cpu')\n"
        "mba('pretrain', 'dna/tiny', *settings, '--set', 'train.steps=3', '--out', out, '--device', 'cpu', '--resume')\n"
        "mba('sample', out, '--length', '20', '--num-samples', '2', '--out', out + '.fa', '--device', 'cpu')\n"
        "from mamba_bio_audio import machine\n"
        "assert machine.peak_memory() is None and machine.total_memory() is None\n"
        "assert machine.raise_open_files(10_000) == 512\n"
    )
    python(code, json.dumps(modules), tmp_path, json.dumps(TINY))
    assert (tmp_path / "run.fa").read_text().count(">") == 2


def kinds(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """A small data set of every kind."""
    for number, name in enumerate("xy"):
        letters = "".join(np.random.default_rng(number).choice(list("ACGT"), 6000))
        (folder / f"{name}.fa").write_text(f">{name}\n{letters}\n")
    for name in "abcdefghijkl":
        noise = np.random.default_rng(ord(name)).uniform(-0.5, 0.5, 1600)
        soundfile.write(folder / f"{name}.wav", noise, 16000)
    classes = f"data.path={{x: {folder / 'x.fa'}, y: {folder / 'y.fa'}}}"
    return {
        "dna": ("dna/tiny", [f"data.path={folder / 'x.fa'}"]),
        "classes": ("dna/species@tiny", [classes, "data.block_bases=500", "train.length_warmup=[]"]),
        "audio": ("audio/tiny", [f"data.path={folder}"]),
    }


@pytest.mark.parametrize("kind", ["dna", "classes", "audio"])
def test_what_workers_read_from_can_be_sent_to_a_spawned_process(kind, tmp_path):
    recipe, settings = kinds(tmp_path)[kind]
    data = open_data(load_config(recipe, [*settings, "train.length=64", "train.tokens_per_step=256"]), "cpu")
    data.setup("fit")
    for loader in (data.train_dataloader(), data.evaluation_dataloader("valid")):
        for part in (loader.dataset, loader.collate_fn, loader.worker_init_fn):
            again = pickle.loads(pickle.dumps(part))
        dataset = pickle.loads(pickle.dumps(loader.dataset))
        assert callable(again)
        first, second = (next(iter(one)) if hasattr(one, "__iter__") else one[0] for one in (loader.dataset, dataset))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_spawned_worker_reads_what_this_process_would(tmp_path):
    """Slow: the worker imports everything anew."""
    recipe, settings = kinds(tmp_path)["dna"]
    data = open_data(load_config(recipe, [*settings, "data.num_workers=1", "train.length=64"]), "cpu")
    data.setup("fit")
    loader = data.train_dataloader()
    loader.multiprocessing_context = "spawn"
    try:
        found = next(iter(loader))
    finally:
        stop_workers(loader)
    expected = next(iter(loader.dataset))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
