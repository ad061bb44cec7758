"""Commands on models whose state grows, and on models that have none: in one go where that is possible, else refused."""

import csv
import math

import numpy as np
import pytest
import torch

from mamba_bio_audio.cli.main import run as command
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.pipelines.domains import domain_of
from mamba_bio_audio.run.config import load_config
from mamba_bio_audio.run.export import export

KINDS = {"growing": "mamba,transformer", "none": "mamba,hyena"}
SIZES = {"short": 40, "shorter": 23}


def command_line(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        command([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


@pytest.fixture(params=KINDS)
def model(request, tmp_path, monkeypatch):
    """A model with random weights, trained at 64 bases, and files of sequences in the working directory."""
    monkeypatch.chdir(tmp_path)
    settings = [
        "data.path=demo",
        "train.length=64",
        "train.tokens_per_step=512",
        "model.d_model=16",
        "model.num_layers=2",
    ]
    settings += [f"model.pattern={KINDS[request.param]}"]
    settings += ["model.options={hyena: {max_length: 64}}"] if request.param == "none" else []
    config = load_config("dna/tiny", settings)
    built = build_model(config.model.model_copy(update={"vocab_size": 12}), seed=0).eval()
    torch.nn.init.normal_(built.embedding.weight, generator=torch.Generator().manual_seed(1))
    built.config, built.codec = config, domain_of(config.data.kind).codec(config.data)
    export(built, tmp_path / "mine")
    letters = np.random.default_rng(0).choice(list("ACGT"), 3000)
    rows = {name: "".join(letters[:size]) for name, size in SIZES.items()}
    (tmp_path / "some.fa").write_text("".join(f">{name}\n{row}\n" for name, row in rows.items()))
    (tmp_path / "long.fa").write_text(f">long\n{''.join(letters)}\n")
    other = "ACGT"["ACGT".index(letters[500]) - 1]
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (tmp_path / "calls.vcf").write_text(f"{header}long\t501\t.\t{letters[500]}\t{other}\t.\t.\t.\n")
    return request.param, built, rows


def test_scores_and_embeddings_are_those_of_one_go(model, capsys):
    _, built, rows = model
    assert command_line("score", "mine", "some.fa", "--out", "s.tsv", "--device", "cpu") == 0, capsys.readouterr().err
    assert command_line("embed", "mine", "some.fa", "--out", "e.npz", "--device", "cpu") == 0, capsys.readouterr().err
    with open("s.tsv.totals.tsv") as file:
        totals = {line["record"]: float(line["log_likelihood_nats"]) for line in csv.DictReader(file, delimiter="\t")}
    found = np.load("e.npz")
    for number, (name, row) in enumerate(rows.items()):
        ids = built.encode(row)
        with torch.no_grad():
            scores = built(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
            hidden = built.hidden(ids)[0].mean(1)[0]
        assert math.isclose(totals[name], scores.sum().item(), rel_tol=1e-5)
        np.testing.assert_allclose(found["embeddings"][number], hidden.numpy(), rtol=1e-4, atol=1e-5)


def test_what_needs_a_state_is_refused(model, capsys):
    kind, *_ = model
    refused = {
        (
            "score",
            "mine",
            "long.fa",
            "--out",
            "s.tsv",
        ): "carry no state of constant size, so it scores up to its training length, 64 bases, not the 3,000 of long",
        ("variants", "mine", "calls.vcf", "--genome", "long.fa", "--out", "v.vcf"): "layers whose state grows, or that",
    }
    sampled = ("sample", "mine", "--length", "30", "--prompt", "ACGTA", "--out", "d.fa", "--no-report")
    if kind == "none":
        refused[sampled] = "cannot carry a state from symbol to symbol, so it cannot sample"
    for arguments, message in refused.items():
        assert command_line(*arguments, "--device", "cpu") == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    if kind == "growing":
        assert command_line(*sampled, "--device", "cpu") == 0, capsys.readouterr().err
    assert command_line("embed", "mine", "long.fa", "--out", "e.npz", "--device", "cpu") == 0
    assert ("longer than the" in capsys.readouterr().out) == (kind == "none")
