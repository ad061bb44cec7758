"""`OUT.part` is continued with equal settings, and only by the command that began it."""

from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.files import Maker, begin_unfinished, discard_unfinished, unfinished

SAMPLE = Maker("sample", ("settings.json", "row-*"))


def test_begin_continue_discard(tmp_path: Path) -> None:
    part = unfinished(tmp_path / "x.fa")
    assert part.name == "x.fa.part"
    assert begin_unfinished(part, SAMPLE, {"seed": 1}) is False
    (part / "row-0").write_text("ACGT")
    with pytest.raises(InputError, match=r"--resume.*--force"):
        begin_unfinished(part, SAMPLE, {"seed": 1})
    assert begin_unfinished(part, SAMPLE, {"seed": 1}, resume=True) is True
    with pytest.raises(InputError, match=r"other settings \(seed 1 -> 2\)"):
        begin_unfinished(part, SAMPLE, {"seed": 2}, resume=True)
    assert (part / "row-0").read_text() == "ACGT"
    assert begin_unfinished(part, SAMPLE, {"seed": 2}, force=True) is False
    assert not (part / "row-0").exists()
    discard_unfinished(part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["resume", "force", ""])
def test_foreign_folder_is_kept(option: str, tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    part.mkdir()
    (part / "settings.json").write_text("{}")
    with pytest.raises(InputError, match="not marked"):
        begin_unfinished(part, SAMPLE, {}, **({option: True} if option else {}))
    assert (part / "settings.json").exists()


def test_foreign_file_inside_is_kept(tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    begin_unfinished(part, SAMPLE, {})
    (part / "thesis.txt").write_text("")
    for option in ("resume", "force"):
        with pytest.raises(InputError, match=r"holds thesis.txt"):
            begin_unfinished(part, SAMPLE, {}, **{option: True})


def test_damaged_settings(tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    begin_unfinished(part, SAMPLE, {})
    (part / "settings.json").write_text("[1")
    with pytest.raises(InputError, match=r"damaged.*--force"):
        begin_unfinished(part, SAMPLE, {}, resume=True)
