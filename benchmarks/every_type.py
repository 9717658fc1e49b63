"""What works of every causal language model type that the installed transformers has, each on its own tiny random config.

Each type has a process of its own, forked after the libraries are there, with bounds of time and memory: one that crashes
or hangs leaves the others their rows.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

from fvcore.embedded.every_type import tiny_config, types
from fvcore.embedded.random_models import of_config, toy_tokenizer, trials_for
from fvcore.exits import in_one_line
from fvcore.fast.engines import why_not_fast
from fvcore.injection import inject
from fvcore.model.model import LanguageModel, ModelError
from fvcore.pipeline import Settings, run

WORKS, BY_EXACT, REFUSED, UNBUILT, BROKEN = "works", "by exact", "refused", "not built", "broken"
NOT_RUN = "not run"  # yet: the page was made of what had been found
SECONDS, BYTES = 120, 8 << 30
CRASHED = f"crashed, or ran past {SECONDS} s or {BYTES >> 30} GiB"
LAYER = 1

Row = dict[str, Any]


def row(kind: str) -> Row:
    """What became of a type: verdict, reason, where its parts are, and how wide its heads are by layer."""
    tokenizer = toy_tokenizer("bos")
    try:
        hf = of_config(tiny_config(kind, len(tokenizer)))
        hf(input_ids=hf.dummy_inputs["input_ids"] % len(tokenizer), use_cache=False)
    except Exception as error:  # its own code, before any of ours
        return told(UNBUILT, f"its own code: {type(error).__name__}: {error}")
    try:
        lm = LanguageModel.wrap(hf, tokenizer, kind)
    except ModelError as error:
        return told(REFUSED, str(error))
    about = {"paths": " / ".join(lm.spec.paths), "found_by": lm.spec.found_by, "d_heads": list(lm.d_heads)}
    try:
        reason = why_not_fast(lm)
        computed(lm)
    except ModelError as error:
        return told(REFUSED, str(error), **about)
    except Exception as error:  # whatever is raised by code that was not made for it
        return told(BROKEN, f"{type(error).__name__}: {error}", **about)
    return told(BY_EXACT if reason else WORKS, reason, **about)


def computed(lm: LanguageModel) -> None:
    """All stations up to the vector, and the vector injected; raises where no head does anything, or the vector moves nothing."""
    made = run(lm, trials_for(lm, n_trials=1, n_shots=2), Settings(LAYER, n_top_heads=2), injected=False)
    if not made["top_heads"]["cie"].any():  # type: ignore[union-attr]
        raise ValueError("no head has an effect")
    ids: Any = made["prompt_boundary"]["0:0/corrupted/input_ids"]
    vector: Any = made["fv_vector"]["function_vector"]
    inject(lm, ids, 1, vector, LAYER)


def told(verdict: str, reason: str = "", **about: Any) -> Row:
    return {"verdict": verdict, "reason": f"{in_one_line(reason):.240}", **about}


def rows(known: dict[str, Row], keep: Callable[[dict[str, Row]], None]) -> dict[str, Row]:
    """Of every type; those that are `known` are not run again. keep: is given all of them after each."""
    found = dict(known)
    for kind in types():
        if kind not in found:
            found[kind] = forked(partial(row, kind)) or told(BROKEN, CRASHED)
            keep(found)
    return {kind: found[kind] for kind in types()}


def forked(make: Callable[[], Row]) -> Row | None:
    """What `make` gives in a process of its own; None where that ended without a word."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.close(reading)
        _in_child(make, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        text = said.read()
    os.waitpid(child, 0)
    found: Row | None = json.loads(text) if text else None
    return found


def _in_child(make: Callable[[], Row], writing: int) -> None:
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    try:
        text = json.dumps(make())
        with os.fdopen(writing, "w") as answer:
            answer.write(text)
    finally:
        os._exit(0)


def section(found: dict[str, Row], version: str) -> list[str]:
    """Its part of the page."""
    counts = {verdict: sum(one["verdict"] == verdict for one in found.values()) for verdict in ORDER}
    lines = [
        f"## Every causal language model type of transformers {version}",
        "",
        "Each on its own config class with small sizes (`fvcore/embedded/every_type.yaml`), in fp32: the stations up to the "
        "vector on one trial, and the vector injected. `by exact`: engine `fast` does not hold for its code. `refused`: by a sentence, which stands "
        "here. `not built`: transformers' own code does not make or run such a small model. "
        + ", ".join(f"{verdict} {n}" for verdict, n in counts.items() if n)
        + ". Types that see or hear too are left out, for their text towers are types of their own; and blt, which is several models.",
        "",
        "| type | verdict | blocks / attention / projection | heads' widths by layer | why |",
        "|---|---|---|---|---|",
    ]
    for kind, one in sorted(found.items(), key=lambda pair: (ORDER.index(pair[1]["verdict"]), pair[0])):
        widths = ", ".join(str(width or "none") for width in one.get("d_heads", []))
        alike = widths if len(set(one.get("d_heads", []))) > 1 else widths.partition(",")[0]
        paths = f"`{one['paths']}`" if "paths" in one else ""
        lines.append(f"| {kind} | {one['verdict']} | {paths} | {alike} | {one['reason'].replace('|', '/')} |")
    return lines


ORDER = (WORKS, BY_EXACT, REFUSED, UNBUILT, BROKEN, NOT_RUN)
