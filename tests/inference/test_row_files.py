"""Sampling into row files: the same end however often it was stopped, killed, or out of disk."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mamba_bio_audio import machine
from mamba_bio_audio.errors import InputError
from mamba_bio_audio.inference import generate as generate_module
from mamba_bio_audio.inference import row_files as module
from mamba_bio_audio.inference.generate import Place, generate, generate_blocks
from mamba_bio_audio.inference.paths import Stepper
from mamba_bio_audio.inference.row_files import RowFiles
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.pipelines.sample_writer import RowForm

ALLOWED = (7, 8, 9, 10)
LENGTH = 160
BLOCK = 64
SETUP = f"""
import torch
from pathlib import Path
from mamba_bio_audio.inference import generate, row_files
from mamba_bio_audio.inference.row_files import RowFiles
from mamba_bio_audio.layers.config import SsmConfig
from mamba_bio_audio.models.build import build_model
from mamba_bio_audio.models.config import ModelConfig
from mamba_bio_audio.pipelines.sample_writer import RowForm
torch.set_num_threads(1)
model = build_model(ModelConfig(d_model=16, num_layers=2, ssm=SsmConfig(d_state=4), vocab_size=12), seed=0).eval()
row_files._SAVE_EVERY_S = 0.0
generate._BLOCK = {BLOCK}
class Bytes(RowForm):
    def encode(self, tokens, row=0):
        return tokens.tobytes()

