"""`docs/contracts.md` and `docs/api.md` say what the docstrings say. `WRITE_CONTRACTS=1` writes them anew."""

import ast
import inspect
import os
import textwrap
from pathlib import Path

import pytest

import mamba_bio_audio as mba

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mamba_bio_audio"
CONTRACTS = """\
# Contracts

What the parts of the package promise each other. Generated from the docstrings of these files: change those, then
run `WRITE_CONTRACTS=1 python -m pytest tests/test_contracts.py`.
"""
# From the layers up.
ORDER = (
    "layers/contract.py",
    "models/contract.py",
    "pipelines/contract.py",
    "pipelines/sample_writer.py",
    "pipelines/corpus.py",
    "jobs/contract.py",
)
API = """\
# Python

Every public function, with shapes and units. Generated from the docstrings: change those, then run
`WRITE_CONTRACTS=1 python -m pytest tests/test_contracts.py`. What one function returns the others take:

```python
import math

import mamba_bio_audio as mba

model = mba.load("runs/mine")  # a run, an export, the name of a packaged model

tokens = mba.generate(model, length=1000, num_samples=4, prompt="ACGT", seed=1)  # int64 (4, 1000)
text = model.decode(tokens[0])  # a str of 1000 bases
assert mba.generate(model, length=5, prompt=text).shape == (1, 5)

found = mba.log_likelihood(model, tokens)  # nats
bits = -found.total / found.scored / math.log(2)  # bits per base, (4,)

vectors = mba.embed(model, tokens)  # (4, D), one vector for each sample
tracks = mba.embed(model, [text, "ACGTN"], layer=0, pool="bins:128", strand="both")  # a list of (8, D) and (1, D)

scores = mba.score_variants(model, "genome.fa", [("chr1", 5_000, "A", "G")], context=256)
```

- **Sequences** are text (`"ACGT"`), integer ids (L,), float samples of audio (L,), several of one length (B, L), or a list
  of sequences of any lengths. Ids come from `model.encode`, and text from `model.decode`. Rows of a batch never see each other,
  and padding never counts.
- **Letters**: B sequences, L symbols (bases, or samples of audio), D channels, K classes, V ids.
- **Units**: log-likelihoods are in nats; divide by ln 2 = 0.693 for bits. Positions are counted from 0, ends are exclusive.
- **Where**: everything runs on the device of the model's parameters (`model.to("cuda")`); results come back on the CPU.
- **Length**: sequences of any length are read in pieces (`chunk`) with the state carried, in memory that does not grow with the
  length, where all layers have a state of constant size (`model.streaming == "constant"`).
- **Mistakes** raise `mamba_bio_audio.errors.InputError`, a `ValueError` that says what, where and what to do.

`mba sample`, `mba score`, `mba embed`, `mba variants` and `mba predict` do the same for files (`docs/outputs.md`). The models
behind these functions are in `docs/contracts.md`.
"""
# In the order in which they are used; the functions of `mba` by their module, and methods of every model.
SECTIONS = ("load", "generate", "log_likelihood", "embed", "score_variants", "predict", "predict_along")
METHODS = ("encode", "decode")


def body(node: ast.AST) -> str:
    return inspect.cleandoc(ast.get_docstring(node, clean=False) or "")


def parameters(node: ast.FunctionDef) -> list[str]:
    """Each parameter as written, without self; `*` where only names follow."""
    given, out = node.args, []
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + [*given.defaults]
    for arg, default in zip(plain, defaults, strict=True):
        out.append((arg, default))
    named = list(zip(given.kwonlyargs, given.kw_defaults, strict=True))

    def written(arg: ast.arg, default: ast.expr | None) -> str:
        equals = " = " if arg.annotation is not None else "="
        return ast.unparse(arg) + ("" if default is None else equals + ast.unparse(default))

    texts = [written(arg, default) for arg, default in out]
    if given.vararg is not None:
        texts.append(f"*{ast.unparse(given.vararg)}")
    elif named:
        texts.append("*")
    texts += [written(arg, default) for arg, default in named]
    if given.kwarg is not None:
        texts.append(f"**{ast.unparse(given.kwarg)}")
    return [text for text in texts if text not in ("self", "cls")]


