"""Commands that train nothing wait for neither torch nor Lightning."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

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
