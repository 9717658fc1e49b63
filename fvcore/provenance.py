"""Where a result comes from: when, by which version of what, from which model, on which processor.

The one owner of these; whoever writes them into a file asks here. Nothing heavy is imported before it is asked.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fvcore.exits import Expected
from fvcore.formats import read_json

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel
    from fvcore.profile import Processor

# Which families and library versions the project has run: the support matrix writes it.
TESTED = Path(__file__).parent / "model" / "tested.json"

# What tells these libraries to leave instructions alone that the processor has.
INSTRUCTION_SETS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")

# oneDNN's names in ascending order, and the flags of Linux that each asks for beside those before it.
ONEDNN = {
    "SSE41": ("sse4_1",),
    "AVX": ("avx",),
    "AVX2": ("avx2", "fma"),
    "AVX2_VNNI": ("avx_vnni",),
    "AVX512_CORE": ("avx512f", "avx512bw", "avx512vl", "avx512dq"),
    "AVX512_CORE_VNNI": ("avx512_vnni",),
    "AVX512_CORE_BF16": ("avx512_bf16",),
    "AVX512_CORE_FP16": ("avx512_fp16",),
    "AVX512_CORE_AMX": ("amx_tile", "amx_int8", "amx_bf16"),
    "AVX512_CORE_AMX_FP16": ("amx_fp16",),
}


def now() -> str:
    """UTC, to the microsecond; the moment `SOURCE_DATE_EPOCH` names (seconds) where it is set, so that bytes can be compared."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        at = datetime.now(UTC) if fixed is None else datetime.fromtimestamp(int(fixed), UTC)
    except (ValueError, OverflowError, OSError):
        raise Expected(
            f"SOURCE_DATE_EPOCH {fixed!r:.80}: expected whole seconds since 1970, before the year 10000"
        ) from None
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class GitState(NamedTuple):
    """sha: the short one, empty outside of a checkout     dirty: whether files were changed since"""

    sha: str = ""
    dirty: bool = False


@cache
def git_state(room: Path = Path(__file__).parent) -> GitState:
    """The commit that this code is of; nothing for an installed copy, even one inside another project's checkout."""
    if _git(room, "ls-files", "--error-unmatch", "__init__.py") is None:
        return GitState()
    sha, changes = _git(room, "rev-parse", "--short", "HEAD"), _git(room, "status", "--porcelain")
    return GitState(sha or "", bool(changes))


def _git(room: Path, *words: str) -> str | None:
    """What git says, None where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(room), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """What numbers depend on: Python, torch and transformers."""
    import torch
    import transformers

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }


@cache
def tested(path: Path) -> dict[str, Any]:
    """{"families": [...], "transformers": ["5.23", ...]}; empty where no matrix was written."""
    return dict(read_json(path)) if path.is_file() else {}


def untested(family: str, version: str, path: Path = TESTED) -> dict[str, tuple[str, str]]:
    """What has not been tested of a family and a version of transformers: its name -> what was tested, what is here."""
    found, said = tested(path), dict[str, tuple[str, str]]()
    if found and family not in found["families"]:
        said["untested family"] = (f"{len(found['families'])} in docs/support.md", family)
    if found and minor_of(version) not in found["transformers"]:
        said["untested transformers"] = (", ".join(found["transformers"]), version)
    return said


def minor_of(version: str) -> str:
    return ".".join(version.split(".")[:2])


def model_identity(lm: LanguageModel, fields: Collection[str] | None = None) -> dict[str, Any]:
    """What decides a model's numbers, as it was really loaded; of `fields` alone if there are some named."""
    found = {
        "weights_sha": lm.weights_sha,
        "tokenizer_sha": lm.tokenizer_sha,
        "dtype": lm.dtype,
        "device": lm.device.type,
        "quant": lm.quant,
        "attn_implementation": lm.attn_implementation,
    }
    return {name: value for name, value in found.items() if fields is None or name in fields}


def processor(device: str = "cpu") -> Processor:
    """What the arithmetic of `device` ("cpu", "cuda:1") is done by. Two that differ round differently."""
    import torch

    from fvcore.profile import Processor

    if device.startswith("cuda"):
        found = torch.cuda.get_device_properties(device)
        return Processor(vendor="NVIDIA", model=found.name, capability=f"{found.major}.{found.minor}")
    known = _cpuinfo()
    return Processor(
        vendor=known.get("vendor_id") or known.get("CPU implementer") or platform.system(),
        model=known.get("model name") or platform.processor() or platform.machine(),
        capability=torch.backends.cpu.get_cpu_capability(),
        onednn=_onednn(known.get("flags", "").split()),
        forced={name: os.environ[name] for name in INSTRUCTION_SETS if os.environ.get(name)},
    )


@cache
def _cpuinfo() -> dict[str, str]:
    """What Linux says of its first processor; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _onednn(flags: list[str]) -> str:
    """The greatest instruction set that oneDNN may use: what the processor has, and the environment allows."""
    names = list(ONEDNN)
    has = next((at for at, asks in enumerate(ONEDNN.values()) if not set(asks) <= set(flags)), len(names))
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    most = names.index(allowed) + 1 if allowed in names else len(names)
    usable = names[: min(has, most)]
    return usable[-1] if usable else platform.machine()


def peak_rss() -> int:
    """Bytes of memory that this process held at most, since it began."""
    with suppress(OSError):
        if line := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return int(line[1]) * 1024
    import resource  # of Unix alone

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
