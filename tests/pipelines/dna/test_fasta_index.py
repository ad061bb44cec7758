import hashlib
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from mamba_bio_audio.errors import InputError
from mamba_bio_audio.pipelines.dna import fasta_index
from mamba_bio_audio.pipelines.dna.fasta_index import build_index, load_index, lower_runs, move_index
from mamba_bio_audio.pipelines.dna.genome import Genome

TEXT = b">a one\nACGTNNNNacgtACGT\n>b\nNNggAC\n"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files of which an index was built."""
    built: list[str] = []
    build = fasta_index.build_index
    monkeypatch.setattr(fasta_index, "build_index", lambda path, *rest: built.append(path) or build(path, *rest))
    return built


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "x.fa"
    path.parent.mkdir()
    path.write_bytes(TEXT)
    return path


def contents(path: Path) -> dict[str, Any]:
    """All that an index tells."""
    genome = Genome(path)
    return {
        "counts": {name: (s.length, s.counts, s.run_starts.tolist()) for name, s in genome.scan().items()},
        "lower": {name: genome.lower_case(name, 0, size).tolist() for name, size in genome.records.items()},
        "bases": {name: genome.fetch(name, 0, size).tolist() for name, size in genome.records.items()},
        "sha256": genome.fingerprint()[0].sha256,
        "titles": [genome.title(name) for name in genome.records],
    }


def test_nothing_is_written_beside_the_file(fasta: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MAMBA_BIO_AUDIO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stored = load_index(fasta)
    assert os.listdir(fasta.parent) == ["x.fa"]
    assert stored.store is not None
    assert stored.store.parent == tmp_path / "cache" / "mamba_bio_audio" / "indexes"
    assert stat.S_IMODE(stored.store.stat().st_mode) == 0o600
    assert stat.S_IMODE(stored.store.parent.stat().st_mode) == 0o700
    assert load_index(fasta).index.titles == ("one", "")
    assert [values.tolist() for values in lower_runs(load_index(fasta))] == [[0, 1, 2], [8, 2], [12, 4]]


def test_indexes_of_others_beside_the_file_are_not_read(
    fasta: Path, write_fasta: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MAMBA_BIO_AUDIO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed = Path(write_fasta("packed/x.fa.gz", {"a": "ACGTNNNNacgtACGT", "b": "NNggAC"}))
    truth = {path: contents(path) for path in (fasta, packed)}
    for path in truth:
        status, folder = path.stat(), path.parent
        rows = "a\t16\t9\t16\t17\nb\t6\t26\t6\t7\n"
        fai = {"fai": np.array([[16, 9, 16, 17], [6, 26, 6, 7]])}
        (folder / f"{path.name}.fai").write_text(rows)
        (folder / f"{path.name}.gzi").write_bytes(bytes(8))
        # As versions up to 0.3 wrote and trusted them.
        np.savez(
            folder / f"{path.name}.mba.npz",
            **fai,  # type: ignore[arg-type]
            format=2,
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
            sha256="0" * 64,
            kind="bgzf" if path == packed else "plain",
            names=np.frombuffer(b"a\nb", np.uint8),
            gzi=np.zeros((1, 2), np.int64) if path == packed else np.zeros((0, 2), np.int64),
            counts=np.array([[16, 0, 0, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0, 0]]),
            run_offsets=np.zeros(3, np.int64),
            run_starts=np.zeros(0, np.int64),
            run_ends=np.zeros(0, np.int64),
            lower_offsets=np.zeros(3, np.int64),
            lower_starts=np.zeros(0, np.int64),
            lower_ends=np.zeros(0, np.int64),
        )
        os.utime(folder / f"{path.name}.mba.npz", ns=(status.st_mtime_ns, status.st_mtime_ns))
    for fresh in ("cache", "another"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / fresh))
        assert {path: contents(path) for path in truth} == truth


def test_index_is_reused_and_rebuilt(fasta: Path, builds: list[str]) -> None:
    first = load_index(fasta)
    assert load_index(fasta).index.sha256 == first.index.sha256
    assert len(builds) == 1
    fasta.write_bytes(TEXT.replace(b">a one", b">c two"))
    os.utime(fasta, ns=(1, 1))
    assert load_index(fasta).index.names == ("c", "b")
    assert len(builds) == 2


@pytest.mark.parametrize("bases", ["acgt", "NNNN", "nnnn", "A"])
def test_an_index_of_one_kind_of_letter_is_kept(bases: str, fasta: Path, builds: list[str]) -> None:
    """Counts as large as the record is long are no sign of damage."""
    fasta.write_text(f">r\n{bases}\n")
    load_index(fasta)
    load_index(fasta)
    assert len(builds) == 1


def test_a_moved_or_touched_file_keeps_its_index(
    fasta: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    whole = fasta_index._sha256
    monkeypatch.setattr(fasta_index, "_sha256", lambda path: hashed.append(path) or whole(path))
    load_index(fasta)
    fasta.chmod(0o600)
    assert lower_runs(load_index(fasta)).starts.tolist() == [8, 2]
    load_index(fasta)
    assert len(builds) == len(hashed) == 1
    moved = fasta.with_name("y.fa")
    fasta.rename(moved)
    move_index(fasta, moved)
    assert load_index(moved).index.path == str(moved)
    assert len(builds) == 1
    move_index(moved, None)
    load_index(moved)
    assert len(builds) == 2


@pytest.mark.parametrize("at", [9, 1_000_003, 2_999_900])
def test_contents_changed_behind_an_equal_size_and_time(at: int, fasta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sampled block or not, the index of the old contents is not used."""
    monkeypatch.setattr(fasta_index, "BLOCK_BYTES", 64)
    fasta.write_bytes(b">a\n" + b"ACGT" * 750_000)
    status = fasta.stat()
    before = contents(fasta)
    with fasta.open("r+b") as handle:
        handle.seek(at)
        handle.write(b"N")
    os.utime(fasta, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fasta.stat().st_mtime_ns == status.st_mtime_ns
    with pytest.warns(RuntimeWarning, match="the file's contents changed, although its size and time did not"):
        found = contents(fasta)
    assert found["sha256"] == hashlib.sha256(fasta.read_bytes()).hexdigest() != before["sha256"]
    assert found["counts"]["a"][2] == [at - 3]


def test_a_status_that_cannot_tell_is_caught_by_the_sample(fasta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems without a time of status: the sampled blocks still differ."""
    fasta.write_bytes(b">a\n" + b"ACGT" * 750_000)
    state = fasta_index._state(str(fasta))
    load_index(fasta)
    fasta.write_bytes(b">a\n" + b"ACGT" * 749_999 + b"ACGN")
    found = fasta_index._state(str(fasta))
    monkeypatch.setattr(
        fasta_index, "_state", lambda path: found._replace(mtime_ns=state.mtime_ns, ctime_ns=state.ctime_ns)
    )
    with pytest.warns(RuntimeWarning, match="contents changed"):
        assert load_index(fasta).index.counts[0, 4] == 1


def forge(store: Path, **changes: Any) -> None:
    """Change arrays of a stored index; its checksum is right again."""
    arrays = dict(load(store.read_bytes()[32:]))
    arrays |= {name: np.asarray(change(arrays[name])) for name, change in changes.items()}
    payload = save(arrays)
    store.write_bytes(hashlib.sha256(payload).digest() + payload)


def header(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the table of tensors of a stored index."""
    data = store.read_bytes()[32:]
    size = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + size])
    change(table)
    text = json.dumps(table).encode()
    payload = len(text).to_bytes(8, "little") + text + data[8 + size :]
    store.write_bytes(hashlib.sha256(payload).digest() + payload)


