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
TRAIN = Maker("pretrain", ("config.yaml", "weights", "checkpoints/*"))


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
    (run / ".tmpNk7Sd9").write_text("")
    check_replaceable(run, TRAIN)
    for own in ("notes.txt", ".notes.tmp", "checkpoints/mine/thesis.tex"):
        (run / own).parent.mkdir(exist_ok=True)
        (run / own).write_text("")
        with pytest.raises(InputError, match=f"holds {own}"):
            check_replaceable(run, TRAIN)
        (run / own).unlink()


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
                with pytest.raises(InputError, match=r"contains the current directory"):
                    check_outside(out, [])


def test_inputs_are_kept_also_of_an_own_folder(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with (
        pytest.raises(InputError, match=r"an input of this command"),
        new_folder(tmp_path / "out", PREPARE, inputs=[tmp_path / "out" / "data"], force=True),
    ):
        pass
    assert (tmp_path / "out" / "data" / "clip.txt").exists()


def test_links_among_the_inputs_that_lead_into_the_output(tmp_path: Path) -> None:
    out, recordings = tmp_path / "out", tmp_path / "in" / "deep"
    make(out)
    recordings.mkdir(parents=True)
    (recordings / "clip.txt").symlink_to(out / "data" / "clip.txt")
    with (
        pytest.raises(InputError, match=r"in/deep/clip.txt, an input of this command"),
        new_folder(out, PREPARE, inputs=[tmp_path / "in"], force=True),
    ):
        pass
    assert (recordings / "clip.txt").read_text() == "one"


def test_another_name_of_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on disks where case does not count, and under a second mount.
    make(tmp_path / "out")
    make(tmp_path / "OUT")
    monkeypatch.setattr(Path, "samefile", lambda self, other: str(self).lower() == str(other).lower())
    with pytest.raises(InputError, match=r"an input of this command"):
        check_outside(tmp_path / "out", [tmp_path / "OUT" / "data"])


def test_current_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InputError, match=r"current directory has been deleted"):
        check_outside(tmp_path / "out", [])


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
    with replacing(out, TRAIN, stands):
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
        restore(out, TRAIN, stands)
        assert (out / "config.yaml").read_text() == ("new" if weights else "old")
        assert not old.exists()
        shutil.rmtree(out)


@pytest.mark.parametrize("weights", [True, False])
def test_what_others_put_there_since_is_kept(weights: bool, tmp_path: Path) -> None:
    out, old = tmp_path / "run", tmp_path / ".run.mba-old"
    run(old, weights=True)
    run(out, weights=weights)
    # In whichever of the two would be deleted.
    (old if weights else out).joinpath("thesis.tex").write_text("years")
    before = listing(tmp_path)
    with pytest.raises(InputError, match=r"holds thesis.tex"):
        restore(out, TRAIN, stands)
    assert listing(tmp_path) == before


def test_file_added_before_the_replacement_begins_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, weights=True)
    assert check_out(out, TRAIN, [], force=True)
    (out / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"holds thesis.tex"), replacing(out, TRAIN, stands):
        pass
    assert (out / "thesis.tex").exists()


def test_an_empty_folder_in_the_place_of_one_put_aside(tmp_path: Path) -> None:
    make(tmp_path / "out")
    os.rename(tmp_path / "out", tmp_path / ".out.mba-old")
    (tmp_path / "out").mkdir()
    restore(tmp_path / "out", PREPARE)
    assert (tmp_path / "out" / "data" / "clip.txt").read_text() == "one"


def test_an_empty_folder_needs_no_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert check_out(tmp_path / "out", PREPARE, [], force=False) is False
    make(tmp_path / "out")
