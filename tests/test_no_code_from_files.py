"""Nothing that is read can run code: no pickle, no evaluation of text, no shell, by the syntax tree of all that we ship."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for folder in ("mamba_bio_audio", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)

# Modules whose reading runs what the file says.
UNPICKLING = {"pickle", "_pickle", "pickletools", "joblib", "shelve", "dill", "cloudpickle", "jsonpickle", "marshal"}
# `compile` by itself runs nothing.
BUILTINS = {"eval", "exec", "__import__"}
CALLS = {
    "os.system", "os.popen", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "torch.hub.load",
    "torch.jit.load", "torch.package.PackageImporter", "numpy.lib.format.read_array", "runpy.run_path",
    "importlib.import_module",
}  # fmt: skip
METHODS = {"read_pickle", "to_pickle", "load_from_checkpoint"}
# Registries, which import the modules of this package by names that its own folders or lists hold.
REGISTRIES = {"__init__.py", "cli/adapter.py", "layers/contract.py", "pipelines/domains.py"}
# Keywords that switch it on.
KEYWORDS = {"weights_only": False, "allow_pickle": True, "trust_remote_code": True, "shell": True}


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`np.load` as numpy.load; empty for what is no plain name."""
    if isinstance(node, ast.Attribute):
        left = dotted(node.value, names)
        return f"{left}.{node.attr}" if left else ""
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def dangers(tree: ast.AST) -> list[str]:
    """What of a source file could run code that was read, as `line: what`."""
    names: dict[str, str] = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                if alias.name.split(".")[0] in UNPICKLING:
                    found.append(f"{node.lineno}: import {alias.name}")
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if node.module.split(".")[0] in UNPICKLING:
                    found.append(f"{node.lineno}: from {node.module} import {alias.name}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func, names)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        for key, switch in KEYWORDS.items():
            value = keywords.get(key)
            # What is not written out as the safe value may be the other one.
            if value is not None and not (isinstance(value, ast.Constant) and value.value is (not switch)):
                found.append(f"{node.lineno}: {key}={ast.unparse(value)}")
        last = node.func.attr if isinstance(node.func, ast.Attribute) else name
        if name in BUILTINS or name in CALLS or last in METHODS:
            found.append(f"{node.lineno}: {name or last}")
        if name in ("torch.load", "torch.serialization.load", "lightning.fabric.utilities.cloud_io._load") and (
            "weights_only" not in keywords or None in keywords
        ):
            found.append(f"{node.lineno}: {name} without weights_only=True")
        if name in ("numpy.load", "numpy.lib.npyio.load") and (len(node.args) > 2 or None in keywords):
            found.append(f"{node.lineno}: {name} with allow_pickle by position")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_is_read_is_run(path):
    found = dangers(ast.parse(path.read_text(encoding="utf-8")))
    if any(path == ROOT / "mamba_bio_audio" / name for name in REGISTRIES):
        found = [danger for danger in found if not danger.endswith(": importlib.import_module")]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import UnpicklingError",
        "import joblib.numpy_pickle",
        "import torch\ntorch.load(x)",
        "import torch\ntorch.load(x, weights_only=False)",
        "import torch\ntorch.load(x, weights_only=safe)",
        "import torch\ntorch.load(x, **options)",
        "import torch as t\nt.load(x)",
        "from torch import load as read\nread(x)",
        "trainer.fit(model, weights_only=False)",
        "trainer.fit(model, weights_only=None)",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "import numpy as np\nnp.load(x, None, True)",
        "eval('1')",
        "exec(text)",
        "import os\nos.system('ls')",
        "subprocess.run(x, shell=True)",
        "import yaml\nyaml.load(x, Loader=L)",
        "frame.read_pickle(x)",
        "M.from_pretrained(x, trust_remote_code=True)",
        "M.load_from_checkpoint(x)",
    ],
)
def test_the_search_finds_what_it_is_for(source):
    assert dangers(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(x, weights_only=True)",
        "import numpy as np\nnp.load(x)\nnp.load(x, allow_pickle=False)",
        "model.eval()\nre.compile('a')\nyaml.safe_load(x)",
        "trainer.fit(model, weights_only=True)",
    ],
)
def test_the_search_leaves_the_rest_alone(source):
    assert not dangers(ast.parse(source))