def signature(node: ast.FunctionDef) -> str:
    """`name(arguments) -> type` on one line."""
    arguments = ast.unparse(node.args)
    arguments = arguments.removeprefix("self, ").removeprefix("cls, ").removeprefix("self").removeprefix("cls")
    return f"{node.name}({arguments})" + ("" if node.returns is None else f" -> {ast.unparse(node.returns)}")


def described(node: ast.ClassDef | ast.FunctionDef) -> str:
    """One class or function of a contract as Markdown."""
    if isinstance(node, ast.FunctionDef):
        return f"### `{signature(node)}`\n\n```text\n{body(node)}\n```\n"
    lines = [f"### `{node.name}`\n", f"```text\n{body(node)}\n```\n"]
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_") and body(item):
            name = signature(item)
            if any(isinstance(mark, ast.Name) and mark.id == "property" for mark in item.decorator_list):
                name = name.replace("()", "", 1)
            lines.append(f"- `{name}`\n{textwrap.indent(body(item), '  ')}\n")
    return "\n".join(lines)


def contracts() -> str:
    parts = [CONTRACTS]
    for name in ORDER:
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        parts.append(f"## `{name}`\n\n```text\n{body(tree)}\n```\n")
        parts += [
            described(node)
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_") and body(node)
        ]
    return "\n".join(parts)


def public(name: str, node: ast.FunctionDef) -> str:
    """A public function as Markdown: how it is called, then what it says of itself."""
    lines = "".join(f"    {text},\n" for text in parameters(node))
    returns = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    call = f"{name}({lines and chr(10)}{lines}){returns}".replace("'", '"')
    return f"### `{name}`\n\n```text\n{call}\n\n{body(node)}\n```\n"


def function_of(tree: ast.Module, name: str) -> ast.FunctionDef:
    """The last definition of a name: those before it only say which types belong together."""
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name][-1]


def classes_of(tree: ast.Module, nodes: list) -> list[ast.ClassDef]:
    """The classes of a module that some code names: what goes in and comes out of a function, and what that is made of."""
    words = {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)}
    found = [one for one in tree.body if isinstance(one, ast.ClassDef) and one.name in words]
    return found if set(found) <= set(nodes) else classes_of(tree, [*nodes, *found])


def api() -> str:
    parts = [API]
    for name in SECTIONS:
        tree = ast.parse((PACKAGE / f"{mba._FUNCTIONS[name].replace('.', '/')}.py").read_text(encoding="utf-8"))
        parts.append(f"## {name.replace('_', ' ').capitalize()}\n\n```text\n{body(tree)}\n```\n")
        node = function_of(tree, name)
        parts.append(public(f"mba.{name}", node))
        parts += map(described, classes_of(tree, [node.args, node.returns]))
        if name == "load":
            tree = ast.parse((PACKAGE / "models/contract.py").read_text(encoding="utf-8"))
            (model,) = (one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == "SequenceModel")
            for node in model.body:
                if isinstance(node, ast.FunctionDef) and node.name in METHODS:
                    parts.append(public(f"model.{node.name}", node))
    tree = ast.parse((PACKAGE / "ops/__init__.py").read_text(encoding="utf-8"))
    parts.append(f"## Operations\n\n```text\n{body(tree)}\n```\n")
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    # What is no operation comes last.
    for source in sorted(imports, key=lambda source: str(source.module).endswith(("calls", "inputs"))):
        own = ast.parse((ROOT / f"{str(source.module).replace('.', '/')}.py").read_text(encoding="utf-8"))
        for alias in source.names:
            of = [one for one in own.body if getattr(one, "name", None) == alias.name]
            function = isinstance(of[-1], ast.FunctionDef)
            parts.append(public(f"ops.{alias.name}", of[-1]) if function else described(of[-1]))
    return "\n".join(parts)


PAGES = {"contracts.md": contracts, "api.md": api}


def test_every_contract_has_its_place():
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("contract.py")}
    assert found <= set(ORDER)


def test_every_public_function_has_its_place():
    assert set(SECTIONS) == set(mba._FUNCTIONS)


@pytest.mark.parametrize("name", PAGES)
def test_the_page_says_what_the_docstrings_say(name):
    text, page = PAGES[name](), ROOT / "docs" / name
    if os.environ.get("WRITE_CONTRACTS"):
        page.write_text(text, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == text, "run WRITE_CONTRACTS=1 python -m pytest tests/test_contracts.py"
