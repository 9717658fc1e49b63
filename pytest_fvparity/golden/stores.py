"""Where a full tier may lie: a folder, or a URL of a store that keeps bytes and does nothing with them.

A manifest may come from anybody, and the URL in it is theirs. fsspec knows file systems that run what they read, or wrap
one another; so the schemes are a list, every read has an end, and what a URL keeps secret is not printed.
"""

import base64
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import OpenerDirector, url2pathname

from fvcore.exits import in_one_line
from fvcore.formats import FormatError, read_bytes, write_bytes

SCHEMES = ("https", "http", "file", "s3", "gs", "hf")
WAIT_S = 60
"""How long a store may take for one piece: what is slower than a piece in that time is given up."""
PIECE = 2**20
MOST_BYTES = 2**32
"""Of one file: far more than a golden of any model that exists."""

SECRET = re.compile(r"(?<=//)[^/\s@]+@|\?[^\s'\"]+")


class TierError(FormatError):
    """A golden cannot be split, or its full tier cannot be had."""


def shown(where: str) -> str:
    """A place as it may be printed: without a user's name, a password, or what follows the question mark."""
    return SECRET.sub("", where)


def below(base: str, name: str) -> str:
    """The place of a file under a folder or a URL; whether one may be named is asked when it is read."""
    path, mark, query = base.partition("?") if is_url(base) else (base, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def is_url(where: str) -> bool:
    return "://" in where


def read(where: str, n_bytes: int) -> bytes:
    """The bytes there, one more than `n_bytes` at most: a wrong file may be of any size. Raises TierError with the reason."""
    if n_bytes > MOST_BYTES:
        raise TierError(f"{shown(where)}: is said to have {n_bytes} bytes; at most {MOST_BYTES} are read")
    with _told(where):
        if (path := _path(where)) is not None:
            return read_bytes(path, n_bytes + 1)
        return b"".join(_in_time(_pieces(where, n_bytes + 1), WAIT_S))


def write(where: str, data: bytes) -> None:
    """Store bytes there; raises TierError with the reason."""
    with _told(where):
        if (path := _path(where)) is not None:
            return write_bytes(path, data)
        if _split(where).scheme in {"http", "https"}:
            raise TierError("nothing is stored by http; put the files there and name the place with --url")
        list(_in_time(_stored(where, data), WAIT_S * (1 + len(data) // PIECE)))
    return None


def require_no_secret(where: str | None) -> None:
    """A manifest goes into git, and what it says of where the full tier lies with it."""
    if where is not None and shown(where) != where:
        raise TierError(
            f"{shown(where)}: this URL holds a user, a password or a signature, and the manifest would keep it; name "
            "with --url what may stand there"
        )


def _split(url: str) -> SplitResult:
    """The parts of a URL; raises TierError for one of a scheme that is not on the list, or one inside another."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise TierError(f"no URL: {error}") from None
    if "::" in url or parts.scheme not in SCHEMES:
        found = "one inside another (::)" if "::" in url else f"{parts.scheme!r}"
        raise TierError(f"expected a folder or a URL of {', '.join(SCHEMES)}, found {found:.80}")
    return parts


def _path(where: str) -> Path | None:
    """The file on this machine that is meant, if it is one."""
    if not is_url(where):
        return Path(where)
    parts = _split(where)
    if parts.scheme == "file" and parts.netloc not in {"", "localhost"}:
        raise TierError(f"file:// of another machine ({parts.netloc!r:.80}); mount it here")
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _opened(where: str) -> IO[bytes]:
    parts, file = _split(where), None
    if parts.scheme in {"http", "https"}:
        file = _http(parts)
    else:
        store, name = _elsewhere(where)
        file = store.open(name, "rb")
    opened: IO[bytes] = file
    return opened


def _elsewhere(where: str) -> tuple[Any, str]:
    """The store of a URL, and the file's name there."""
    import fsspec

    found: tuple[Any, str] = fsspec.url_to_fs(where)
    return found


def _http(parts: SplitResult) -> Any:
    """An answer of a server; the standard library's, so that a plain install has it."""
    from urllib.request import Request

    host = parts.netloc.rpartition("@")[2]
    request = Request(parts._replace(netloc=host).geturl())
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        # Unredirected: where a server sends us is not who this was said to.
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
    return _opener().open(request, timeout=WAIT_S)


def _opener() -> OpenerDirector:
    """One that speaks http and https alone, wherever it is sent on to."""
    from urllib import request as of

    opener = of.OpenerDirector()
    for handler in (
        *(of.ProxyHandler, of.HTTPHandler, of.HTTPSHandler, of.HTTPRedirectHandler),
        *(of.HTTPDefaultErrorHandler, of.HTTPErrorProcessor, of.UnknownHandler),
    ):
        opener.add_handler(handler())
    return opener


def _pieces(where: str, most: int) -> Iterator[bytes]:
    with _opened(where) as file:
        while most > 0 and (piece := file.read(min(PIECE, most))):
            most -= len(piece)
            yield piece


def _stored(where: str, data: bytes) -> Iterator[bytes]:
    store, name = _elsewhere(where)
    store.makedirs(name.rpartition("/")[0], exist_ok=True)
    store.pipe_file(name, data)
    yield b""


def _in_time(pieces: Iterator[bytes], wait_s: float) -> Iterator[bytes]:
    """The pieces, each within a time. A store that hangs is left to a thread that no process waits for."""
    came: SimpleQueue[bytes | BaseException] = SimpleQueue()

    def run() -> None:
        try:
            for piece in pieces:
                came.put(piece)
            came.put(StopIteration())
        except BaseException as error:
            came.put(error)

    Thread(target=run, daemon=True).start()
    while not isinstance(one := _next(came, wait_s), BaseException):
        yield one
    if not isinstance(one, StopIteration):
        raise one


def _next(came: SimpleQueue[bytes | BaseException], wait_s: float) -> bytes | BaseException:
    try:
        return came.get(timeout=wait_s)
    except Empty:
        raise TierError(f"no answer for {wait_s:g} s") from None


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Whatever a store raises, as a TierError that names the place and gives nothing away."""
    try:
        yield
    except Exception as error:  # of as many kinds as there are stores
        reason = in_one_line(error).removeprefix(f"{where}: ") or type(error).__name__
        for secret in SECRET.findall(where):
            reason = reason.replace(secret, "")
        raise TierError(f"{shown(where)}: {shown(reason):.300}") from None