def signed(store: Path, payload: bytes) -> None:
    store.write_bytes(hashlib.sha256(payload).digest() + payload)


def put(*at: int, value: int) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values = values.astype(np.int64)
        values[at] = value
        return values

    return change


def linked(store: Path) -> None:
    copy = store.with_name("copy")
    store.rename(copy)
    store.symlink_to(copy)


def two_names(store: Path) -> None:
    os.link(store, store.with_name("copy"))


def pipe(store: Path) -> None:
    store.unlink()
    os.mkfifo(store)


def sparse(store: Path) -> None:
    with store.open("r+b") as handle:
        handle.truncate(1 << 40)


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "link": linked,
    "two names": two_names,
    "pipe": pipe,
    "open to others": lambda store: store.chmod(0o666),
    "truncated": lambda store: store.write_bytes(store.read_bytes()[:-3]),
    "empty": lambda store: store.write_bytes(b""),
    "a bit changed": lambda store: store.write_bytes(store.read_bytes()[:-9] + b"\1" + store.read_bytes()[-8:]),
    "not tensors": lambda store: signed(store, b"PK\3\4" + bytes(99)),
    "a header of 2^62": lambda store: signed(store, (1 << 62).to_bytes(8, "little") + bytes(99)),
    "huge and sparse": sparse,
    "huge shape": lambda store: header(store, lambda t: t["counts"].update(shape=[1 << 40, 7])),
    "overlapping": lambda store: header(store, lambda t: t["fai"].update(data_offsets=t["counts"]["data_offsets"])),
    "outside": lambda store: header(store, lambda t: t["fai"].update(data_offsets=[1 << 40, (1 << 40) + 64])),
    "negative place": lambda store: header(store, lambda t: t["fai"].update(data_offsets=[-64, 0])),
    "a tensor missing": lambda store: header(store, lambda t: t.pop("counts")),
    "floats": lambda store: forge(store, counts=lambda v: v.astype(np.float64)),
    "bytes": lambda store: forge(store, fai=lambda v: v.astype(np.uint8)),
    "flat": lambda store: forge(store, fai=lambda v: v.reshape(-1)),
    "a record less": lambda store: forge(store, counts=lambda v: v[:1]),
    "negative offset": lambda store: forge(store, fai=put(0, 1, value=-1)),
    "offset beyond the file": lambda store: forge(store, fai=put(1, 1, value=1 << 40)),
    "offset near the end of int64": lambda store: forge(store, fai=put(1, 1, value=(1 << 63) - 1)),
    "records that overlap": lambda store: forge(store, fai=put(1, 1, value=8)),
    "no bases in a line": lambda store: forge(store, fai=put(0, 2, value=0)),
    "longer record": lambda store: forge(store, fai=put(0, 0, value=17)),
    "other counts": lambda store: forge(store, counts=put(0, 0, value=9)),
    "negative counts": lambda store: forge(store, counts=put(0, 0, value=-9)),
    "run outside": lambda store: forge(store, run_ends=put(0, value=99)),
    "run turned round": lambda store: forge(store, run_starts=put(0, value=15)),
    "runs of nobody": lambda store: forge(store, run_offsets=put(2, value=9)),
    "runs that go back": lambda store: forge(store, run_offsets=put(1, value=5)),
    "lower case elsewhere": lambda store: forge(store, lower_ends=put(0, value=14)),
    "equal names": lambda store: forge(store, names=lambda v: np.frombuffer(b"a\na", np.uint8)),
    "no names": lambda store: forge(store, names=lambda v: np.zeros(0, np.uint8)),
    "not text": lambda store: forge(store, names=lambda v: np.frombuffer(b"a\n\xff", np.uint8)),
    "not JSON": lambda store: forge(store, about=lambda v: np.frombuffer(b"{", np.uint8)),
    "a list": lambda store: forge(store, about=lambda v: np.frombuffer(b"[]", np.uint8)),
    "deep": lambda store: forge(store, about=lambda v: np.frombuffer(b"[" * 200_000, np.uint8)),
    "as 2bit": lambda store: forge(store, about=lambda v: np.frombuffer(v.tobytes().replace(b"plain", b"2bit"), "u1")),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_index_is_refused_and_built_anew(case: str, fasta: Path, builds: list[str]) -> None:
    truth = contents(fasta)
    stored = load_index(fasta)
    assert stored.store is not None
    HOSTILE[case](stored.store)
    with pytest.warns(RuntimeWarning, match=r"\.index: .+; the index of .*x\.fa is rebuilt"):
        assert contents(fasta) == truth
    # What was written then is right, and is the user's own plain file.
    assert contents(fasta) == truth
    assert len(builds) == 2
    assert stat.S_ISREG(stored.store.lstat().st_mode)


