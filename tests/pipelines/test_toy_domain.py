"""A domain is one folder and one line: letters of text files, trained on, evaluated and sampled by the commands."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

DOMAIN = '''\
"""Lower-case letters of text files, one record a line."""

from typing import ClassVar, Literal

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.contract import DataSection, Domain
from mamba_bio_audio.pipelines.sample_writer import SampleWriter


class LettersConfig(DataSection):
    kind: Literal["letters"] = "letters"
    path: str | None = None
    intervals: str | None = None
    num_workers: int = 0


class Codec:
    name, unit, vocab_size, start_id, pad_id = "letters", "letter", 28, 26, 27
    sample_ids = tuple(range(26))

    def encode(self, text):
        import numpy as np

        return np.frombuffer(text.encode(), np.uint8) - ord("a")

    def decode(self, ids):
        return "".join(chr(ord("a") + int(number)) for number in ids)


class Writer(SampleWriter):
    def __init__(self, request):
        self.request, self.start, self.settings = request, {"prompt": [Codec.start_id]}, {}

    def encode(self, tokens, row=0):
        return Codec().decode(tokens).encode()

    def check_target(self, *, replace):
        pass

    def check_complete(self, settings):
        pass

    def finish(self, sampled, work):
        from mamba_bio_audio.files import write_text

        write_text(self.request.out, "".join(row.read_text() + "\\n" for row in sampled.rows))
        return f"{len(sampled.rows)} lines"


class Letters(Domain):
    name, unit, first_sample = "letters", "letter", "--length 20"
    kinds: ClassVar = {"letters": LettersConfig}

    def codec(self, config):
        return Codec()

    def open(self, config, *, length, task=None, progress=None):
        from mamba_bio_audio.pipelines.corpus import Corpus
        from mamba_bio_audio.pipelines.spans import Span

        class LettersCorpus(Corpus):
            def spans(self, split):
                return [Span(f"line {at}", 0, len(text)) for at, text in enumerate(lines) if self.split_of(at) == split]

            def split_of(self, at):
                return {0: "valid", 1: "test"}.get(at % 4, "train")

            def fetch(self, span):
                return self.codec.encode(lines[int(span.record.split()[1])])[span.start : span.end]

        with open(config.path, encoding="ascii") as file:
            lines = file.read().split()
        if not "".join(lines).isalpha():
            raise InputError(f"{config.path}: something else than letters")
        corpus = LettersCorpus(Codec(), length)
        corpus.files, corpus.split_source = [config.path], "every fourth line"
        return corpus

    def describe(self, summary):
        return [("letters", str(summary["splits"]["train"]["symbols"]))]

    def writer(self, request):
        return Writer(request)


DOMAIN = Letters()
'''

RUN = """\
import sys
from mamba_bio_audio.pipelines import domains

domains.MODULES.append("letters.domain")
from mamba_bio_audio.cli.main import run

for command in {commands!r}:
    sys.argv = ["mba", *command]
    try:
        run()
    except SystemExit as stopped:
        if stopped.code:
            raise
"""

RECIPE = """\
data: {kind: letters, path: text.txt}
model: {d_model: 16, num_layers: 1}
train: {length: 24, tokens_per_step: 192, steps: 100, lr: 2.0e-2, validate_every: 50, validation_tokens: 480}
"""


def test_a_domain_is_one_folder_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "domain.py").write_text(DOMAIN)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    # The letters in their order, beginning anywhere: a model that has learnt it needs no bits.
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    (tmp_path / "text.txt").write_text("".join(f"{(2 * alphabet)[at : at + 26]}\n" for at in range(24)))
    quiet = ["--device", "cpu", "--quiet"]
    commands = [
        ["pretrain", "recipe.yaml", "--out", "run", *quiet],
        ["evaluate", "run", "--split", "test", *quiet],
        [
            "sample",
            "run",
            "--length",
            "20",
            "--num-samples",
            "3",
            "--temperature",
            "0.3",
            "--out",
            "samples.txt",
            *quiet,
        ],
    ]
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    ran = subprocess.run(
        [sys.executable, "-c", RUN.format(commands=commands)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    lines = (tmp_path / "samples.txt").read_text().split()
    assert [len(line) for line in lines] == [20] * 3
    follow = [a + b in 2 * alphabet for line in lines for a, b in pairwise(line)]
    assert sum(follow) > 0.9 * len(follow)
    data = json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]
    assert data["splits"]["train"]["symbols"] == 12 * 26
    found = json.loads((tmp_path / "run" / "evaluate-test.json").read_text())
    assert found["scored"] == 6 * 26
    assert found["model"]["bits"] < 2  # of 4.7
