"""Logs and checkpoints that are no files: what has no end is refused before it is read."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from fvcore.experiments.sae.readers import Oddities, read_document, read_records
from fvcore.formats import FormatError


@pytest.mark.parametrize("name", ["log.json", "log.jsonl", "log.json.gz", "log.jsonl.gz"])
def test_a_pipe_a_device_and_a_folder_are_no_logs(name: str, tmp_path: Path) -> None:
    for kind in ("pipe", "device", "folder"):
        path = tmp_path / kind / name
        path.parent.mkdir()
        {"pipe": lambda p: os.mkfifo(p), "device": lambda p: p.symlink_to("/dev/zero"), "folder": Path.mkdir}[kind](
            path
        )
        for read in (lambda p: list(read_records(p, Oddities())), lambda p: read_document(p, Oddities())):
            with pytest.raises(FormatError, match=f"expected a regular file, found a {kind}"):
                read(path)


def test_a_packed_log_that_is_cut_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"feature": "a"}\n' * 1000)[:-20])

    with pytest.raises(FormatError, match=r"log\.jsonl\.gz: cannot be read"):
        list(read_records(path, Oddities()))
