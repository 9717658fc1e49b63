"""Where a full tier is read from: nothing but a list of schemes, no end without a limit, and no secret in a message."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fvcore.formats import write_text
from pytest_fvparity.golden import stores
from pytest_fvparity.golden.stores import TierError, below, read, require_no_secret, shown, write

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def served(answer: Answer) -> Iterator[str]:
    """A server on this machine that answers every request so; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *said: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *of: None  # type: ignore[method-assign]  # whoever asked may have hung up
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def sends(data: bytes) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(data)

    return answer


def sends_on(to: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path.endswith("/there"):
            return sends(b"data")(request)
        request.send_response(302)
        request.send_header("Location", to)
        request.end_headers()
        return None

    return answer


@pytest.mark.parametrize(
    "url",
    [
        *("reference://x", "memory://x", "ftp://127.0.0.1/x", "github://a:b@c/x", "zip://a::file:///etc/passwd"),
        *("simplecache::http://127.0.0.1/x", "file:///x::http://127.0.0.1/x", "dask://x", "jlab://x", "dir://x"),
        *("sftp://127.0.0.1/x", "smb://x/y", "generic://x", "://x", "reference+http://x", "FILE2://x", "http://[x"),
    ],
)
def test_a_scheme_that_is_not_on_the_list_is_never_opened(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fsspec.url_to_fs", lambda *said: pytest.fail("fsspec was asked"))

    for use in (lambda: read(url, 4), lambda: write(url, b"data")):
        with pytest.raises(
            TierError, match=r"expected a folder or a URL of https, http, file, s3, gs, hf, found|no URL"
        ):
            use()


def test_a_file_is_read_by_its_url_whatever_its_name(tmp_path: Path) -> None:
    file = tmp_path / "a folder %20" / "data"
    write(file.as_uri(), b"data")

    assert (file.read_bytes(), read(file.as_uri(), 4), read(str(file), 2)) == (b"data", b"data", b"dat")
    with pytest.raises(TierError, match=r"of another machine \('elsewhere'\)"):
        read("file://elsewhere/x", 4)


@pytest.mark.parametrize("what, kind", [("/dev/zero", "a device"), ("pipe", "a pipe"), (".", "a folder")])
def test_what_has_no_end_is_not_read(tmp_path: Path, what: str, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")

    for where in (str(tmp_path / what), (tmp_path / what).resolve().as_uri()):
        with pytest.raises(TierError, match=f"expected a regular file, found {kind}"):
            read(where, 4)


def test_a_plain_install_reads_by_http_and_stores_nothing_there() -> None:
    with served(sends(b"data")) as url:
        assert read(f"{url}/x", 4) == b"data"
        with pytest.raises(TierError, match="nothing is stored by http"):
            write(f"{url}/x", b"data")


def test_one_byte_more_than_there_should_be_is_read_at_most() -> None:
    with served(sends(b"data" * 10**6)) as url:
        assert len(read(f"{url}/x", 100)) == 101
    with pytest.raises(TierError, match="is said to have 1000000000000 bytes; at most"):
        read(url, 10**12)


def test_a_server_sends_on_to_its_like_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "secret", "data")

    with served(sends_on("/there")) as url:
        assert read(f"{url}/x", 4) == b"data"
    for to in ((tmp_path / "secret").as_uri(), "ftp://127.0.0.1/there", "s3://bucket/there", "data:,data"):
        with served(sends_on(to)) as url, pytest.raises(TierError, match=r"127.0.0.1.*: "):
            read(f"{url}/x", 4)


def test_a_server_that_gives_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "WAIT_S", 0.3)
    ended = threading.Event()

    def drips(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not ended.wait(0.05):
            request.wfile.write(b"x")

    with served(drips) as url, pytest.raises(TierError, match=r"no answer for 0\.3 s"):
        read(f"{url}/x", 10**6)
    ended.set()


def test_a_user_is_told_to_the_server_that_was_named_and_to_nobody_else() -> None:
    heard: list[str | None] = []

    def listens(request: BaseHTTPRequestHandler) -> None:
        heard.append(request.headers["Authorization"])
        sends(b"data")(request)

    with served(listens) as other, served(sends_on(f"{other}/x")) as first:
        assert read(first.replace("//", "//me:p%40ss@"), 4) == b"data"
        assert read(other.replace("//", "//me:p%40ss@"), 4) == b"data"

    assert heard == [None, f"Basic {base64.b64encode(b'me:p@ss').decode()}"]


@pytest.mark.parametrize(
    "url",
    [
        "https://me:secret@127.0.0.1:1/x?X-Amz-Signature=secret",
        "s3://key:secret@bucket/x",
        "odd://me:secret@host/x?token=secret",
        "file:///nowhere?token=secret",
    ],
)
def test_no_message_holds_what_a_url_keeps_secret(url: str) -> None:
    with pytest.raises(TierError) as told:
        read(below(url, "name"), 4)

    assert "secret" not in str(told.value)
    assert "secret" not in shown(url)
    with pytest.raises(TierError, match="the manifest would keep it"):
        require_no_secret(url)


def test_a_file_lies_below_the_path_of_a_url_and_not_behind_its_query() -> None:
    assert below("https://host/a/?token=1", "name") == "https://host/a/name?token=1"
    assert below("s3://bucket/", "name") == "s3://bucket/name"
    assert below("/some/folder/", "name") == "/some/folder/name"