def test_lower_case_is_not_taken_from_a_hostile_index(fasta: Path) -> None:
    stored = load_index(fasta)
    assert stored.store is not None
    forge(stored.store, lower_ends=put(0, value=14))
    with pytest.raises(InputError, match="missing or damaged.*run again"):
        lower_runs(stored)


def test_the_cache_of_another_user_is_not_used(
    fasta: Path, own_cache: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = contents(fasta)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.warns(RuntimeWarning, match=r"indexes: belongs to another user.*only in memory.*CACHE"):
        assert contents(fasta) == truth
    # Told, and built, once in a process.
    assert contents(fasta) == truth
    assert len(builds) == 2
    monkeypatch.undo()
    monkeypatch.setattr(fasta_index, "_in_memory", {})
    monkeypatch.setenv("MAMBA_BIO_AUDIO_CACHE", str(own_cache))
    (own_cache / "indexes").chmod(0o777)
    with pytest.warns(RuntimeWarning, match="may be written to by other users"):
        assert contents(fasta) == truth
    fasta_index._in_memory.clear()
    (own_cache / "indexes").rename(own_cache / "other")
    (own_cache / "indexes").symlink_to(own_cache / "other")
    with pytest.warns(RuntimeWarning, match="not a folder, or a link"):
        assert contents(fasta) == truth
    # Readable by others is no danger; it becomes the user's own.
    (own_cache / "indexes").unlink()
    (own_cache / "other").chmod(0o755)
    (own_cache / "other").rename(own_cache / "indexes")
    assert contents(fasta) == truth
    assert stat.S_IMODE((own_cache / "indexes").stat().st_mode) == 0o700


@pytest.mark.parametrize("place", ["file", "nobody's home"])
def test_without_a_place_indexes_stay_in_memory(place: str, fasta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = contents(fasta)
    monkeypatch.setenv("MAMBA_BIO_AUDIO_CACHE", str(fasta) if place == "file" else "~no_such_user/cache")
    with pytest.warns(RuntimeWarning, match="kept only in memory"):
        assert contents(fasta) == truth
    fasta.write_bytes(TEXT + b">c\nACGT\n")
    with pytest.warns(RuntimeWarning, match="kept only in memory"):
        assert "c" in contents(fasta)["counts"]


def test_a_file_that_changes_while_it_is_read(fasta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(path: str, *rest: Any) -> Any:
        index = build_index(path)
        fasta.write_bytes(TEXT + b">c\nA\n")
        return index

    monkeypatch.setattr(fasta_index, "build_index", build)
    with pytest.raises(InputError, match="changed while it was being read"):
        load_index(fasta)


def test_index_is_built_once_by_many_threads(tmp_path: Path, builds: list[str]) -> None:
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\n" + b"ACGT" * 100_000)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(load_index(path).index.sha256)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert len(found) == 8


def test_progress_of_a_long_record(tmp_path: Path, write_twobit: Callable[..., str]) -> None:
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\n" + b"ACGT" * (3 << 20))
    told: list[tuple[int, int | None]] = []
    load_index(path, progress=lambda done, total: told.append((done, total)))
    size = path.stat().st_size
    assert told == [(8 << 20, size), (size, size)]
    told.clear()
    load_index(path, progress=lambda done, total: told.append((done, total)))
    assert not told
    packed = write_twobit("x.2bit", {"a": "ACGT" * 10, "b": "AC"})
    load_index(packed, progress=lambda done, total: told.append((done, total)))
    assert [total for _, total in told] == [os.path.getsize(packed)] * 2
    assert told == sorted(told)
