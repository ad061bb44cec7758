"""Downloads against a local server that cuts connections, ignores ranges, and serves wrong bytes and errors."""

import errno
import gzip
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mamba_bio_audio.errors import InputError, NetworkError
from mamba_bio_audio.pipelines import download as module
from mamba_bio_audio.pipelines.download import Patience, download, verify

CONTENT = bytes(hashlib.sha256(b"%d" % i).digest()[0] for i in range(300_000))
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves `content` and logs requests; the switches make it misbehave."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.etag: str | None = '"one"'
        self.ranges = True
        self.length = True
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.codes: list[int] = []  # of the next answers
        self.headers: dict[str, str] = {}
        self.before: Callable[[int], None] = lambda number: None
        self.requests: list[dict[str, str]] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/file.bin"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.before(len(self.requests))
        asked = dict(handler.headers.items())
        self.requests.append(asked)
        if self.codes and (code := self.codes.pop(0)) != 200:
            if 300 <= code < 400:
                handler.send_response(code)
                handler.send_header("Location", self.url + "?moved")
            else:
                handler.send_response(code)
            for name, value in self.headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            return
        start = 0
        if self.ranges and "Range" in asked and asked.get("If-Range", self.etag) == self.etag:
            start = int(asked["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.content):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(self.content)}")
                handler.end_headers()
                return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.length:
            handler.send_header("Content-Length", str(len(body)))
        if self.etag:
            handler.send_header("ETag", self.etag)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else len(body)
        handler.wfile.write(body[:cut])
        if cut < len(body):
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


def fetch(server: Server, path: Path, **options):
    return download(server.url, path, **({"patience": Patience(wait_s=0.0, timeout_s=10.0)} | options))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_download_writes_the_file_and_says_what_it_is(server, tmp_path):
    path = tmp_path / "new" / "file.bin"
    calls = []
    done = fetch(
        server, path, size=len(CONTENT), hashes={"md5": MD5}, progress=lambda done, total: calls.append((done, total))
    )
    assert path.read_bytes() == CONTENT
    assert done.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert (done.url, done.size_bytes, done.checked) == (server.url, len(CONTENT), ("size", "md5"))
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert names(path.parent) == ["file.bin"]
    # A file that is there is verified, not fetched again.
    again = fetch(server, path, hashes={"md5": MD5})
    assert len(server.requests) == 1
    assert again.url is None


def test_download_goes_on_after_cut_connections(server, tmp_path):
    server.cuts = [100_000, 50_000, 1, 70_000]
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    ranges = [request.get("Range") for request in server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=150001-", "bytes=220001-"]
    assert all(request["If-Range"] == '"one"' for request in server.requests[1:])


def test_download_resumes_in_a_later_call(server, tmp_path):
    server.cuts = [120_000]
    with pytest.raises(NetworkError, match=r"120,000 of 300,000.*120,000 bytes are kept in .*--url.*--from"):
        fetch(server, tmp_path / "file.bin", patience=Patience(0, 0.0, 10.0))
    assert names(tmp_path) == [".file.bin.part", ".file.bin.part.json"]
    fetch(server, tmp_path / "file.bin")
    assert server.requests[1]["Range"] == "bytes=120000-"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["file.bin"]


def test_download_resumes_after_kill(server, tmp_path):
    """kill -9 in the middle: the bytes that had come are not asked for again."""
    reached = threading.Event()
    stop = threading.Event()
    plain = server.answer

    def slow(handler):
        if not server.requests:
            server.requests.append({})
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(CONTENT)))
            handler.send_header("ETag", '"one"')
            handler.end_headers()
            handler.wfile.write(CONTENT[:200_000])
            handler.wfile.flush()
            reached.set()
            stop.wait()
        else:
            plain(handler)

    server.answer = slow
    code = f"""
from pathlib import Path
from mamba_bio_audio.pipelines import download
download._CHUNK_BYTES = 1000
download.download({server.url!r}, Path({str(tmp_path / "file.bin")!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    reached.wait()
    part = tmp_path / ".file.bin.part"
    while not part.exists() or part.stat().st_size < 200_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    stop.set()
    assert not (tmp_path / "file.bin").exists()
    fetch(server, tmp_path / "file.bin", hashes={"md5": MD5})
    assert server.requests[1]["Range"] == "bytes=200000-"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_download_from_a_server_that_ignores_ranges(server, tmp_path):
    server.ranges = False
    server.cuts = [100_000, 200_000]
    fetch(server, tmp_path / "file.bin", hashes={"md5": MD5})
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert "Range" in server.requests[2]


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_download_starts_again_when_the_file_changed(server, tmp_path, honours_if_range):
    server.cuts = [100_000]

    def change(number: int) -> None:
        if number == 1:
            server.content = CONTENT[::-1]
            server.etag = '"two"'
            if not honours_if_range:
                server.requests[0]["seen"] = "yes"

    server.before = change
    if not honours_if_range:
        plain = server.answer

        def deaf(handler):
            del handler.headers["If-Range"]
            plain(handler)

        server.answer = deaf
    fetch(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT[::-1]


def test_download_without_validator_is_continued_only_where_the_whole_can_be_checked(server, tmp_path):
    server.etag = None
    server.cuts = [100_000]
    fetch(server, tmp_path / "a.bin")
    assert ["Range" in request for request in server.requests] == [False, False]
    server.requests.clear()
    server.cuts = [100_000]
    fetch(server, tmp_path / "b.bin", hashes={"md5": MD5})
    assert ["Range" in request for request in server.requests] == [False, True]
    # The halves turn out to be of two files: once more, whole.
    server.requests.clear()
    server.cuts = [100_000]
    server.content = b"x" + CONTENT[1:]
    server.before = lambda number: setattr(server, "content", CONTENT) if number else None
    fetch(server, tmp_path / "c.bin", hashes={"md5": MD5})
    assert (tmp_path / "c.bin").read_bytes() == CONTENT
    assert ["Range" in request for request in server.requests] == [False, True, False]


def test_a_weak_tag_promises_no_equal_bytes(server, tmp_path):
    """RFC 9110, 13.1.5: `If-Range` compares strongly; a weak tag stays the same while bytes change."""
    server.etag = 'W/"one"'
    server.cuts = [100_000]
    server.before = lambda number: setattr(server, "content", CONTENT[::-1]) if number else None
    fetch(server, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[::-1]
    assert ["Range" in request for request in server.requests] == [False, False]
    # A date beside it is a validator; where the whole can be checked, the download goes on without either.
    for headers, options, validator in (
        ({"Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT"}, {}, "Sun, 06 Nov 1994 08:49:37 GMT"),
        ({}, {"hashes": {"md5": MD5}}, None),
    ):
        server.content, server.before, server.headers, server.cuts = CONTENT, lambda number: None, headers, [100_000]
        server.requests.clear()
        fetch(server, tmp_path / f"{validator is None}.bin", **options)
        assert [request.get("If-Range") for request in server.requests[:2]] == [None, validator]


def test_download_of_wrong_bytes_leaves_nothing(server, tmp_path):
    server.content = b"x" + CONTENT[1:]
    with pytest.raises(
        NetworkError, match=f"did not send the published file: its md5 is .*, but the published one is {MD5}"
    ):
        fetch(server, tmp_path / "file.bin", hashes={"md5": MD5})
    assert names(tmp_path) == []
    with pytest.raises(NetworkError, match="has 300,000 bytes, but the published one has 299,999"):
        fetch(server, tmp_path / "file.bin", size=299_999)
    assert names(tmp_path) == []


def test_download_checks_gzip(server, tmp_path):
    good = gzip.compress(CONTENT[:5000]) + gzip.compress(b"ACGT" * 10_000) + b"\0" * 512
    server.content = good
    assert fetch(server, tmp_path / "a.fa.gz").checked == ("gzip",)
    broken = {
        "truncated": good[:-600],
        "incorrect data check": good[:4900] + bytes([good[4900] ^ 1]) + good[4901:],
        "beginning with b'<!DOCTYPE html>": b"<!DOCTYPE html><p>sign in",
    }
    for message, content in broken.items():
        server.content = content
        with pytest.raises(NetworkError, match=message):
            fetch(server, tmp_path / "b.fa.gz")
        assert not (tmp_path / "b.fa.gz").exists()
    # A bomb is checked in pieces.
    server.content = gzip.compress(bytes(50_000_000))
    fetch(server, tmp_path / "c.gz")
    server.content = b""
    with pytest.raises(NetworkError, match="empty"):
        fetch(server, tmp_path / "d.gz")


def test_download_repeats_after_passing_errors_only(server, tmp_path):
    server.codes = [503, 429, 500, 502]
    server.headers = {"Retry-After": "0"}
    fetch(server, tmp_path / "file.bin")
    assert len(server.requests) == 5
    # RFC 9110: Request Timeout and Gateway Timeout; RFC 8470: Too Early.
    server.codes = [408, 504, 425]
    fetch(server, tmp_path / "a.bin")
    assert len(server.requests) == 9
    server.codes = [503] * 9
    with pytest.raises(NetworkError, match="HTTP 503.*3 times in a row"):
        fetch(server, tmp_path / "b.bin", patience=Patience(2, 0.0, 10.0))
    for code in (400, 401, 403, 404, 410):
        server.codes = [code]
        with pytest.raises(InputError, match=f"file.bin: HTTP {code} .*--url"):
            fetch(server, tmp_path / "c.bin")
    assert not server.codes
    server.codes = [302]
    fetch(server, tmp_path / "d.bin")


def test_download_waits_longer_each_time(server, tmp_path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    server.codes = [503] * 3
    fetch(server, tmp_path / "file.bin", patience=Patience(wait_s=1.0))
    assert waits == [1, 2, 4]
    server.codes, server.headers = [503], {"Retry-After": "7"}
    fetch(server, tmp_path / "b.bin", patience=Patience(wait_s=1.0))
    assert waits[3:] == [7]


def test_download_without_server_or_address(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(NetworkError, match=r"127.0.0.1:\d+/x: .*refused.*2 times in a row; 0 bytes"):
        download(f"http://127.0.0.1:{port}/x", tmp_path / "x", patience=Patience(1, 0.0))
    for url in ("ftp://host/x", "file:///etc/passwd", "hg38.fa", "http://"):
        with pytest.raises(InputError, match="--from"):
            download(url, tmp_path / "x")
    with pytest.raises(InputError, match="not a valid address"):
        download("http://127.0.0.1:port/x", tmp_path / "x", patience=Patience(0))


def test_download_of_unknown_length_needs_a_check(server, tmp_path):
    server.length = False
    with pytest.raises(NetworkError, match="does not state the file's size"):
        fetch(server, tmp_path / "file.bin")
    fetch(server, tmp_path / "file.bin", hashes={"md5": MD5})
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_download_of_a_part_that_is_already_whole(server, tmp_path):
    """Killed between the last byte and the rename."""
    (tmp_path / ".file.bin.part").write_bytes(CONTENT)
    note = {"url": server.url, "validator": '"one"', "total": len(CONTENT)}
    (tmp_path / ".file.bin.part.json").write_text(json.dumps(note))
    fetch(server, tmp_path / "file.bin")
    assert len(server.requests) == 1
    assert names(tmp_path) == ["file.bin"]
    # Longer than the server's: of another file.
    (tmp_path / ".b.bin.part").write_bytes(CONTENT + b"x")
    (tmp_path / ".b.bin.part.json").write_text(json.dumps(note))
    fetch(server, tmp_path / "b.bin")
    assert (tmp_path / "b.bin").read_bytes() == CONTENT
    # A note that is damaged or of another address.
    for text in ("{", "[]", json.dumps(note | {"url": "http://elsewhere/"})):
        (tmp_path / ".c.bin.part").write_bytes(b"xyz")
        (tmp_path / ".c.bin.part.json").write_text(text)
        fetch(server, tmp_path / "c.bin")
        assert (tmp_path / "c.bin").read_bytes() == CONTENT
        (tmp_path / "c.bin").unlink()


def test_download_on_a_full_disk(server, tmp_path, monkeypatch):
    real = open

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error) -> None:
            self.file.close()

        def write(self, data) -> None:
            self.file.write(data[:1000])
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "open", lambda *arguments: Full(real(*arguments)), raising=False)
    with pytest.raises(
        OSError, match=r"No space left on device; free some space and run the same command again"
    ) as error:
        fetch(server, tmp_path / "file.bin")
    assert error.value.errno == errno.ENOSPC
    assert len(server.requests) == 1
    monkeypatch.undo()
    fetch(server, tmp_path / "file.bin")
    assert server.requests[1]["Range"] == "bytes=1000-"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: _Usage())
    with pytest.raises(InputError, match="300,000 more bytes are needed, but only 10 are free"):
        fetch(server, tmp_path / "b.bin")


class _Usage:
    free = 10


def test_download_by_two_at_once(server, tmp_path):
    started, go_on = threading.Event(), threading.Event()

    def wait(number: int) -> None:
        started.set()
        go_on.wait()

    server.before = wait
    first = threading.Thread(target=fetch, args=(server, tmp_path / "file.bin"))
    first.start()
    started.wait()
    code = f"""
from pathlib import Path
from mamba_bio_audio.pipelines.download import Patience, download
download({server.url!r}, Path({str(tmp_path / "file.bin")!r}))
"""
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    go_on.set()
    first.join()
    assert "in use by process" in second.stderr
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_verify_a_file_at_hand(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    assert verify(path, hashes={"md5": MD5.upper()}).checked == ("md5",)
    with pytest.raises(InputError, match=r"file.bin: its md5 is .*remove the file"):
        verify(path, hashes={"md5": "0" * 32})
    with pytest.raises(InputError, match="the published one has 3"):
        download("http://127.0.0.1:1/x", path, size=3)
    with pytest.raises(InputError, match="cannot be read"):
        verify(tmp_path / "none")


def test_credentials_in_an_address_are_neither_used_nor_shown(tmp_path):
    with pytest.raises(InputError, match="user name or password") as error:
        download("https://user:secret@host/file", tmp_path / "file")
    assert "secret" not in str(error.value)
    assert names(tmp_path) == []
