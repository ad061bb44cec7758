"""`--force` replaces what the same command made, and nothing else."""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker, check_outside, mark, new_folder, replacing
from mamba_bio_audio.files.folders import MARKER, check_out, check_replaceable, restore

PREPARE = Maker("prepare audio")
TRAIN = Maker("pretrain", ("config.yaml", "checkpoints/*"))


def make(out: Path, text: str = "one", *, force: bool = False, maker: Maker = PREPARE) -> None:
    with new_folder(out, maker, force=force) as folder:
        (folder / "data").mkdir()
        (folder / "data" / "clip.txt").write_text(text)


def listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_folder_appears_whole_and_marked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_folder(out, PREPARE) as folder:
        (folder / "a").write_text("a")
        assert not out.exists()
    assert listing(tmp_path) == {"out/a", f"out/{MARKER}"}


def test_own_folder_is_replaced_only_with_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    with pytest.raises(InputError, match=r"not empty.*--force"):
        make(out, "two")
    make(out, "two", force=True)
    assert (out / "data" / "clip.txt").read_text() == "two"
    assert listing(tmp_path) == {"out/data/clip.txt", f"out/{MARKER}"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda out: (out / MARKER).unlink(), "not marked as made by mba prepare audio"),
        (lambda out: (out / MARKER).write_text("{}"), "not marked"),
        (lambda out: (out / MARKER).write_text("[" * 10_000), "not marked"),
        (lambda out: mark(out, TRAIN, ["data/clip.txt"]), "made by mba pretrain"),
        (lambda out: (out / "thesis.tex").write_text("years"), r"holds thesis.tex, not made by"),
        (lambda out: (out / "data" / "extra.txt").write_text("x"), r"holds data/extra.txt, not made by"),
        (lambda out: (out / "data" / "link").symlink_to(out.parent), r"holds data/link, not made by"),
        (lambda out: ((out / "a").write_text(""), (out / "b").write_text("")), r"holds a and 1 more"),
    ],
    ids=["no marker", "other json", "deep json", "other command", "foreign file", "deep foreign file", "link", "two"],
)
def test_anything_else_is_kept(spoil, message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    spoil(out)
    before = listing(tmp_path)
    with pytest.raises(InputError, match=message):
        make(out, "two", force=True)
    assert listing(tmp_path) == before
    assert (out / "data" / "clip.txt").read_text() == "one"


def test_a_marker_that_is_a_link_does_not_count(tmp_path: Path) -> None:
    make(tmp_path / "mine")
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / MARKER).symlink_to(tmp_path / "mine" / MARKER)
    with pytest.raises(InputError, match="not marked"):
        check_replaceable(thesis, PREPARE)


def test_patterns_name_what_a_run_writes_over_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    mark(run, TRAIN)
    (run / "config.yaml").write_text("")
    (run / "checkpoints" / "last.safetensors").write_text("")
    (run / ".config.yaml.123.tmp").write_text("")
    check_replaceable(run, TRAIN)
    (run / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"holds notes.txt"):
        check_replaceable(run, TRAIN)


def test_inputs_and_the_current_directory_are_never_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("out")
    check_outside(tmp_path / "out", [tmp_path / "other", tmp_path])
    for source in (tmp_path / "out", tmp_path / "out" / "deep", tmp_path / "link" / "deep"):
        with pytest.raises(InputError, match=r"an input of this command"):
            check_outside(tmp_path / "out", [source])
    for here in (tmp_path / "out", tmp_path / "out" / "deep"):
        monkeypatch.chdir(here)
        for out in (tmp_path / "out", tmp_path / "link", Path("."), Path("..") / here.name):
            if Path(os.path.realpath(out)) in (here, *here.parents):
                with pytest.raises(InputError, match=r"current directory lies in it"):
                    check_outside(out, [])


def test_inputs_are_kept_also_of_an_own_folder(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with (
        pytest.raises(InputError, match=r"an input of this command"),
        new_folder(tmp_path / "out", PREPARE, inputs=[tmp_path / "out" / "data"], force=True),
    ):
        pass
    assert (tmp_path / "out" / "data" / "clip.txt").exists()


def spoil(out: Path, file: Path, error: BaseException | None = None) -> None:
    """A preparation that is interrupted, or during which `file` appears."""
    with new_folder(out, PREPARE, force=True) as folder:
        (folder / "half").write_text("")
        file.write_text("")
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_failure_keeps_the_old_and_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    with pytest.raises(error):
        spoil(out, tmp_path / ".out.mba-new" / "more", error())
    assert listing(tmp_path) == {"out/data/clip.txt", f"out/{MARKER}"}


def test_what_a_killed_process_left_goes_with_the_next_call(tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = tmp_path / ".out.mba-new"
    work.mkdir()
    mark(work, PREPARE)
    (work / "half").write_text("")
    make(out)
    assert listing(tmp_path) == {"out/data/clip.txt", f"out/{MARKER}"}
    # Killed between the two renames: the old one is put back before anything else.
    os.rename(out, tmp_path / ".out.mba-old")
    with pytest.raises(InputError, match="not empty"):
        make(out, "two")
    assert (out / "data" / "clip.txt").read_text() == "one"


def test_foreign_folder_under_the_working_name_is_kept(tmp_path: Path) -> None:
    work = tmp_path / ".out.mba-new"
    work.mkdir()
    (work / "thesis").write_text("")
    with pytest.raises(InputError, match=r"in the way"):
        make(tmp_path / "out")
    assert (work / "thesis").exists()


def test_file_added_while_the_new_one_was_made_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    with pytest.raises(InputError, match=r"holds late.txt"):
        spoil(out, out / "late.txt")
    assert listing(tmp_path) == {"out/data/clip.txt", "out/late.txt", f"out/{MARKER}"}


def stands(folder: Path) -> bool:
    return (folder / "weights").exists()


def run(out: Path, *, weights: bool) -> None:
    out.mkdir()
    mark(out, TRAIN)
    (out / "config.yaml").write_text("new")
    if weights:
        (out / "weights").write_text("new")


def replace(out: Path, weights: bool, error: type[BaseException] | None) -> None:
    with replacing(out, stands):
        run(out, weights=weights)
        if error:
            raise error


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_old_run_goes_when_the_new_one_stands(weights: bool, error: type[BaseException] | None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    mark(out, TRAIN)
    (out / "config.yaml").write_text("old")
    with pytest.raises(error) if error else nullcontext():
        replace(out, weights, error)
    assert (out / "config.yaml").read_text() == ("new" if weights else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_killed_replacement_is_settled_later(tmp_path: Path) -> None:
    out, old = tmp_path / "run", tmp_path / ".run.mba-old"
    for weights in (True, False):
        run(old, weights=True)
        (old / "config.yaml").write_text("old")
        run(out, weights=weights)
        restore(out, stands)
        assert (out / "config.yaml").read_text() == ("new" if weights else "old")
        assert not old.exists()
        shutil.rmtree(out)


def test_an_empty_folder_needs_no_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert check_out(tmp_path / "out", PREPARE, [], force=False) is False
    make(tmp_path / "out")
