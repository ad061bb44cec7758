"""Archives end with a message before disk or memory do, and stay inside their folder."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.archives import tar_members, unpack_zip


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_members_of_a_tar(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar.gz", {"./one/a.wav": b"aa", "list.txt": b"b"})
    found = [(name, size, stream.read()) for name, size, stream in tar_members(path, 1 << 20)]
    assert found == [("one/a.wav", 2, b"aa"), ("list.txt", 1, b"b")]


@pytest.mark.parametrize("named", ["wanted.wav", "another"])
def test_tar_over_the_limit(named: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "bomb.tar.gz", {named: bytes(3 << 20)})
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match=r"bomb.tar.gz: unpacks to 3,\d+,\d+ bytes or more.*--max-unpacked-gb"):
        list(tar_members(path, 1 << 20))


def test_sparse_members_count_with_what_they_unpack_to(tmp_path: Path) -> None:
    def member(name: str) -> bytes:
        """A member of 9,000 zero bytes, of which the archive holds none."""
        info = tarfile.TarInfo(name)
        info.type = tarfile.GNUTYPE_SPARSE
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[483:495] = b"%011o\0" % 9000
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header)

    source = tmp_path / "a.tar"
    source.write_bytes(b"".join(map(member, "abc")) + bytes(10_240))
    assert [len(stream.read()) for _, _, stream in tar_members(source, 27_000)] == [9000] * 3
    with pytest.raises(InputError, match=r"unpacks to 27,000 bytes or more"):
        list(tar_members(source, 26_999))


def test_bytes_behind_the_last_member_count_too(tmp_path: Path) -> None:
    path = tar(tmp_path / "bomb.tar.gz", {"a": b""})
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(3 << 20)))
    with pytest.raises(InputError, match="unpacks to"):
        list(tar_members(path, 1 << 20))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_header_that_would_fill_the_memory(kind: bytes, tmp_path: Path) -> None:
    data = bytearray(gzip.decompress(tar(tmp_path / "bomb.tar.gz", {"a": b""}).read_bytes()))
    # Size and type of the member, and the sum of the bytes of its header, in which the sum itself counts as spaces.
    data[124:136] = b"%011o\0" % (200 << 20)
    data[156:157] = kind
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(InputError, match=r"bomb.tar.gz: a header or member claims 209,\d+,\d+ bytes"):
        list(tar_members(path, 1 << 30))


@pytest.mark.parametrize("packed", ["", ":gz", ":bz2", ":xz"])
def test_every_kind_of_packing(packed: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, f"w{packed}") as archive:
        member = tarfile.TarInfo("a")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))
    assert [(name, stream.read()) for name, _, stream in tar_members(path, 1 << 20)] == [("a", b"abc")]


@pytest.mark.parametrize("cut", [20, 100, 200])
def test_torn_tar(cut: int, tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar.gz", {"a": bytes(range(256)) * 40})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="not a readable tar archive"):
        list(tar_members(path, 1 << 20))


def test_zip_over_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "abc":
            archive.writestr(name, bytes(1 << 20))
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(
        InputError, match=r"bomb.zip: unpacks to 3,145,728 bytes or more, but only 2,097,152 are allowed"
    ):
        unpack_zip(path, folder, 2 << 20)
    assert list(folder.iterdir()) == []
    unpack_zip(path, folder, 3 << 20)
    assert len(list(folder.iterdir())) == 3


def test_zip_that_states_less_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(3 << 20))
    # The stated size stands in the member's own header and in the directory.
    data = path.read_bytes().replace((3 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(data)
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="not a complete zip archive"):
        unpack_zip(path, tmp_path / "out", 1 << 20)
    assert all(file.stat().st_size <= 1000 for file in (tmp_path / "out").iterdir())


def test_zip_that_leads_out_stays_inside(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../outside", b"a")
        archive.writestr("/absolute", b"a")
    (tmp_path / "out").mkdir()
    unpack_zip(path, tmp_path / "out", 100)
    assert sorted(file.name for file in (tmp_path / "out").rglob("*")) == ["absolute", "outside"]
