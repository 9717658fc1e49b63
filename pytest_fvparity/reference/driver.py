"""Runs a checkout of the public reference in a process of its own and records what it says at each check key.

Started as a script, `python reference_driver.py JOB.json`, also by an interpreter that has neither pytest nor fvcore:
it imports the standard library, torch, transformers, and the checkout. It knows the reference's functions and how they
must be normalised to run on today's libraries; it never edits the checkout and names no model.

1. Put stand-ins for the modules the reference wants and few people have (`baukit`, `bitsandbytes`) in place.
2. Load model and tokenizer itself: the reference's own loader branches on names and chooses dtypes by them.
3. Normalise. Every normalisation first probes whether the checkout already behaves so, is applied only if not, and is
   probed again: one that has no effect is an error.
4. Record, and refuse to record what is not alive: effects that are zero everywhere, an injection that moves no logit,
   a number that is not finite, labels that do not line up with tokens.
5. Run again under the legal variations that the job lists, for the noise of what was recorded, here or by another process.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import sys
import time
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


class RecordingRefused(Exception):
    """What the reference gave must not become a golden."""


class TraceDict(OrderedDict):  # type: ignore[type-arg]
    """What the reference takes from baukit: a trace for each layer, with its first input and its output.

    The edit function is called with the layer's output, its name and its inputs, as many as it takes.
    """

    def __init__(
        self, module: Any, layers: Any, retain_input: bool = False, retain_output: bool = True, edit_output: Any = None
    ) -> None:
        super().__init__((layer, types.SimpleNamespace(input=None, output=None)) for layer in layers)
        self.fired: set[str] = set()
        n_arguments = 0 if edit_output is None else len(inspect.signature(edit_output).parameters)

        def hook(layer: str, _: Any, inputs: tuple[Any, ...], output: Any) -> Any:
            self.fired.add(layer)
            if retain_input:
                self[layer].input = inputs[0] if len(inputs) == 1 else inputs
            if edit_output is not None:
                output = edit_output(*(output, layer, inputs)[:n_arguments])
            if retain_output:
                self[layer].output = output
            return output

        self.handles = [module.get_submodule(layer).register_forward_hook(partial(hook, layer)) for layer in layers]

    def __enter__(self) -> TraceDict:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()
        if kind is None and self.fired != set(self):
            raise RecordingRefused(f"a hook that did not fire: {', '.join(sorted(set(self) - self.fired))}")


def provide_modules() -> list[str]:
    """Put the stand-ins in place, also of modules that are installed: a recording must not depend on who has them.

    `baukit` is on no package index, and importing it asks for an image library.
    """
    from torch.nn import Module

    stand_ins = {name: types.ModuleType(name) for name in ("baukit", "bitsandbytes")}
    vars(stand_ins["baukit"]).update(TraceDict=TraceDict, get_module=Module.get_submodule)
    sys.modules |= stand_ins
    return [f"{name}_stand_in" for name in stand_ins]


@dataclass(frozen=True)
class Checkout:
    """The reference's modules, imported from `<root>/src` as they stand."""

    root: Path
    modules: tuple[Any, ...]

    @classmethod
    def at(cls, root: Path) -> Checkout:
        sys.path.insert(0, str(root / "src"))
        import compute_indirect_effect  # type: ignore[import-not-found]  # noqa: F401 - imports all it builds on

        source = (root / "src").resolve()
        return cls(root, tuple(m for m in list(sys.modules.values()) if source in _file_of(m).parents))

    def sources(self) -> dict[str, str]:
        """sha256 of every source file in use, by its path in the checkout."""
        files, root = sorted(set(map(_file_of, self.modules))), self.root.resolve()
        return {file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def __getattr__(self, name: str) -> Any:
        """A function of the reference, by name."""
        for module in self.modules:
            if hasattr(module, name):
                return getattr(module, name)
        raise RecordingRefused(f"the checkout has no function {name!r}; is {self.root} a copy of the reference?")

    def wrap(self, name: str, around: Callable[..., Any]) -> None:
        """Put `around`, told the function and its arguments, in its place in every module: star imports copy names."""
        old = getattr(self, name)
        new = partial(around, old)
        for module in self.modules:
            if getattr(module, name, None) is old:
                setattr(module, name, new)


def _file_of(module: Any) -> Path:
    """Of a module that has none, such as a built-in one, a place that is in no checkout."""
    return Path(getattr(module, "__file__", None) or "/").resolve()


@dataclass(frozen=True)
class Normalisation:
    """One documented difference from the checkout. `holds()` is true when the reference behaves as wanted."""

    name: str
    holds: Callable[[], bool]
    apply: Callable[[], None]


def normalise(normalisations: list[Normalisation]) -> dict[str, list[str]]:
    report: dict[str, list[str]] = {"applied": [], "already": []}
    for normalisation in normalisations:
        if normalisation.holds():
            report["already"].append(normalisation.name)
            continue
        normalisation.apply()
        if not normalisation.holds():
            raise RecordingRefused(f"normalisation {normalisation.name} was applied and has no effect on this checkout")
        report["applied"].append(normalisation.name)
    return report


def injection_edits_bare_tensors(src: Checkout) -> Normalisation:
    """Decoder blocks of today return a bare tensor; the reference edits tuples only and silently passes it by."""
    import torch

    def holds() -> bool:
        return bool(src.add_function_vector(0, torch.ones(1, 2), "cpu")(torch.zeros(1, 1, 2), "a.b.0").any())

    def around(original: Callable[..., Any], *args: Any, **options: Any) -> Callable[[Any, str], Any]:
        edit = original(*args, **options)
        return lambda output, name: edit(output, name) if isinstance(output, tuple) else edit((output,), name)[0]

    return Normalisation("injection_edits_bare_tensors", holds, partial(src.wrap, "add_function_vector", around))


def injection_casts_vector(src: Checkout) -> Normalisation:
    """The vector is cast to the hidden state's dtype before it is added, not by the addition."""
    import torch

    # In half precision 1 + (2^-11 + 2^-22) rounds up if summed in float32, and to 1 if the vector is rounded first.
    vector = torch.full((1, 2), 2.0**-11 + 2.0**-22)

    def holds() -> bool:
        hidden = torch.ones(1, 1, 2, dtype=torch.float16)
        (edited,) = src.add_function_vector(0, vector, "cpu")((hidden,), "a.b.0")
        return bool((edited == 1).all())

    def around(original: Any, edit_layer: int, fv_vector: Any, *args: Any, **options: Any) -> Callable[..., Any]:
        def edit(output: Any, layer_name: str) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            return original(edit_layer, fv_vector.to(hidden.dtype), *args, **options)(output, layer_name)

        return edit

    return Normalisation("injection_casts_vector", holds, partial(src.wrap, "add_function_vector", around))


def bos_from_tokenizer_only(src: Checkout) -> Normalisation:
    """No BOS text is written into a prompt; a BOS comes from the tokenizer or not at all."""
    words: dict[str, Any] = {"word_pairs": {"input": ["x"], "output": ["y"]}, "prepend_bos_token": True}
    query = {"input": ["x"], "output": ["y"]}

    def holds() -> bool:
        return not src.word_pairs_to_prompt_data(**words, query_target_pair=query)["prefixes"]["instructions"]

    def around(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return original(*args, **{**options, "prepend_bos_token": False})

    return Normalisation("bos_from_tokenizer_only", holds, partial(src.wrap, "word_pairs_to_prompt_data", around))


class StoredTarget:
    """The target token of an indirect effect is the one stored with the trial, not a recomputed one."""

    def __init__(self) -> None:
        self.target_id: int | None = None

    def normalisation(self, src: Checkout, tokenizer: Any) -> Normalisation:
        def holds() -> bool:
            with self.of(-7):
                return bool(src.get_answer_id("Q: a\nA:", " a", tokenizer) == [-7])

        def around(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
            return original(*args, **options) if self.target_id is None else [self.target_id]

        return Normalisation("effect_uses_stored_target", holds, partial(src.wrap, "get_answer_id", around))

    @contextmanager
    def of(self, target_id: int) -> Iterator[None]:
        self.target_id = target_id
        try:
            yield
        finally:
            self.target_id = None


COUNT = ("bos_token_id", "eos_token_id", "pad_token_id")


def greedy_generation(model: Any) -> Normalisation:
    """Generation takes the largest logit up to an end token, whatever else the model's own generation settings say."""

    def holds() -> bool:
        given = model.generation_config.to_diff_dict().items()
        without = {*COUNT, "transformers_version", "_from_model_config"}
        return all(name in without or v in (None, name == "use_cache") for name, v in given)

    def apply() -> None:
        own = model.generation_config
        model.generation_config = type(own)(**{name: getattr(own, name) for name in COUNT})

    return Normalisation("greedy_generation", holds, apply)


class Replay:
    """A dataset that, asked for random rows, gives the words of the fixed trials one after the other."""

    def __init__(self, rows: list[dict[str, list[str]]], length: int) -> None:
        self.rows, self.length, self.n_asked = rows, length, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, _: Any) -> dict[str, list[str]]:
        row = self.rows[self.n_asked]
        self.n_asked += 1
        return row


def words(pairs: list[dict[str, str]]) -> dict[str, list[str]]:
    """Pairs as the reference takes them: without the leading space, which it adds itself."""
    for word in (word for pair in pairs for word in pair.values() if not word.startswith(" ")):
        raise RecordingRefused(f"the word {word!r} has no leading space; the reference always writes one")
    return {side: [pair[side][1:] for pair in pairs] for side in ("input", "output")}


class Passes:
    """Counts the model's passes, and says about once a second how many runs over all trials they make: `progress 1.25`."""

    def __init__(self, job: dict[str, Any], n_heads: int, n_layers: int) -> None:
        classes = 1 if job["token_class_idx"] == -1 else 10
        self.in_a_run = max(1, len(job["trials"]) * (2 + n_layers * n_heads * classes))
        self.runs, self.n, self.said = 0, 0, time.monotonic()

    def of(self, model: Any) -> Any:
        model.register_forward_pre_hook(self._count)
        return model

    def _count(self, *_: Any) -> None:
        self.n += 1
        if time.monotonic() - self.said > 1:
            self._say()

    def _say(self) -> None:
        self.said = time.monotonic()
        print(f"progress {self.runs + min(self.n / self.in_a_run, 1.0):.4f}", flush=True)

    def next_run(self) -> None:
        self.runs, self.n = self.runs + 1, 0
        self._say()


class Recorder:
    """The reference, its model and its trials: one method a check key."""

    def __init__(self, job: dict[str, Any]) -> None:
        from transformers import AutoTokenizer

        self.job = job
        provided = provide_modules()
        self.src = Checkout.at(Path(job["checkout"]))
        self.tokenizer = AutoTokenizer.from_pretrained(job["model_dir"], local_files_only=True, trust_remote_code=False)
        self.model = load_model(job, job["attn_implementation"])
        bos = self.tokenizer.bos_token_id
        self.adds_bos = bos is not None and self.tokenizer("Q: a").input_ids[0] == bos
        heads, width = self.model.config.num_attention_heads, self.model.config.hidden_size
        explicit = getattr(self.model.config, "head_dim", None)
        if explicit and explicit * heads != width:
            raise RecordingRefused(
                f"the reference splits heads as hidden / n_heads; this model has {heads} heads of {explicit}, not {width}"
            )
        self.config = {
            "n_heads": heads,
            "n_layers": self.model.config.num_hidden_layers,
            "resid_dim": width,
            "name_or_path": job["branch"],
            **{name: job[name] for name in ("attn_hook_names", "layer_hook_names")},
            "prepend_bos": self.adds_bos,
        }
        self.passes = Passes(job, heads, self.config["n_layers"])
        self.passes.of(self.model)
        self.template = {"prefixes": job["prefixes"], "separators": job["separators"]}
        self.stored_target = StoredTarget()
        normalisations = [injection_edits_bare_tensors(self.src), greedy_generation(self.model)]
        if job["reference_profile"] == "src":
            normalisations += [
                bos_from_tokenizer_only(self.src),
                injection_casts_vector(self.src),
                self.stored_target.normalisation(self.src, self.tokenizer),
            ]
        elif bos_from_tokenizer_only(self.src).holds():
            raise RecordingRefused("this checkout writes no BOS text: it is not pristine, so not `todd_upstream`")
        self.normalisations = normalise(normalisations)
        self.normalisations["applied"] = provided + self.normalisations["applied"]

    @property
    def running(self) -> dict[str, Any]:
        """What a function of the reference takes that runs the model."""
        return {"model": self.model, "model_config": self.config, "tokenizer": self.tokenizer}

    def prompt_data(self, trial: dict[str, Any], regime: str) -> Any:
        return self.src.word_pairs_to_prompt_data(
            words(trial[regime]),
            query_target_pair=words([trial["query"]]),
            prepend_bos_token=not self.config["prepend_bos"],
            shuffle_labels=False,
            **self.template,
        )

    def regimes(self) -> Iterator[tuple[dict[str, Any], str, Any]]:
        for trial in self.job["trials"]:
            for regime in ("clean", "corrupted"):
                yield trial, f"{trial['key']}/{regime}", self.prompt_data(trial, regime)

    def target_id(self, trial: dict[str, Any]) -> int:
        if self.job["reference_profile"] == "src":
            return int(trial["target_id"])
        prompt = self.src.create_prompt(self.prompt_data(trial, "corrupted"))
        return int(self.src.get_answer_id(prompt, trial["query"]["output"], self.tokenizer)[0])

    def prompt_boundary(self) -> dict[str, Any]:
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        with_special, without = (self.tokenizer("Q: a", add_special_tokens=flag).input_ids for flag in (True, False))
        leaves: dict[str, Any] = {
            "bos/adds_bos": self.adds_bos,
            "bos/bos_token_id": bos,
            "bos/without_special_tokens": bos is not None and without[0] == bos,
            "bos/appends_eos": eos is not None and with_special[-1] == eos,
        }
        for trial, where, data in self.regimes():
            text = self.src.create_prompt(data)
            ids = list(self.tokenizer(text).input_ids)
            answer = [int(i) for i in self.src.get_answer_id(text, data["query_target"]["output"], self.tokenizer)]
            said = {"text": text, "input_ids": ids, "boundary": len(ids), "answer_ids": answer, "target_id": answer[0]}
            leaves |= {f"{where}/{name}": value for name, value in said.items()}
            if where.endswith("corrupted"):
                leaves[f"{trial['key']}/target_id"] = self.target_id(trial)
        return leaves

    def dummy_labels(self) -> Any:
        known = {"tokenizer": self.tokenizer, "model_config": self.config}
        return self.src.get_dummy_token_labels(self.job["n_shots"], **known, **self.template)

    def slot_map(self) -> dict[str, Any]:
        dummy = self.dummy_labels()
        leaves: dict[str, Any] = {"dummy_labels": [[int(i), label] for i, label in dummy]}
        for _, where, data in self.regimes():
            labels, _ = self.src.get_token_meta_labels(data, self.tokenizer, prepend_bos=self.config["prepend_bos"])
            self.require_alignment(where, data, labels, dummy)
            idx_map, idx_avg = self.src.compute_duplicated_labels(labels, dummy)
            full = self.src.update_idx_map(idx_map, idx_avg)
            token = next(int(i) for i, _, label in labels if label == "query_predictive_token")
            said = {
                "labels": [[int(i), text, label] for i, text, label in labels],
                "idx_map": [[int(k), int(v)] for k, v in idx_map.items()],
                "idx_avg": [[k, int(v[0]), int(v[1])] for k, v in sorted(idx_avg.items())],
                "full_idx_map": [[int(k), int(v)] for k, v in sorted(full.items())],
                "query_predictive_slot": int(idx_map[token]),
                "query_predictive_token": token,
            }
            leaves |= {f"{where}/{name}": value for name, value in said.items()}
        return leaves

    def require_alignment(self, where: str, data: Any, labels: Any, dummy: Any) -> None:
        """The reference pairs tokens, labels and slots by position and cuts the longer list without a word."""
        parts, part_labels = self.src.get_prompt_parts_and_labels(data)
        n_labels = len(self.src.tokenize_labels(parts, part_labels, self.tokenizer, self.config["prepend_bos"]))
        n_tokens = len(self.tokenizer(self.src.create_prompt(data)).input_ids)
        filled = {label if "demo" in label else i for i, _, label in labels}
        if not n_labels == n_tokens == len(labels) or labels[-1][2] != "query_predictive_token":
            raise RecordingRefused(f"{where}: {n_tokens} tokens, {n_labels} labels, the last one {labels[-1][2]!r}")
        if len(filled) != len(dummy):
            raise RecordingRefused(f"{where}: the prompt fills {len(filled)} slots, the dummy prompt has {len(dummy)}")

    def mean_activations(self) -> dict[str, Any]:
        trials = self.job["trials"]
        train = Replay([words(trial["clean"]) for trial in trials], self.job["n_shots"])
        valid = Replay([words([trial["query"]]) for trial in trials], 1)
        mean = self.src.get_mean_head_activations(
            {"train": train, "valid": valid},
            **self.running,
            n_icl_examples=self.job["n_shots"],
            N_TRIALS=len(trials),
            shuffle_labels=False,
            **self.template,
        )
        if (train.n_asked, valid.n_asked) != (len(trials), len(trials)):
            raise RecordingRefused(f"the means asked for {train.n_asked} trials, there are {len(trials)}")
        if not mean.any():
            raise RecordingRefused("the mean activations are zero everywhere")
        return {"mean_activations": mean.cpu()}

    def top_heads(self, mean: Any) -> dict[str, Any]:
        import torch

        dummy, effects, log_effects = self.dummy_labels(), [], []
        for trial in self.job["trials"]:
            with self.stored_target.of(self.target_id(trial)), self.read_at(self.target_id(trial)) as readings:
                effect = self.src.activation_replacement_per_class_intervention(
                    prompt_data=self.prompt_data(trial, "corrupted"),
                    avg_activations=mean,
                    dummy_labels=dummy,
                    **self.running,
                    last_token_only=self.job["token_class_idx"] == -1,
                )
            effects.append(effect.squeeze(-1) if effect.shape[-1] == 1 else effect)
            log_effects.append(log_effect(readings, effect).view_as(effects[-1]))
        if not (cie := torch.stack(effects).cpu()).any():
            raise RecordingRefused("the indirect effect is zero everywhere: no head was replaced, or no slot was found")
        _, heads = self.function_vector(mean, cie)
        cie_logprob = torch.stack(log_effects)
        return {
            "cie": cie,
            "aie": self.averaged(cie),
            "heads": [[int(layer), int(head)] for layer, head, _ in heads],
            "scores": torch.tensor([float(score) for *_, score in heads], dtype=torch.float64),
            "cie_logprob": cie_logprob,
            "aie_logprob": self.averaged(cie_logprob),
        }

    def averaged(self, cie: Any) -> Any:
        """Over trials, of the token class that the job asks for."""
        return cie.mean(dim=0) if cie.ndim == 3 else cie[:, :, :, self.job["token_class_idx"]].mean(dim=0)

    @contextmanager
    def read_at(self, target_id: int) -> Iterator[list[Any]]:
        """What every pass of the model says of a token behind the last one: its probability, and that as a logarithm."""
        import torch

        read: list[Any] = []

        def hook(_: Any, __: Any, output: Any) -> None:
            logits = output.logits[0, -1]
            pair = torch.softmax(logits, dim=-1), torch.log_softmax(logits.float(), dim=-1)
            read.append([values[target_id].cpu() for values in pair])

        handle = self.model.register_forward_hook(hook)
        try:
            yield read
        finally:
            handle.remove()

    def function_vector(self, mean: Any, cie: Any, n_top_heads: int | None = None) -> Any:
        return self.src.compute_function_vector(
            mean,
            cie,
            self.model,
            model_config=self.config,
            n_top_heads=n_top_heads or self.job["n_top_heads"],
            token_class_idx=self.job["token_class_idx"] if cie.ndim == 4 else -1,
        )

    def fv_vector(self, mean: Any, top_heads: dict[str, Any]) -> dict[str, Any]:
        import torch

        vector, _ = self.function_vector(mean, top_heads["cie"])
        terms = []
        for layer, head in top_heads["heads"]:
            alone = torch.zeros(1, *top_heads["aie"].shape)
            alone[0, layer, head] = 1.0  # an effect that makes this head the only top head
            terms.append(self.function_vector(mean, alone, n_top_heads=1)[0].reshape(-1).cpu())
        vector = vector.reshape(-1).cpu()
        norm = float(vector.float().norm())
        return {"function_vector": vector, "norm": norm, "head_terms": torch.stack(terms)}

    def injection_output(self, vector: Any) -> dict[str, Any]:
        import torch

        leaves: dict[str, Any] = {}
        generated: list[Any] = []
        original_generate = self.model.generate

        def generate(input_ids: Any, *args: Any, **options: Any) -> Any:
            output = original_generate(input_ids, *args, **options)
            generated.append([int(i) for i in output[0, input_ids.shape[1] :]])
            return output

        self.model.generate = generate
        for trial in self.job["trials"]:
            key, target_id = trial["key"], self.target_id(trial)
            run = partial(
                self.src.function_vector_intervention,
                self.src.create_prompt(self.prompt_data(trial, "corrupted")),
                trial["query"]["output"],
                self.job["edit_layer"],
                vector.to(self.job["device"]) * self.job["alpha"],
                *(self.model, self.config, self.tokenizer),
            )
            base, injected = (logits[0].cpu() for logits in run())
            if torch.equal(base, injected):
                raise RecordingRefused(f"trial {key}: the injection moved no logit")
            *_, base_nll, with_nll = run(compute_nll=True)
            generated.clear()
            run(generate_str=True)
            logprob = [float(torch.log_softmax(x.float(), dim=-1)[target_id]) for x in (base, injected)]
            said = {
                "target_id": target_id,
                "base_logprob": logprob[0],
                "with_logprob": logprob[1],
                "delta_logprob": logprob[1] - logprob[0],
                "base_logits": base.clone(),
                "with_logits": injected.clone(),
                "base_nll": float(base_nll),
                "with_nll": float(with_nll),
                "base_generated": list(generated[0]),
                "with_generated": list(generated[1]),
            }
            leaves |= {f"{key}/{name}": value for name, value in said.items()}
        self.model.generate = original_generate
        return leaves

    def record(self) -> dict[str, Any]:
        import torch

        if "recorded" in self.job:  # by another process
            artifacts, said = torch.load(self.job["recorded"], weights_only=True)["artifacts"], {}
        else:
            artifacts = {"prompt_boundary": self.prompt_boundary(), "slot_map": self.slot_map()}
            artifacts |= {} if self.job["words_only"] else self.numbers()
            said = {"artifacts": artifacts, "provenance": self.provenance()}
        return said | {"varied": {change["name"]: self.varied(change, artifacts) for change in self.job["variations"]}}

    def provenance(self) -> dict[str, Any]:
        return {
            "sources": self.src.sources(),
            "normalisations": self.normalisations,
            "weights_sha": weights_digest(self.model),
            "attn_implementation": self.model.config._attn_implementation,
            "versions": versions(),
        }

    def numbers(self, recorded_heads: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        """The keys that need a pass of the model; the vector is that of recorded heads, where there are some."""
        means = self.mean_activations()
        heads = self.top_heads(means["mean_activations"])
        vector = self.fv_vector(means["mean_activations"], recorded_heads or heads)
        injected = self.injection_output(vector["function_vector"])
        numbers = {"mean_activations": means, "top_heads": heads, "fv_vector": vector, "injection_output": injected}
        require_finite(numbers)
        self.passes.next_run()
        return numbers

    def varied(self, change: dict[str, Any], recorded: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The numeric keys again, on other kernels or threads; the recorded heads count, or a tie would look like noise."""
        import torch

        self.model = None  # two copies of a large model would not fit
        self.model = self.passes.of(load_model(self.job, change["attn_implementation"]))
        normalise([greedy_generation(self.model)])
        if change["copies_weights"]:
            for parameter in self.model.parameters():
                parameter.data = parameter.data.clone()
        torch.set_num_threads(change["threads"])
        return recorded | self.numbers(recorded["top_heads"])


def log_effect(readings: list[Any], effect: Any) -> Any:
    """The effect in log-probabilities, flat, of the passes that gave the reference's own: the first without a replacement,
    the others in the order of its entries."""
    import torch

    in_probability, in_logprob = (torch.stack(column) for column in zip(*readings, strict=True))
    own, change = effect.flatten().cpu(), (in_probability[1:] - in_probability[0]).float()
    if change.shape != own.shape or not torch.allclose(change, own, rtol=0, atol=1e-6):
        raise RecordingRefused("the passes that gave the indirect effect are others than the model's that were read")
    return in_logprob[1:] - in_logprob[0]


def load_model(job: dict[str, Any], attn_implementation: str | None) -> Any:
    import torch
    import transformers

    options = {"attn_implementation": attn_implementation} if attn_implementation else {}
    # Always passed on: without it the library chooses the checkpoint's. Before transformers 4.56 it was `torch_dtype`.
    dtype = "dtype" if [int(part) for part in transformers.__version__.split(".")[:2]] >= [4, 56] else "torch_dtype"
    options[dtype] = getattr(torch, job["dtype"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["model_dir"], local_files_only=True, trust_remote_code=False, **options
    )
    return model.eval().to(job["device"])


def require_finite(artifacts: dict[str, dict[str, Any]]) -> None:
    """A NaN in a golden would make a NaN of the candidate look right."""
    import torch

    for key, leaves in artifacts.items():
        for leaf, value in leaves.items():
            if isinstance(value, float | torch.Tensor) and not bool(torch.as_tensor(value).isfinite().all()):
                raise RecordingRefused(f"{key}: {leaf} holds a number that is not finite")


def weights_digest(model: Any) -> str:
    """The same digest as fvcore's `weights_digest`, which this process may not be able to import."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        value = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "numpy", "pandas", "scikit-learn"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def main(job_path: str) -> None:
    job = json.loads(Path(job_path).read_text())
    sys.dont_write_bytecode = True  # the checkout stays as it is
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(job["seed"])
    try:
        recorded = Recorder(job).record()
    except RecordingRefused as refusal:
        sys.exit(str(refusal))
    torch.save(recorded, job["out"])


if __name__ == "__main__":
    main(sys.argv[1])
