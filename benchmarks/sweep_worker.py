"""One library in a process of its own: takes the model, and answers one measurement a line until its input ends.

    python benchmarks/sweep_worker.py JOB.json

What the process prints goes to the error stream: the output stream carries the answers alone.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import platform
import re
import statistics
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sweep_costs
import sweep_world
import torch
from torch import Tensor

from fvcore.effects import head_replaced, target_probability
from fvcore.fast import engines, sweep
from fvcore.fast.sweep import Case
from fvcore.model.memory import peak_memory
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Settings
from fvcore.trials import fixed as trials

ENOUGH_S = 1.0
"""A measurement is repeated until this long was measured: small models take milliseconds."""


class Library(ABC):
    """Indirect effects of heads at the last token of corrupted prompts."""

    def __init__(self, lm: LanguageModel, fixed: trials.FixedTrials, job: dict[str, Any]) -> None:
        self.lm, self.fixed, self.job = lm, fixed, job
        self.cases, self.means = sweep_world.cases_and_means(lm, fixed)
        self.flops_of_token = sweep_costs.flops_of_token(lm)

    @property
    def attention(self) -> str:
        """The kernel it uses, by the name transformers gives it."""
        return self.lm.attn_implementation

    @abstractmethod
    def effects(self, n_trials: int, n_layers: int) -> Tensor:
        """(trial, layer, head): of the first trials, of all heads of the first layers."""

    def flops(self, n_trials: int, n_layers: int) -> int:
        """Of whole passes, one for each head and one for the prompt as it is."""
        n_tokens = sum(len(ids) for ids, _, _ in self.cases[:n_trials])
        return self.flops_of_token * n_tokens * (n_layers * self.lm.n_heads + 1)


class Fast(Library):
    def effects(self, n_trials: int, n_layers: int) -> Tensor:
        return engines.causal_indirect_effects(self.lm, self.cases[:n_trials], self.means)

    def flops(self, n_trials: int, n_layers: int) -> int:
        return sum(product.flops for product in self.products(n_trials)["least"])

    def lengths(self, n_trials: int) -> list[int]:
        return [len(ids) for ids, _, _ in self.cases[:n_trials]]

    def products(self, n_trials: int) -> dict[str, list[sweep_costs.Product]]:
        lengths = self.lengths(n_trials)
        return {
            "least": sweep_costs.least_products(self.lm, lengths),
            "looser": sweep_costs.looser_products(self.lm, lengths),
        }


class OnePassPerHead(Library):
    """Libraries that give the probability of the target with one head replaced, or with none."""

    @abstractmethod
    def probability(self, case: Case, head: sweep.Head | None = None) -> Tensor: ...

    def mean(self, case: Case, layer: int, head: int) -> dict[int, Tensor]:
        """What a head is replaced by: token -> (d_head,)."""
        ids, _, slots = case
        return {len(ids) - 1: self.means[layer, head, slots.query_predictive_slot]}

    def effects(self, n_trials: int, n_layers: int) -> Tensor:
        found = torch.zeros(n_trials, n_layers, self.lm.n_heads)
        for trial, case in enumerate(self.cases[:n_trials]):
            base = self.probability(case)
            for layer in range(n_layers):
                for head in range(self.lm.n_heads):
                    found[trial, layer, head] = self.probability(case, (layer, head)) - base
        return found


class Exact(OnePassPerHead):
    def probability(self, case: Case, head: sweep.Head | None = None) -> Tensor:
        ids, target, _ = case
        with nullcontext() if head is None else head_replaced(self.lm, *head, self.mean(case, *head)):
            return target_probability(self.lm, ids, target)


class Adapter(OnePassPerHead):
    """A library under one of the shipped adapters."""

    def __init__(self, lm: LanguageModel, fixed: trials.FixedTrials, job: dict[str, Any]) -> None:
        super().__init__(lm, fixed, job)
        from pytest_fvparity.candidates.adapters import stations

        module = importlib.import_module(f"pytest_fvparity.candidates.adapters.{job['library']}")
        self.patch = stations.HeadPatch
        self.candidate = module.make(lm, fixed, Settings(edit_layer=0, n_top_heads=1, engine="exact"))
        if job["library"] != "torch_hooks":
            # These have a copy of the model: two sets of weights would not fit where one does.
            for weight in lm.hf.parameters():
                weight.data = weight.data.new_empty(0)

    @property
    def attention(self) -> str:
        bridge = getattr(self.candidate, "bridge", None)  # it chooses for itself
        return self.lm.attn_implementation if bridge is None else str(bridge.original_model.config._attn_implementation)

    def probability(self, case: Case, head: sweep.Head | None = None) -> Tensor:
        ids, target, _ = case
        edit = None if head is None else self.patch(*head, self.mean(case, *head))
        found: Tensor = self.candidate.logits(self.lm.ids(ids), edit)[-1].softmax(dim=-1)[target]
        return found


class Reference(Library):
    """The public reference's own sweep. It takes layers from the first on, so a part of them can be timed."""

    def __init__(self, lm: LanguageModel, fixed: trials.FixedTrials, job: dict[str, Any]) -> None:
        super().__init__(lm, fixed, job)
        from pytest_fvparity.reference import driver as reference_driver
        from pytest_fvparity.reference import reference

        sys.dont_write_bytecode = True  # the checkout stays as it is
        reference_driver.provide_modules()
        self.src = reference_driver.Checkout.at(reference.require_checkout(Path(job["fv_src"])))
        self.target = reference_driver.StoredTarget()
        reference_driver.normalise([self.target.normalisation(self.src, lm.tokenizer)])
        self.words = reference_driver.words
        self.config = {
            "n_heads": lm.n_heads,
            "resid_dim": lm.d_model,
            "name_or_path": reference.BRANCHES[lm.spec.name],
            "attn_hook_names": [lm.spec.out_proj_path(layer) for layer in range(lm.n_layers)],
            "prepend_bos": fixed.meta.model_prepend_bos,
        }
        self.template: dict[str, Any] = {
            "prefixes": fixed.meta.prefixes.model_dump(),
            "separators": fixed.meta.separators.model_dump(),
        }
        self.dummy_labels = self.src.get_dummy_token_labels(
            fixed.meta.n_shots, tokenizer=lm.tokenizer, model_config=self.config, **self.template
        )

    def effects(self, n_trials: int, n_layers: int) -> Tensor:
        return torch.stack([self.of_trial(trial, n_layers) for trial in self.fixed.trials[:n_trials]])

    def of_trial(self, trial: trials.Trial, n_layers: int) -> Tensor:
        with self.target.of(trial.target_id):
            found: Tensor = self.src.activation_replacement_per_class_intervention(
                prompt_data=self.prompt_data(trial),
                avg_activations=self.means,
                dummy_labels=self.dummy_labels,
                model=self.lm.hf,
                model_config=self.config | {"n_layers": n_layers},
                tokenizer=self.lm.tokenizer,
            )
        return found.squeeze(-1)

    def prompt_data(self, trial: trials.Trial) -> Any:
        return self.src.word_pairs_to_prompt_data(
            self.words([demo.model_dump() for demo in trial.corrupted_demos]),
            query_target_pair=self.words([trial.query.model_dump()]),
            prepend_bos_token=not self.config["prepend_bos"],
            shuffle_labels=False,
            **self.template,
        )


