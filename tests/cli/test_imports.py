"""Commands that use no model do not wait for torch, and those that train nothing do not wait for Lightning."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

from mamba_bio_audio.models.build import build
from mamba_bio_audio.run.config import RunConfig, load_config, to_yaml
from mamba_bio_audio.training.steps import save_weights

COMMANDS = """
import contextlib, io, sys
from mamba_bio_audio.cli.main import run
heavy = {"torch", "lightning", "torchaudio", "sklearn", "scipy", "matplotlib", "transformers", "tensorboard"}
for arguments in ARGUMENTS:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            run(arguments)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    assert code == (2 if "nope" in " ".join(arguments) else 0), (arguments, code)
    found = heavy & set(sys.modules)
    assert not found, (arguments, found)
"""


def check(code: str, folder: Path) -> None:
    out = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr


def test_help_recipes_and_preparation_import_no_torch(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "toy.fa").write_text(">one\n" + "".join(rng.choice(list("ACGT"), 300_000)) + "\n")
    (tmp_path / "wav").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / "wav" / f"{number}.wav", rng.uniform(-0.5, 0.5, 16_000), 16_000)
    commands = (
        "pretrain",
        "classify",
        "predict",
        "variants",
        "embed",
        "evaluate",
        "sample",
        "score",
        "report",
        "models",
        "export",
        "bench",
        "doctor",
        "prepare",
    )
    arguments = [
        ["--help"],
        *([command, "--help"] for command in commands),
        ["prepare", "genome", "--help"],
        ["configs"],
        ["configs", "--json"],
        ["configs", "dna/tiny"],
        ["configs", "nope"],
        ["models"],
        ["models", "--json"],
        ["pretrain", "nope"],
        ["sample", "nope", "--length", "9"],
        ["sample", "human42mb-1m4", "--length", "9", "--prompt", "nope"],
        ["sample", "human42mb-1m4", "--length", "9", "--prompt-file", "nope.fa"],
        ["pretrain", "dna/tiny", "--set", "nope=1"],
        ["prepare", "genome", "nope.fa", "--out", "nope"],
        ["prepare", "genome", "toy.fa", "--out", "prepared"],
        ["prepare", "audio", "wav", "--out", "recordings"],
    ]
    check(COMMANDS.replace("ARGUMENTS", repr(arguments)), tmp_path)
    assert (tmp_path / "prepared" / "manifest.json").exists()
    assert (tmp_path / "recordings" / "manifest.json").exists()


def test_doctor_imports_no_lightning(tmp_path):
    code = (
        "import sys\n"
        "from mamba_bio_audio.run import self_test\n"
        "self_test.self_test = lambda device: []\n"
        "from mamba_bio_audio.jobs import doctor\n"
        "doctor.run(doctor.DoctorOptions())\n"
        "assert 'lightning' not in sys.modules\n"
    )
    check(code, tmp_path)


INFERENCE = """
import contextlib, io, sys
from mamba_bio_audio.cli.main import run
# The training framework, metrics, the compiler and whatever they bring with them.
heavy = (
    "lightning", "torchmetrics", "torch._dynamo", "torch._inductor", "sympy", "torchaudio", "sklearn", "scipy", "pandas",
    "matplotlib", "transformers", "tensorboard", "Bio.SeqIO",
)
for arguments in ARGUMENTS:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            run([*arguments, "--quiet", "--device", "cpu"])
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    assert code == 0, (arguments, code)
    assert "torch" in sys.modules
    found = [name for name in heavy if name in sys.modules]
    assert not found, (arguments, found)
"""


def save(config: RunConfig, folder: Path, vocabulary: int) -> None:
    """A run folder with random weights."""
    folder.mkdir()
    config = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": vocabulary})})
    (folder / "config.yaml").write_text(to_yaml(config))
    save_weights(build(config.model, config.head, seed=0), folder / "model.safetensors")


def test_inference_imports_neither_lightning_nor_a_compiler(tmp_path):
    """From the command to its result, with all steps between; seconds are not measured, because they are the machine's."""
    small = ["model.d_model=8", "train.length=64", "train.tokens_per_step=64"]
    dna = load_config("dna/tiny", ["data.path=demo", "model.num_layers=1", *small])
    save(dna, tmp_path / "dna", 12)
    labelled = load_config("dna/species", ["data.path=.", "model.num_layers=1", "head.classes=[a,b]", *small])
    save(labelled, tmp_path / "classes", 12)
    audio = load_config("audio/tiny", ["data.path=.", *small])
    save(audio, tmp_path / "audio", 256)
    (tmp_path / "toy.fa").write_text(">one\n" + "ACGTTGCA" * 40 + "\n")
    (tmp_path / "toy.vcf").write_text(
        "##fileformat=VCFv4.2\n##contig=<ID=one>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\none\t2\t.\tC\tA\t.\t.\t.\n"
    )
    soundfile.write(tmp_path / "toy.wav", np.zeros(100), 16_000)
    arguments = [
        ["sample", "dna", "--length", "20"],
        ["sample", "dna", "--length", "20", "--prompt", "ACG", "--out", "s.fa"],
        # A report of audio draws pictures.
        ["sample", "audio", "--length", "20", "--prompt", "toy.wav", "--out", "s.wav", "--no-report"],
        ["score", "dna", "toy.fa", "--out", "toy.tsv"],
        ["embed", "dna", "toy.fa", "--out", "toy.npz"],
        ["variants", "dna", "toy.vcf", "--genome", "toy.fa"],
        ["predict", "classes", "toy.fa"],
    ]
    check(INFERENCE.replace("ARGUMENTS", repr(arguments)), tmp_path)
