"""Every command of the README is run, in order, as written; training is only made shorter."""

import re
import shlex
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import typer

from mamba_bio_audio.cli.main import app
from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.recipes import recipe_names, variants_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHORTER = [
    part
    for key in (
        "train.steps=4",
        "train.length_warmup=[]",
        "train.validate_every=2",
        "train.validation_tokens=4096",
        "train.tokens_per_step=1024",
    )
    for part in ("--set", key)
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("mba ")]


def test_readme_commands_run_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    import gzip

    packaged = files("mamba_bio_audio") / "pipelines" / "dna" / "demo" / "e_coli.fa.gz"
    text = gzip.decompress(packaged.read_bytes()).decode()
    Path("genome.fa").write_text(text)
    record = text[1:].split()[0]
    rows = (("train", 0, 150_000), ("valid", 150_000, 170_000), ("test", 170_000, 200_000))
    Path("splits.bed").write_text("".join(f"{record}\t{a}\t{b}\t{split}\n" for split, a, b in rows))
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    base = "".join(text.split("\n")[1:])[5000]
    calls = f"{header}{record}\t5001\t.\t{base}\t{'A' if base != 'A' else 'C'}\t.\t.\t.\n"
    Path("calls.vcf.gz").write_bytes(gzip.compress(calls.encode()))
    bases = "".join(text.split("\n")[1:])
    Path("labels.tsv").write_text(
        "sequence\tlabel\n" + "".join(f"{bases[at : at + 100]}\t{'ab'[at % 2]}\n" for at in range(0, 60_000, 401))
    )
    Path("species").mkdir()
    for name in ("e_coli", "human", "fruit_fly"):
        shutil.copy(packaged.with_name(f"{name}.fa.gz"), "species")
    found = commands()
    assert len(found) >= 12
    for arguments in found:
        with pytest.raises(SystemExit) as stop:
            command([*arguments, *(SHORTER if arguments[0] in ("pretrain", "classify", "finetune", "compare") else [])])
        assert not stop.value.code, (arguments, capsys.readouterr().err)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1].strip("ACGT") == ""


DOCUMENTS = sorted((ROOT / "docs").rglob("*.md"))


def commands_of(document: Path) -> list[list[str]]:
    """What follows `mba` in the console blocks of a document, wherever it stands in a line."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL):
        for line in block.splitlines():
            for part in re.split(r"[|>]", line):
                words = shlex.split(part, comments=True)
                for name in ("mba", "mamba_bio_audio"):
                    if name in words:
                        found.append(words[words.index(name) + 1 :])
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_of_the_documents_are_understood(document):
    """They need genomes, GPUs or a network, so they are not run; every option, recipe and setting in them exists."""
    for arguments in commands_of(document):
        verb, rest = typer.main.get_command(app), list(arguments)
        while hasattr(verb, "commands"):
            verb = verb.commands[rest.pop(0)]
        context = verb.make_context(verb.name, list(rest))
        if arguments[0] in ("pretrain", "classify"):
            made = context.params["recipe"].startswith("synthetic/")
            settings = [*(context.params["overrides"] or []), *([] if made else ["data.path=."])]
            load_config(context.params["recipe"], [text for text in settings if "head.pretrained" not in text])


def test_there_are_commands_in_the_documents():
    assert sum(len(commands_of(document)) for document in DOCUMENTS) >= 12


@pytest.mark.parametrize("document", [ROOT / "README.md", *DOCUMENTS], ids=lambda path: path.name)
def test_commands_named_in_the_text_exist(document):
    """In running text and tables, `mba ...` names a command, and the options behind it are that command's."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    root = typer.main.get_command(app)
    for span in re.findall(r"`mba ([^`]+)`", text):
        verb, words = root, span.replace("\\|", "|").split()
        while hasattr(verb, "commands") and words and words[0][0] not in "-.":
            assert words[0] in verb.commands, f"mba {span}"
            verb = verb.commands[words.pop(0)]
        known = {option for parameter in verb.params for option in parameter.opts} | {"--help"}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0].rstrip(",.;:") in known, f"mba {span}"


def test_readme_names_every_make_target_and_recipe():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
    for name in recipe_names():
        assert f"`{name}`" in README, name
        for variant in variants_of(name):
            assert f"`@{variant}`" in README or variant.isdecimal() or name == "dna/hg38", f"{name}@{variant}"


@pytest.mark.parametrize(
    "name", [name + variant for name in recipe_names() for variant in ("", *(f"@{part}" for part in variants_of(name)))]
)
def test_every_recipe_loads(name, tmp_path):
    config = load_config(name, [] if name.startswith("synthetic/") else [f"data.path={tmp_path}"])
    assert config.description
    assert config.train.sequences_per_step >= 1


def test_the_paper_recipes_follow_the_paper():
    """Gu & Dao 2023, section E.3.2; docs/architecture.md keeps to the published numbers."""
    shapes = {
        name: (config.model.num_layers, config.model.d_model)
        for name in (f"dna/hg38@{variant}" for variant in variants_of("dna/hg38"))
        if re.fullmatch(r"dna/hg38@[\d.]+[km]", name)
        for config in [load_config(name, ["data.path=demo"])]
    }
    assert sorted(shapes.values()) == [(8, 64), (10, 96), (12, 128), (14, 192), (16, 256), (20, 384), (24, 512)]
    for name in shapes:
        train = load_config(name, ["data.path=demo"]).train
        assert (train.length, train.sequences_per_step, train.steps) == (1024, 1024, 10_000)
        assert (train.lr, train.betas, train.weight_decay) == (8e-3, (0.9, 0.95), 0.1)
        assert (train.warmup, train.clip) == (0.1, 1.0)
