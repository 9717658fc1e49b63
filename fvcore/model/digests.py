"""What a model is known by: the digests of its weights and of its tokenizer.

Large weights take long to hash, so their digest is kept in the user's cache, beside what their files were before they
were loaded (path, size, time, inode), how they were loaded and by which versions, and check sums of all loaded weights.
It is taken from there only where all of that is as it was. Check sums read the weights too, but on all cores and with less
work: whoever edits a weight in memory, by whatever way, changes them.
"""

import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fvcore.formats import FormatError, digest, read_json, write_json
from fvcore.model import on_disk
from fvcore.provenance import versions

LARGE = 2**28
"""Bytes of weights. Fewer are hashed in a moment, and nothing is kept of them."""

SETTLED = 10.0
"""Seconds since a file was changed. Of a younger one a later change may bear the same time."""

PIECE = 2**20
"""Bytes that have a check sum of their own."""

Origin: TypeAlias = dict[str, Any]
"""Files that weights come from, and all that decides what is made of them."""

Files: TypeAlias = list[list[Any]]


def weights_digest(hf: nn.Module) -> str:
    """Of every parameter by name, dtype, shape and value."""
    found = hashlib.sha256()
    for name, parameter in sorted(hf.named_parameters()):
        value = parameter.detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(_bytes(value))
    return found.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of what decides the ids: the fast tokenizer's pipeline, or vocabulary and probes of a slow one."""
    probe = [tokenizer(text).input_ids for text in ("Q: hot\nA: cold\n\nQ: unhappy\nA:", " a", "caf\u00e9 12!\n")]
    facts: dict[str, Any] = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "probe": probe}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        facts["vocab"] = tokenizer.get_vocab()
    else:
        pipeline = json.loads(backend.to_str())
        # Truncation and padding are settings of the last call, not of the tokenizer.
        facts |= {key: value for key, value in pipeline.items() if key not in {"truncation", "padding", "version"}}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def weights_sha(hf: nn.Module, origin: Origin | None) -> str:
    """`weights_digest`, which is kept where the weights are large and their origin is known."""
    if origin is None or sum(one.nbytes for one in hf.parameters()) < LARGE:
        return weights_digest(hf)
    if (folder := kept()) is None:
        return weights_digest(hf)
    about = {**origin, "sums": sums(hf)}
    path = folder / f"{digest(about)[:32]}.json"
    if (known := _read(path, about)) is None:
        known = weights_digest(hf)
        with suppress(FormatError):  # a cache that cannot be written is none
            write_json(path, {"about": about, "weights_sha": known, "digest": digest([about, known])})
    return known


def kept() -> Path | None:
    """Where digests are kept: `fvcore/weights` in the user's cache; nowhere for a user without a home."""
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fvcore", "weights").expanduser()
    return None


def _read(path: Path, about: Origin) -> str | None:
    """The digest in a file; None where there is none, or it is about something else, or damaged."""
    try:
        value = read_json(path)
    except FormatError:
        return None
    if not isinstance(value, dict) or value.keys() != {"about", "weights_sha", "digest"}:
        return None
    known, sealed = value["weights_sha"], value["digest"]
    return known if value["about"] == about and sealed == digest([about, known]) else None


def files_of(where: str) -> Files | None:
    """Path, size, time, inode and device of every file of a model; asked before they are read.

    None where that would not tell what is loaded: files so young that another change may bear the same time, weights that
    lie elsewhere, or nothing large.
    """
    from transformers.utils import cached_file

    with suppress(OSError, ValueError, TypeError, LookupError, AttributeError, FormatError):
        folder = Path(str(cached_file(where, "config.json", local_files_only=True))).parent
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        stats = [path.stat() for path in paths]
        young = any(time.time() - stat.st_mtime < SETTLED for stat in stats)
        if young or sum(stat.st_size for stat in stats) < LARGE or _elsewhere(folder, paths):
            return None
        facts = [[stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev] for stat in stats]
        return [[str(path.resolve()), path.name, *found] for path, found in zip(paths, facts, strict=True)]
    return None


def _elsewhere(folder: Path, paths: Sequence[Path]) -> bool:
    """Whether a file of this folder sends the library to another one."""
    if (folder / on_disk.ADAPTER).exists() or "transformers_weights" in read_json(folder / "config.json"):
        return True
    shards = [read_json(path)["weight_map"].values() for path in paths if path.name.endswith(".index.json")]
    return not {shard for some in shards for shard in some} <= {path.name for path in paths}


def origin_of(hf: nn.Module, files: Files | None, options: Mapping[str, Any]) -> Origin | None:
    """Where a loaded model's weights come from; None where not they alone decide what was made of them.

    That is so where weights are quantised or spread, where a class is not the library's, and where some are drawn at random.
    """
    kind = type(hf)
    ignored = list(getattr(hf, "_keys_to_ignore_on_load_missing", None) or [])
    drawn = any(re.search(pattern, name) for pattern in ignored for name, _ in hf.named_parameters())
    own = kind.__module__.startswith("transformers.")
    if files is None or not own or drawn or options.keys() - {"dtype", "attn_implementation"}:
        return None
    return {"files": files, "class": kind.__qualname__, "dtype": str(options["dtype"]), "versions": versions()}


def sums(hf: nn.Module) -> str:
    """A digest of check sums of all parameters, by name, dtype and shape: the CRC-32 of every MiB, on all cores.

    Few values that change are always seen, and of any other change one in four thousand million is not, in each MiB it touches.
    """
    named = sorted(hf.named_parameters())
    on_cpu = all(parameter.device.type == "cpu" for _, parameter in named)
    with ThreadPoolExecutor(None if on_cpu else 2) as pool:  # each copies a parameter that lies elsewhere
        found = list(pool.map(_sums, (parameter for _, parameter in named)))
    return digest([[name, str(one.dtype), list(one.shape), of] for (name, one), of in zip(named, found, strict=True)])


def _sums(parameter: Tensor) -> list[int]:
    content = _bytes(parameter.detach().cpu().contiguous())
    return [zlib.crc32(content[at : at + PIECE]) for at in range(0, len(content), PIECE)]


def _bytes(value: Tensor) -> Any:
    return value.flatten().view(torch.uint8).numpy()
