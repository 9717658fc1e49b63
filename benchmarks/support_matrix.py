"""What works for which family in which dtype, found by running it on tiny random models: writes `docs/support.md`.

    python benchmarks/support_matrix.py

Each family has a process of its own, so that one that crashes leaves the others their rows. Beside the page it writes
`fvcore/model/tested.json`, by which reports say what stands in no row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import every_type
import torch
import typer
from rich.console import Console

from fvcore.artifacts import tensor_leaf
from fvcore.embedded.random_models import EVERY_FAMILY, random_lm, trials_for
from fvcore.fast.engines import why_not_fast
from fvcore.formats import json_text, read_json, write_text
from fvcore.injection import inject, inject_generate, inject_nll
from fvcore.model.diagnostics import diagnostics, versions
from fvcore.model.model import DTYPES, LanguageModel
from fvcore.pipeline import Pipeline, Settings
from fvcore.provenance import TESTED, minor_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "support.md"
OPERATIONS = ("exact", "fast", "record", "inject", "NLL", "generate")
OK, FALLS_BACK, NO = "ok", "exact", "no"
LAYER = 0

console = Console(highlight=False)


class Unusable(Exception):
    """A number that is none, or an intervention that did nothing."""


def finite(values: torch.Tensor, what: str) -> None:
    if not torch.isfinite(values).all():
        raise Unusable(f"{what} not finite")


def cell(run: Callable[[], str]) -> list[str]:
    """[verdict, reason]: what `run` says is why engine `fast` is not the one that ran."""
    try:
        reason = run()
    except Exception as error:  # whatever a model's code or a missing kernel says
        return [NO, f"{type(error).__name__}: {' '.join(str(error).split()):.160}"]
    return [FALLS_BACK, reason] if reason else [OK, ""]


def cells(lm: LanguageModel, trials: Any) -> dict[str, list[str]]:
    """operation -> [verdict, reason] of one model."""
    exact, fast = (Pipeline(lm, trials, Settings(LAYER, n_top_heads=3, engine=name)) for name in ("exact", "fast"))
    prompts = exact.prompt_boundary()
    slots = exact.slot_map(prompts)
    found: dict[str, Any] = {}
    key = "0:0/corrupted"
    ids, answer = prompts[f"{key}/input_ids"], prompts[f"{key}/answer_ids"]

    def record() -> str:
        found["means"] = exact.mean_activations(prompts, slots)
        finite(tensor_leaf(found["means"], "mean_activations"), "mean activations")
        return ""

    def effects(stations: Pipeline) -> str:
        heads = stations.top_heads(prompts, slots, found["means"])
        cie = tensor_leaf(heads, "cie")
        finite(cie, "indirect effects")
        if not cie.any():
            raise Unusable("no head has an effect")
        found["vector"] = tensor_leaf(exact.fv_vector(found["means"], heads), "function_vector")
        return ""

    def quick() -> str:
        effects(fast)
        return why_not_fast(lm)

    def injected() -> str:
        injection = inject(lm, ids, answer[0], found["vector"], LAYER)
        finite(injection.with_logits, "logits")
        if torch.equal(injection.base_logits, injection.with_logits):
            raise Unusable("injection had no effect")
        return ""

    def likelihood() -> str:
        nll = inject_nll(lm, ids, answer, found["vector"], LAYER)
        finite(torch.tensor([nll.base_nll, nll.with_nll]), "NLL")
        return ""

    def generation() -> str:
        n_ids = [len(ids) for ids in vars_of(inject_generate(lm, ids, found["vector"], LAYER, n_tokens=4))]
        if not all(n_ids):
            raise Unusable(f"generated {n_ids} ids")
        return ""

    said = {"record": cell(record), "exact": cell(lambda: effects(exact)), "fast": cell(quick)}
    said |= {"inject": cell(injected), "NLL": cell(likelihood), "generate": cell(generation)}
    return {name: said[name] for name in OPERATIONS}


def vars_of(generation: Any) -> tuple[list[int], list[int]]:
    return generation.base_ids, generation.with_ids


def family_row(family: str) -> dict[str, Any]:
    """Everything the page says of a family."""
    lm = random_lm(family)
    trials, about = trials_for(lm, n_trials=2, n_shots=3), diagnostics(lm)
    row = {}
    for name, dtype in DTYPES.items():
        half = random_lm(family)
        half.hf.to(dtype)
        row[name] = cells(half, trials)
    return {"about": {key: about[key] for key in ABOUT}, "cells": row}


ABOUT = (
    "blocks_path", "out_proj_path", "out_proj_class", "out_proj_bias", "n_heads", "head_dim", "hidden_size",
    "block_output", "attn_implementation", "norm_after_attention", "residual_multiplier",
)  # fmt: skip


def in_process_of_its_own(family: str) -> dict[str, Any]:
    crashed = {name: [NO, every_type.CRASHED] for name in OPERATIONS}
    return every_type.forked(lambda: family_row(family)) or {"about": None, "cells": dict.fromkeys(DTYPES, crashed)}


# ---------------------------------------------------------------- the page


def page(
    rows: dict[str, dict[str, Any]], found: dict[str, str], tested: list[str], types: dict[str, every_type.Row]
) -> str:
    notes: list[str] = []
    lines = [
        "# What works for which family",
        "",
        "Made by `python benchmarks/support_matrix.py`: every cell was run on a tiny random model (two layers, drawn "
        "biases, grouped heads and heads x width != d_model where the family has them), with "
        + ", ".join(f"{name} {version}" for name, version in found.items())
        + ", on the CPU. Of a model of another family, or under another version of transformers than "
        + f"{', '.join(tested)}, every report says so among its conditions, and names the command that compares both "
        "engines.",
        "",
        "A cell that holds for fp32, fp16 and bf16 alike is one word, else three in that order. `ok`: it ran, all numbers "
        "finite, and an intervention moved something. `exact`: engine `fast` does not hold for the model's code and falls "
        "back to `exact`, with a word in the report; what it met stands below. `no`: not supported, and why stands below.",
        "",
        "`exact` and `fast` are the indirect effects of all heads and the vector by each engine, `record` the mean "
        "activations, `inject` the next token with the vector added, `NLL` an answer's likelihood, `generate` greedy "
        "decoding.",
        "",
        "| family | " + " | ".join(OPERATIONS) + " |",
        "|---|" + "---|" * len(OPERATIONS),
    ]
    for family, row in rows.items():
        shown = [_shown([row["cells"][dtype][operation] for dtype in DTYPES], notes) for operation in OPERATIONS]
        lines.append(f"| {family} | " + " | ".join(shown) + " |")
    lines = [fill(line, 120) for line in lines[:8]] + lines[8:]
    lines += ["", *(f"[{i}] {note}  " for i, note in enumerate(notes, 1)), "", *_parts(rows), ""]
    lines += [*every_type.section(types, found["transformers"]), ""] if types else []
    return "\n".join(lines)


def _shown(verdicts: list[list[str]], notes: list[str]) -> str:
    """A cell; one verdict for all dtypes is one word, and then the first reason stands for all."""
    alike = len({verdict for verdict, _ in verdicts}) == 1
    return ", ".join(_word(verdict, reason, notes) for verdict, reason in (verdicts[:1] if alike else verdicts))


def _word(verdict: str, reason: str, notes: list[str]) -> str:
    if not reason:
        return verdict
    if reason not in notes:
        notes.append(reason)
    return f"{verdict} [{notes.index(reason) + 1}]"


def _parts(rows: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "## Their parts, as found in the models",
        "",
        "| family | output projection of the first layer | class | bias | heads x width, d_model | block output | attention | "
        "between projection and residual stream |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family, row in rows.items():
        if (about := row["about"]) is None:
            continue
        behind = about["norm_after_attention"] or "nothing"
        if about["residual_multiplier"] != 1:
            behind = f"factor {about['residual_multiplier']:g}"
        bias = "yes" if about["out_proj_bias"] else "no"
        lines.append(
            f"| {family} | `{about['out_proj_path']}` | {about['out_proj_class']} | {bias} | {about['n_heads']} x "
            f"{about['head_dim']}, {about['hidden_size']} | {about['block_output']} | {about['attn_implementation']} | "
            f"{behind} |"
        )
    return lines


def tested_now(rows: dict[str, dict[str, Any]], version: str, before: dict[str, Any]) -> dict[str, Any]:
    """What loading takes as tested: families all of whose fp32 cells work, and versions under which the same ones do."""
    families = sorted(
        f for f, row in rows.items() if all(verdict != NO for verdict, _ in row["cells"]["fp32"].values())
    )
    earlier = before.get("transformers", []) if before.get("families") == families else []
    known = {*earlier, minor_of(version)}
    return {
        "families": families,
        "transformers": sorted(known, key=lambda name: [int(part) for part in name.split(".")]),
    }


def main(
    out: Annotated[Path, typer.Option(help="The page.")] = PAGE,
    tested: Annotated[Path, typer.Option(help="What reports know by.")] = TESTED,
    kept: Annotated[
        Path | None, typer.Option(help="File of the rows found so far: a run that was killed goes on.")
    ] = None,
) -> None:
    rows, types = _kept(kept)
    for name in (name for name in EVERY_FAMILY if name not in rows):
        rows[name] = in_process_of_its_own(name)
        _keep(kept, rows, types)
        bad = sum(verdict == NO for row in rows[name]["cells"].values() for verdict, _ in row.values())
        console.print(f"{name}: {bad} of {len(DTYPES) * len(OPERATIONS)} cells not supported", soft_wrap=True)
    rows = {name: rows[name] for name in EVERY_FAMILY}
    types = every_type.rows(types, lambda now: _keep(kept, rows, now))
    found = versions()
    before = read_json(tested) if tested.is_file() else {}
    now = tested_now(rows, found["transformers"], before)
    write_text(tested, json_text(now))
    write_text(out, page(rows, found, now["transformers"], types))
    console.print(f"wrote {out} and {tested}", soft_wrap=True)


def _kept(path: Path | None) -> tuple[dict[str, Any], dict[str, every_type.Row]]:
    value = read_json(path) if path is not None and path.is_file() else {"families": {}, "types": {}}
    return value["families"], value["types"]


def _keep(path: Path | None, families: dict[str, Any], types: dict[str, every_type.Row]) -> None:
    if path is not None:
        write_text(path, json_text({"families": families, "types": types}))


if __name__ == "__main__":
    typer.run(main)