LIBRARIES: dict[str, Callable[..., Library]] = {
    "reference": Reference,
    "transformer_lens": Adapter,
    "nnsight": Adapter,
    "torch_hooks": Adapter,
    "exact": Exact,
    "fast": Fast,
}
PACKAGES = {"transformer_lens": "transformer-lens", "nnsight": "nnsight"}


class Worker:
    """Answers requests; the model is there between `take` and `release`."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.size = sweep_world.Size.model_validate(job["size"])
        self.folder = Path(job["folder"])
        self.fixed = trials.read(self.folder / "trials.json")
        self.library: Library | None = None
        torch.set_num_threads(job["threads"])
        torch.set_grad_enabled(False)

    def take(self) -> dict[str, Any]:
        """Load the model, and run a little: what comes later finds the library's own parts loaded."""
        lm = sweep_world.model(self.size, self.job["device"], self.job["dtype"], self.folder)
        self.library = LIBRARIES[self.job["library"]](lm, self.fixed, self.job)
        self.library.effects(1, 1)
        return {
            "about": {
                "name": self.job["library"],
                "version": version(PACKAGES.get(self.job["library"], "transformers")),
                "attention": self.library.attention,
            },
            "machine": {
                "processor": _processor(),
                "device": torch.cuda.get_device_name() if lm.device.type == "cuda" else "cpu",
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "torch": version("torch"),
                "transformers": version("transformers"),
            },
            "lengths": [len(ids) for ids, _, _ in self.library.cases],
        }

    def release(self) -> dict[str, Any]:
        self.library = None
        _give_back()
        return {}

    def look(self, task: tuple[int, int]) -> dict[str, Any]:
        """One sweep: the effects, FLOPs counted, and the memory it took beside the model."""
        assert self.library is not None
        _give_back()
        with peak_memory() as peak:
            start = time.perf_counter()
            effects = self.library.effects(*task).cpu()
            taken = time.perf_counter() - start
        return {
            "seconds": taken,
            "memory": peak.n_bytes,
            "flops": self.library.flops(*task),
            "effects": effects.float().tolist(),
        }

    def time(self, task: tuple[int, int]) -> dict[str, Any]:
        """Seconds of a sweep: the median, where it is so short that it is repeated."""
        assert self.library is not None
        taken: list[float] = []
        while sum(taken) < ENOUGH_S:
            start = time.perf_counter()
            self.library.effects(*task).cpu()
            taken.append(time.perf_counter() - start)
        return {"seconds": statistics.median(taken)}

    def products(self, n_trials: int, n_times: int) -> dict[str, Any]:
        """Seconds of the bare matrix products that a sweep needs at least, by both bounds, and their FLOPs.

        And of a plain pass over as many rows, with the FLOPs of its products.
        """
        assert isinstance(self.library, Fast)
        ids, flops = sweep_costs.plain_pass(self.library.lm, self.library.lengths(n_trials))
        plain = {"seconds": sweep_costs.seconds_of_pass(self.library.lm, ids, n_times), "flops": flops}
        return {"plain": plain} | {
            bound: {
                "seconds": sweep_costs.seconds(products, n_times),
                "flops": sum(product.flops for product in products),
            }
            for bound, products in self.library.products(n_trials).items()
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            found: dict[str, Any] = getattr(self, request.pop("do"))(**request)
        except Exception:
            return {"error": traceback.format_exc()}
        return found


def _give_back() -> None:
    """Freed memory goes back to the system, or it would hide what the next measurement takes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _processor() -> str:
    with suppress(OSError):
        if line := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()):
            return line[1].strip()
    return platform.processor() or platform.machine()


def main(arguments: Sequence[str]) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    worker = Worker(json.loads(Path(arguments[0]).read_text()))
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
