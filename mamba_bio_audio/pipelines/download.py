"""Downloads that resume and are verified: the file is either complete and checked, or absent.

    done = download(url, Path("data/hg38.fa.gz"), hashes={"md5": "1c9dca..."}, progress=progress)

Bytes arrive in `.NAME.part` beside the target, with a small `.NAME.part.json` that says what they are. An interrupted or
killed download continues there, within one call and from call to call, where the server confirms (`If-Range`,
RFC 9110 section 13.1.5) that its file is still the same one. The target appears by a rename, after its size, the
published hashes and, for gzip, every checksum inside have been found right.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mamba_bio_audio.errors import InputError, NetworkError
from mamba_bio_audio.files import locked, write_json

Progress = Callable[[int, int | None], None]
_CHUNK_BYTES = 1 << 20
_LONGEST_WAIT_S = 60.0
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class Patience(NamedTuple):
    """How long to try.

    Attributes:
        retries: attempts in a row that may bring nothing new.
        wait_s: before the first repetition, doubled each time.
        timeout_s: longest silence of the server.
    """

    retries: int = 4
    wait_s: float = 1.0
    timeout_s: float = 60.0


class Downloaded(NamedTuple):
    """A complete, verified file, with the facts that a manifest records (`_asdict`)."""

    url: str | None  # None for a file that was already there
    path: str
    size_bytes: int
    sha256: str
    checked: tuple[str, ...]  # what was checked: "size", "gzip", and the names of the published hashes


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    hashes: Mapping[str, str] | None = None,
    gzip: bool | None = None,
    progress: Progress | None = None,
    patience: Patience = Patience(),
) -> Downloaded:
    """Fetch `url` into the file `path`; a file that already exists is verified and kept.

    Args:
        url: http or https address.
        path: file to create, together with its folder.
        size: published size in bytes.
        hashes: published hashes, {"md5": hex} or any other name that hashlib knows.
        gzip: check the file as gzip; None: when its name ends in .gz or .bgz.
        progress: called with (bytes there, bytes in all or None).
        patience: how often and how long to try.

    Raises:
        InputError: the address or the local file is wrong; the message says what to do.
        NetworkError: the server cannot be reached, keeps disconnecting, or sends other bytes than those published.
    """
    if not re.match(r"https?://[^/]", url):
        raise InputError(f"{url}: not an http or https address; use a local file instead (--from)")
    if "@" in urlsplit(url).netloc:
        # The address is printed and kept in manifests; it is not repeated here either.
        raise InputError("the address holds a user name or password; download the file yourself and give it as --from")
    fetch = _Fetch(url, path, size, dict(hashes or {}), _is_gzip(path) if gzip is None else gzip, progress, patience)
    with locked(path):
        if path.exists():
            return verify(path, size=size, hashes=hashes, gzip=fetch.gzip)
        return fetch.run()


def verify(
    path: Path, *, size: int | None = None, hashes: Mapping[str, str] | None = None, gzip: bool | None = None
) -> Downloaded:
    """Check a local file as `download` would.

    Raises:
        InputError: it cannot be read, or is not the published file.
    """
    try:
        sha256, problem = _check(path, size, dict(hashes or {}), _is_gzip(path) if gzip is None else gzip)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    if problem:
        raise InputError(f"{path}: {problem}; remove the file to download it again, or give another one")
    return Downloaded(
        None, str(path), path.stat().st_size, sha256, _checked(size, hashes, _is_gzip(path) if gzip is None else gzip)
    )


class _Retry(Exception):
    """An attempt failed and may be repeated."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _Fetch:
    """One download: its partial file, what is known about that, and the attempts to complete it."""

    def __init__(
        self,
        url: str,
        path: Path,
        size: int | None,
        hashes: dict[str, str],
        gzip: bool,
        progress: Progress | None,
        patience: Patience,
    ) -> None:
        self.url, self.path, self.size, self.hashes, self.gzip = url, path, size, hashes, gzip
        self.progress, self.patience = progress, patience
        self.part = path.with_name(f".{path.name}.part")
        self.note = path.with_name(f".{path.name}.part.json")
        self.resumed = False

    def run(self) -> Downloaded:
        retries, wait_s, _ = self.patience
        furthest = self._have()
        failures = 0
        while True:
            try:
                self._transfer()
            except _Retry as error:
                if self._have() > furthest:
                    furthest, failures = self._have(), 0
                failures += 1
                if failures > retries:
                    raise NetworkError(
                        f"{self.url}: {error}, {failures} times in a row; {self._have():,} bytes are kept in {self.part}. "
                        "Run the same command again to continue, or use another source (--url) or a local file (--from)"
                    ) from None
                time.sleep(min(max(wait_s * 2 ** (failures - 1), error.wait_s), _LONGEST_WAIT_S))
                continue
            sha256, problem = _check(self.part, self.size, self.hashes, self.gzip)
            if problem is None:
                break
            self._drop()
            if self.resumed:
                # The two parts may belong to different files; a download in one piece settles it.
                self.resumed = False
                continue
            raise NetworkError(
                f"{self.url}: the server did not send the published file: {problem}. It was discarded; "
                "use another source (--url) or a local file (--from)"
            )
        size_bytes = self._have()
        os.replace(self.part, self.path)
        self.note.unlink(missing_ok=True)
        return Downloaded(self.url, str(self.path), size_bytes, sha256, _checked(self.size, self.hashes, self.gzip))

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _drop(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def _known(self) -> dict[str, Any]:
        """The note about the partial file if it can be continued; otherwise the partial file is deleted."""
        known: Any = None
        if self._have():
            with suppress(OSError, ValueError):
                known = json.loads(self.note.read_text(encoding="utf-8"))
        # Without a validator, only a check of the whole can tell whether both parts belong to one file.
        sound = isinstance(known, dict) and known.get("url") == self.url
        if sound and (known.get("validator") or self.hashes or self.gzip):
            return dict(known)
        self._drop()
        return {}

    def _transfer(self) -> None:
        """One connection: append to the partial file until it is complete, or raise `_Retry`."""
        known = self._known()
        have = self._have()
        headers = {"Accept-Encoding": "identity", "User-Agent": "mamba-bio-audio"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if known.get("validator"):
                headers["If-Range"] = known["validator"]
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url, headers=headers), timeout=self.patience.timeout_s
            ) as answer:
                start, total = self._accept(answer.status, answer.headers, have, known)
                self._receive(answer, start, total)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                match = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
                if match and int(match[1]) == have:
                    return
                self._drop()
                raise _Retry(f"the server's file is shorter than the {have:,} bytes already downloaded") from None
            if error.code in _TRANSIENT:
                delay = error.headers.get("Retry-After", "")
                raise _Retry(
                    f"HTTP {error.code} {error.reason}", float(delay) if delay.isascii() and delay.isdigit() else 0.0
                ) from None
            raise InputError(
                f"{self.url}: HTTP {error.code} {error.reason}; check the address, or use another source (--url) or a "
                "local file (--from)"
            ) from None
        except (http.client.InvalidURL, UnicodeError) as error:
            raise InputError(f"{self.url}: not a valid address ({error}); correct it") from None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise _Retry(str(getattr(error, "reason", None) or error) or type(error).__name__) from None

    def _accept(self, status: int, headers: Message, have: int, known: dict[str, Any]) -> tuple[int, int | None]:
        """Position in the file of the answer's first byte, and the size of the whole file if the server states it."""
        if headers.get("Content-Encoding", "identity") != "identity":
            coding = headers["Content-Encoding"]
            raise InputError(
                f"{self.url}: the server encodes the file as {coding}; get it yourself and give it as --from"
            )
        etag = headers.get("ETag", "")
        # A weak tag does not guarantee equal bytes.
        validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
        length = headers.get("Content-Length", "")
        if status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
            if match is None or int(match[1]) != have or validator != known.get("validator"):
                self._drop()
                raise _Retry("the server continued with another file or at another position")
            start, total = have, None if match[2] == "*" else int(match[2])
            self.resumed = True
        elif status == 200:
            start, total = 0, int(length) if length.isascii() and length.isdigit() else None
            self._drop()
            self.resumed = False
        else:
            raise InputError(f"{self.url}: HTTP {status} instead of a file; check the address")
        if self.size is not None and total is not None and total != self.size:
            raise NetworkError(
                f"{self.url}: the server's file has {total:,} bytes, but the published one has {self.size:,}; use another "
                "source (--url) or a local file (--from)"
            )
        closed = total is None and headers.get("Transfer-Encoding", "") != "chunked"
        if closed and self.size is None and not self.hashes and not self.gzip:
            raise NetworkError(
                f"{self.url}: the server does not state the file's size and no hash of it is published, so a truncated "
                "file could not be detected; download it yourself and give it as --from"
            )
        free = shutil.disk_usage(self.part.parent).free
        if total is not None and total - start > free:
            raise InputError(
                f"{self.part.parent}: {total - start:,} more bytes are needed, but only {free:,} are free; free some "
                "space, or choose another folder"
            )
        write_json(self.note, {"url": self.url, "validator": validator, "total": total})
        return start, total

    def _receive(self, answer: http.client.HTTPResponse, start: int, total: int | None) -> None:
        have = start
        with open(self.part, "ab") as file:
            while True:
                try:
                    data = answer.read(_CHUNK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise _Retry(f"after {have:,} bytes: {error or type(error).__name__}") from None
                if not data:
                    break
                try:
                    file.write(data)
                    file.flush()
                except OSError as error:
                    reason = f"{error.strerror}; free some space and run the same command again to continue from here"
                    raise OSError(error.errno, reason, str(self.part)) from None
                have += len(data)
                if self.progress is not None:
                    self.progress(have, total)
            os.fsync(file.fileno())
        if total is not None and have != total:
            if have > total:
                self._drop()
            raise _Retry(f"the connection ended after {have:,} of {total:,} bytes")


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith((".gz", ".bgz"))


def _checked(size: int | None, hashes: Mapping[str, str] | None, gzip: bool) -> tuple[str, ...]:
    return (*(() if size is None else ("size",)), *(hashes or {}), *(("gzip",) if gzip else ()))


def _check(path: Path, size: int | None, hashes: dict[str, str], gzip: bool) -> tuple[str, str | None]:
    """SHA-256 of a file, and what is wrong with it, if anything; reads the file once."""
    found = {name: hashlib.new(name) for name in {"sha256", *hashes}}
    members = _Gzip() if gzip else None
    with open(path, "rb") as file:
        while data := file.read(_CHUNK_BYTES):
            for digest in found.values():
                digest.update(data)
            if members is not None:
                members.feed(data)
        read = file.tell()
    problem = members.problem() if members is not None else None
    for name, published in hashes.items():
        if found[name].hexdigest() != published.lower():
            problem = f"its {name} is {found[name].hexdigest()}, but the published one is {published}"
    if size is not None and read != size:
        problem = f"it has {read:,} bytes, but the published one has {size:,}"
    return found["sha256"].hexdigest(), problem


class _Gzip:
    """Checks a gzip file fed in pieces: every member must be complete and match its checksum (RFC 1952)."""

    def __init__(self) -> None:
        self.member: Any = None
        self.members = 0
        self.wrong: str | None = None
        self.head = b""

    def feed(self, data: bytes) -> None:
        self.head = self.head or data[:16]
        while data and self.wrong is None:
            if self.member is None:
                # Zeros after the last member are padding, as on tapes.
                data = data.lstrip(b"\0") if self.members else data
                if not data:
                    return
                self.member = zlib.decompressobj(wbits=31)
            try:
                # In pieces of limited size, so that no input can exhaust the memory.
                while len(self.member.decompress(data, _CHUNK_BYTES)) == _CHUNK_BYTES or self.member.unconsumed_tail:
                    data = self.member.unconsumed_tail
            except zlib.error as error:
                self.wrong = f"damaged gzip ({error}), beginning with {self.head!r}"
                return
            data = b""
            if self.member.eof:
                data, self.member = self.member.unused_data, None
                self.members += 1

    def problem(self) -> str | None:
        """What is wrong, once the whole file has been fed; None if nothing is."""
        if self.wrong is not None:
            return self.wrong
        if self.member is not None:
            return "the gzip data are truncated"
        return None if self.members else "it is empty, not gzip"
