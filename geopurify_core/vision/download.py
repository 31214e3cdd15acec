"""Fetch one large file: with progress, going on where it stopped, and only kept when its checksum is right."""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from geopurify_core.errors import BackboneError

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
_BLOCK = 1 << 20
_ATTEMPTS = 4
_TIMEOUT_S = 30.0
_SPARE_BYTES = 64 << 20
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Downloaded:
    """A file that is here now.

    Attributes:
        path: Where.
        sha256: Of its bytes, hexadecimal.
        checked_against: Who said so beforehand: ``given`` (caller), ``server``, ``earlier download``, or ``nothing``.
    """

    path: Path
    sha256: str
    checked_against: str


class _Interrupted(Exception):
    """The connection broke, but what has come so far can be kept."""


def download(
    url: str, destination: Path, *, sha256: str = "", progress: Progress | None = None, timeout_s: float = _TIMEOUT_S
) -> Downloaded:
    """Fetch ``url`` to ``destination``; a file that is there already is checked instead.

    What has come is kept in ``destination.part`` and continued by the next attempt, within this call and after it,
    as long as the server still has the same file (its ETag or date).

    Args:
        url: http or https.
        destination: The file; its folder is made. Its checksum is kept beside it in ``destination.sha256``.
        sha256: Expected checksum. Without one, a checksum that the server announces (Hugging Face does for large files)
            is used.
        progress: Called with (bytes so far, bytes in all or 0).
        timeout_s: Longest silence of the server.

    Raises:
        BackboneError: No network, no such file, not enough room, or the checksum is wrong (nothing is kept then).
    """
    if not url.lower().startswith(("http://", "https://")):
        raise BackboneError("url", url, "Give an address that begins with https:// or http://.")
    if sha256 and not _HEX.fullmatch(sha256.lower()):
        raise BackboneError("sha256", sha256, "Give 64 hexadecimal digits.")
    expected, source = (sha256.lower(), "given") if sha256 else ("", "nothing")
    if destination.is_file():
        return _check_present(destination, expected, source)
    if not expected:
        expected = _announced(url, timeout_s)
        source = "server" if expected else source
    part = destination.with_name(destination.name + ".part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part, progress, timeout_s)
        digest = sha256_of(part)
    except OSError as error:
        raise BackboneError("weights", str(destination), f"It cannot be written: {error}.") from error
    if expected and digest != expected:
        _drop(part)
        raise BackboneError(
            "sha256", digest, f"{url} should have {expected}; it was damaged or replaced. Nothing is kept."
        )
    part.replace(destination)
    _validator_file(part).unlink(missing_ok=True)
    checksum_file(destination).write_text(f"{digest}  {destination.name}\n", encoding="ascii")
    return Downloaded(destination, digest, source)


def checksum_file(path: Path) -> Path:
    """Where a file's checksum is kept, in the format of ``sha256sum``."""
    return path.with_name(path.name + ".sha256")


def known_checksum(path: Path) -> str:
    """The checksum kept beside a file, or ``""``."""
    try:
        word = checksum_file(path).read_text(encoding="ascii").split()[0].lower()
    except (OSError, UnicodeDecodeError, IndexError):
        return ""
    return word if _HEX.fullmatch(word) else ""


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _check_present(path: Path, expected: str, source: str) -> Downloaded:
    if not expected:
        expected = known_checksum(path)
        source = "earlier download" if expected else "nothing"
    digest = sha256_of(path)
    if expected and digest != expected:
        raise BackboneError(
            "sha256", digest, f"{path} should have {expected}; delete it (and {checksum_file(path).name}), fetch again."
        )
    return Downloaded(path, digest, source)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


def _announced(url: str, timeout_s: float) -> str:
    """The SHA-256 that Hugging Face's hub names in front of its redirect to the store; ``""`` from any other server."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout_s) as answer:
            headers: Message = answer.headers
    except urllib.error.HTTPError as error:
        headers = error.headers
    except (OSError, http.client.HTTPException):
        return ""
    tag = (headers.get("X-Linked-ETag") or "").strip('"').lower()
    return tag if _HEX.fullmatch(tag) else ""


def _fetch(url: str, part: Path, progress: Progress | None, timeout_s: float) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        before = _size(part)
        try:
            return _fetch_once(url, part, progress, timeout_s)
        except _Interrupted as error:
            if attempt == _ATTEMPTS or _size(part) <= before:
                kept = f"{_size(part):,} bytes are kept; run it again to go on." if _size(part) else ""
                raise BackboneError("weights", url, f"The download broke off ({error}). {kept}".strip()) from error
            log.info("the download broke off (%s); going on at %d bytes", error, _size(part))


def _fetch_once(url: str, part: Path, progress: Progress | None, timeout_s: float) -> None:
    validator = _read_validator(part)
    offset = _size(part) if validator else 0
    headers = {"Range": f"bytes={offset}-", "If-Range": validator} if offset else {}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to send, or another file by now
            if error.headers.get("Content-Range") == f"bytes */{offset}":
                return
            _drop(part)
            return _fetch_once(url, part, progress, timeout_s)
        raise BackboneError("weights", url, f"The server answers {error.code} {error.reason}.") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise BackboneError("weights", url, f"It cannot be reached: {getattr(error, 'reason', error)}.") from error
    with answer:
        if answer.status != 206 or not (answer.headers.get("Content-Range") or "").startswith(f"bytes {offset}-"):
            offset = 0
        _store(answer, part, offset, progress)


def _store(answer: Any, part: Path, offset: int, progress: Progress | None) -> None:
    length = answer.headers.get("Content-Length")
    total = offset + int(length) if length else 0
    free = shutil.disk_usage(part.parent).free
    if total - offset + _SPARE_BYTES > free:
        raise BackboneError("weights", str(part), f"{total - offset:,} bytes do not fit: {free:,} are free there.")
    if offset == 0:
        _validator_file(part).write_text(_validator(answer.headers), encoding="utf-8")
    done = offset
    with part.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        for block in _blocks(answer):
            file.write(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
        file.truncate()
    if total and done < total:
        raise _Interrupted(f"{done:,} of {total:,} bytes")


def _blocks(answer: Any) -> Iterator[bytes]:
    while True:
        try:
            block = answer.read(_BLOCK)
        except http.client.IncompleteRead as error:
            yield error.partial
            return
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(str(error) or type(error).__name__) from error
        if not block:
            return
        yield block


def _validator(headers: Message) -> str:
    """What proves at the next attempt that the file is still the same: a strong ETag, or else the date."""
    tag = headers.get("ETag") or ""
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified") or ""


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _read_validator(part: Path) -> str:
    try:
        return _validator_file(part).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    _validator_file(part).unlink(missing_ok=True)