files = RowFiles(Path(OUT), {{"seed": 4}}, Bytes())
files.begin(resume=True)
files.sample(model, length={LENGTH}, num_samples=3, batch_size=2, allowed={ALLOWED}, seed=4)
"""


class Bytes(RowForm):
    def encode(self, tokens, row=0):
        return tokens.tobytes()


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(generate_module, "_BLOCK", BLOCK)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    config = ModelConfig(d_model=16, num_layers=2, ssm=SsmConfig(d_state=4), vocab_size=12)
    return build_model(config, seed=0).eval()


@pytest.fixture(scope="module")
def whole(model):
    return generate(model, length=LENGTH, num_samples=3, batch_size=2, allowed=ALLOWED, seed=4).numpy().astype(np.uint8)


def row_files(folder: Path, **settings) -> RowFiles:
    return RowFiles(folder, {"seed": 4} | settings, Bytes())


def sample(files: RowFiles, model, **options):
    return files.sample(
        model, **({"length": LENGTH, "num_samples": 3, "batch_size": 2, "allowed": ALLOWED, "seed": 4} | options)
    )


def rows(files: RowFiles) -> list[bytes]:
    return [files.path(row).read_bytes() for row in range(3)]


def test_rows_equal_generate(model, whole, tmp_path):
    files = row_files(tmp_path / "p")
    files.begin()
    calls = []
    sums = sample(files, model, progress=lambda done, total: calls.append((done, total)))
    assert rows(files) == [row.tobytes() for row in whole]
    blocks = list(generate_blocks(model, length=LENGTH, num_samples=3, batch_size=2, allowed=ALLOWED, seed=4))
    expected = [sum(float(b.log_likelihood[r - b.row].sum()) for b in blocks if b.row <= r < b.row + 2) for r in (0, 1)]
    assert sums[:2] == pytest.approx(expected, rel=1e-12)
    assert calls[-1] == (3 * LENGTH, 3 * LENGTH)
    files.remove()
    assert not (tmp_path / "p").exists()


def test_batches_share_what_runs_the_steps(model, tmp_path, monkeypatch):
    """A GPU records graphs and packs weights there, which is done once for a command."""
    made = []
    original = Stepper._make
    monkeypatch.setattr(Stepper, "_make", lambda self, rows: made.append(rows) or original(self, rows))
    files = row_files(tmp_path / "p")
    files.begin()
    sample(files, model, num_samples=6)
    assert made == [2]


def test_rows_stopped_and_resumed_are_identical(model, whole, tmp_path):
    """Stopped after every single block, the log-likelihoods are the same numbers too."""
    once = row_files(tmp_path / "once")
    once.begin()
    expected = sample(once, model)
    files = row_files(tmp_path / "often")
    files.begin()
    stops = 0
    while (sums := sample(files, model, stop=lambda: True)) is None:
        stops += 1
        files = row_files(tmp_path / "often")
        files.begin(resume=True)
    assert stops == 5
    assert rows(files) == [row.tobytes() for row in whole]
    assert sums == expected
    # So are those of each eighth of a row.
    assert torch.equal(files.along, once.along)
    assert once.along.sum(1).tolist() == pytest.approx(sums)


def test_a_held_temperature_goes_on_where_it_was(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SAVE_EVERY_S", 0.0)
    model = build_model(model.model_config, seed=0).eval()
    model.manifest, model.codec = {"result": {"valid_nats": 1.0}}, None
    how = {"hold": 500.0, "allowed": ALLOWED}
    expected = generate(model, length=LENGTH, num_samples=3, batch_size=2, seed=4, **how).numpy().astype(np.uint8)
    assert not np.array_equal(expected, generate(model, length=LENGTH, num_samples=3, seed=4, allowed=ALLOWED))
    files = row_files(tmp_path / "often")
    files.begin()
    while sample(files, model, stop=lambda: True, **how) is None:
        files = row_files(tmp_path / "often")
        files.begin(resume=True)
    assert rows(files) == [row.tobytes() for row in expected]


def test_each_eighth_of_the_length_has_its_bits(model, tmp_path):
    files = row_files(tmp_path / "p")
    files.begin()
    assert files.bits_along(LENGTH, range(3)) == []
    sample(files, model, length=83)
    blocks = generate_blocks(model, length=83, num_samples=3, batch_size=2, allowed=ALLOWED, seed=4)
    nats = np.zeros((3, 83))
    for block in blocks:
        size = block.tokens.shape
        nats[block.row : block.row + size[0], block.position : block.position + size[1]] = -block.log_likelihood
    parts = np.arange(83) * 8 // 83
    for some in ([0, 1, 2], [2], [0, 2]):
        expected = [nats[some][:, parts == part].mean() / np.log(2) for part in range(8)]
        assert files.bits_along(83, some) == pytest.approx(expected)


def test_rows_state_is_exact_where_a_prompt_would_round(model, whole):
    """Continuing from the state gives the very same numbers, which prefilling what is there does not promise."""
    first, *rest = generate_blocks(model, length=LENGTH, num_samples=2, allowed=ALLOWED, seed=4)
    again = list(
        generate_blocks(
            model,
            length=LENGTH - BLOCK,
            num_samples=2,
            allowed=ALLOWED,
            seed=4,
            prompt=first.tokens[:, -1:],
            place=Place(position=BLOCK, state=first.state),
        )
    )
    for a, b in zip(rest, again, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.log_likelihood, b.log_likelihood)
    with pytest.raises(InputError, match="one batch"):
        generate_blocks(model, length=3, num_samples=2, batch_size=1, prompt=[7], place=Place(state=first.state))
    with pytest.raises(InputError, match="one batch"):
        generate_blocks(model, length=3, num_samples=2, place=Place(state=first.state))


def test_rows_killed_keep_what_was_written_and_resume(whole, tmp_path):
    """kill -9 at moments of chance, again and again."""
    folder = tmp_path / "p"
    code = SETUP.replace("OUT", repr(str(folder)))
    rng = np.random.default_rng(0)
    kills = 0
    seen = 0
    for _ in range(40):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
        row = folder / "row-00000.txt"
        while process.poll() is None and not (row.exists() and row.stat().st_size > seen):
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        if kills < 3 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            seen = row.stat().st_size
            assert seen >= BLOCK
            # Kept, and right as far as it goes.
            assert whole[0].tobytes().startswith(row.read_bytes())
            seen = min(seen, LENGTH - 1)
            continue
        assert process.wait() == 0, process.stderr.read()
        break
    assert kills
    assert [(folder / f"row-{row:05d}.txt").read_bytes() for row in range(3)] == [row.tobytes() for row in whole]


def test_rows_written_after_the_last_state_are_made_again(model, whole, tmp_path):
    files = row_files(tmp_path / "p")
    files.begin()
    assert sample(files, model, stop=lambda: True) is None
    with files.path(0).open("ab") as file:
        file.write(b"half a block")
    files.begin(resume=True)
    sample(files, model)
    assert rows(files) == [row.tobytes() for row in whole]


def test_rows_on_a_full_disk(model, whole, tmp_path, monkeypatch):
    files = row_files(tmp_path / "p")
    files.begin()
    written = 0
    path_open = Path.open

    def full_open(self, mode="r", *arguments, **options):
        file = path_open(self, mode, *arguments, **options)
        if mode != "r+b":
            return file

        class Limited:
            name = str(self)

            def write(_, data):
                nonlocal written
                written += len(data)
                if written > 150:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return file.write(data)

            def close(_):
                file.close()
                if written > 150:
                    # It tries once more to write what it holds.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            flush, fileno, seek = file.flush, file.fileno, file.seek

        return Limited()

    monkeypatch.setattr(Path, "open", full_open)
    monkeypatch.setattr(module, "_SAVE_EVERY_S", 0.0)
    with pytest.raises(
        OSError, match=r"No space left on device; everything sampled so far is kept. Free some space.*--resume"
    ):
        sample(files, model)
    monkeypatch.undo()
    assert files.path(0).stat().st_size == BLOCK
    files.begin(resume=True)
    sample(files, model)
    assert rows(files) == [row.tobytes() for row in whole]


def test_rows_refuse_what_does_not_fit(model, tmp_path):
    files = row_files(tmp_path / "p")
    files.begin()
    assert sample(files, model, stop=lambda: True) is None
    with pytest.raises(InputError, match=r"unfinished.*--resume.*--force"):
        files.begin()
    with pytest.raises(InputError, match=r"other settings .seed 4 -> 5"):
        row_files(tmp_path / "p", seed=5).begin(resume=True)
    (tmp_path / "p" / "state.safetensors").write_bytes(b"not a state")
    files.begin(resume=True)
    with pytest.raises(InputError, match=r"state.safetensors: damaged .*--force"):
        sample(files, model)
    (tmp_path / "p" / "settings.json").write_text("{")
    with pytest.raises(InputError, match=r"settings.json: damaged"):
        files.begin(resume=True)
    files.begin(force=True)
    assert not (tmp_path / "p" / "state.safetensors").exists()
    assert sample(files, model, stop=lambda: True) is None
    files.path(1).write_bytes(b"short")
    with pytest.raises(InputError, match=r"row-00001.txt: shorter"):
        sample(files, model)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="in the way"):
        row_files(tmp_path / "file").begin()


def test_rows_leave_the_folders_of_others_alone(model, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine.txt").write_text("precious")
    for asked in ({"resume": True}, {"force": True}, {}):
        with pytest.raises(InputError):
            row_files(tmp_path / "p").begin(**asked)
    assert (tmp_path / "p" / "mine.txt").read_text() == "precious"


def test_rows_of_refused_options_leave_nothing(model, tmp_path):
    files = row_files(tmp_path / "p")
    files.begin()
    with pytest.raises(InputError, match="top_p"):
        sample(files, model, top_p=0.0)
    files.begin()


def test_rows_own_prompts(model, tmp_path):
    prompts = torch.tensor([[7, 8], [9, 9], [10, 7]])
    expected = generate(model, length=30, num_samples=3, prompt=prompts, allowed=ALLOWED, seed=4)
    files = row_files(tmp_path / "p")
    files.begin()
    sample(files, model, length=30, prompt=prompts)
    assert rows(files) == [bytes(row.tolist()) for row in expected]
    # A single symbol without a prompt needs no call of the model, and so has no state.
    files.begin(force=True)
    assert sample(files, model, length=1, stop=lambda: True) is None
    sample(files, model, length=1)
    assert [len(row) for row in rows(files)] == [1] * 3


def test_rows_are_no_more_than_files_may_be_open(model, tmp_path, monkeypatch):
    limits = [(256, 4096)]
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(machine.resource, "setrlimit", lambda _, new: limits.append(new))
    assert module.open_files_allowed(100) == 100
    assert limits == [(256, 4096)]
    assert module.open_files_allowed(1000) == 1000
    assert limits[-1] == (1128, 4096)
    assert module.open_files_allowed(10_000) == 3968
    assert limits[-1] == (4096, 4096)
    limits.append((130, 130))
    files = row_files(tmp_path / "rows")
    files.begin()
    with pytest.raises(InputError, match=r"allows 2 .ulimit -n.; choose --batch-size 2 or less"):
        sample(files, model, batch_size=3)
    assert not files.folder.exists()
