"""Records what the public reference's own evaluation says on the shipped models, once, for `test_reference.py`.

    python -m tests.fvcore.evaluation.record_reference CHECKOUT

CHECKOUT is a pristine copy at commit fb9eac7. Its functions run as they stand, but for three normalisations: vectors are
added to bare tensors too, without which nothing is injected on today's libraries; generation is greedy; and the answers
that its generation mode hands over as a list are taken for text where their token is asked, without which it ends in a
TypeError.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fvcore.artifacts import load
from fvcore.embedded import path_of
from fvcore.formats import json_text, sha256, write_text
from pytest_fvparity.reference.driver import (
    Checkout,
    Normalisation,
    greedy_generation,
    injection_edits_bare_tensors,
    normalise,
    provide_modules,
)

ROOT = Path(__file__).parents[3]
DATASET = ROOT / "datasets" / "tiny_antonym" / "raw" / "tiny_antonym.json"
RECORDED = Path(__file__).with_name("reference_eval.json")
COMMIT = "fb9eac7"
SEED, LAYER, N_SHOTS = 42, 1, 10
KEPT = [1, 3, 4, 8, 10, 13]  # some of the 14 questions: what is left out draws no demonstrations
# Names that reach the reference's branches; block paths as it has them.
MODELS = {"tiny-llama": ("llama", "model.layers"), "tiny-gpt2": ("gpt2-xl", "transformer.h")}
TEMPLATE = {
    "prefixes": {"input": "X:", "output": "Y:", "instructions": ""},
    "separators": {"input": "\n", "output": "\n", "instructions": ""},
}
METRICS = ("f1_score", "exact_match_score", "first_word_score")


def golden_vector(name: str) -> torch.Tensor:
    """The reference's own vector of a shipped model, as it is kept among the goldens."""
    trials = f"fixed_trials_tiny_antonym_t10_s10_seed0_{name.replace('-', '_')}"
    vector = load(ROOT / "golden" / "tiny_antonym" / trials / "todd_upstream" / "fv_vector")["function_vector"]
    assert isinstance(vector, torch.Tensor)
    return vector.reshape(-1)


def dataset_of(src: Checkout, folder: Path, seed: int) -> Any:
    """The shipped words under the layout that the reference reads."""
    (folder / "abstractive").mkdir(exist_ok=True)
    (folder / "abstractive" / DATASET.name).write_bytes(DATASET.read_bytes())
    return src.load_dataset(DATASET.stem, root_data_dir=str(folder), test_size=0.3, seed=seed)


def answers_may_be_a_list(src: Checkout, tokenizer: Any) -> Normalisation:
    def holds() -> bool:
        try:
            return bool(src.get_answer_id("Q: a\nA:", [" a"], tokenizer))
        except TypeError:
            return False

    def wrapped(original: Any) -> Any:
        return lambda query, answer, *rest: original(query, answer[0] if isinstance(answer, list) else answer, *rest)

    return Normalisation.around(src, "get_answer_id", "answers_may_be_a_list", holds, wrapped)


def evaluations(src: Checkout, name: str, dataset: Any) -> Iterator[tuple[str, Any]]:
    branch, blocks = MODELS[name]
    tokenizer = AutoTokenizer.from_pretrained(path_of(name))
    model = AutoModelForCausalLM.from_pretrained(path_of(name), dtype=torch.float32).eval()
    normalise([injection_edits_bare_tensors(src), greedy_generation(model), answers_may_be_a_list(src, tokenizer)])
    bos, config = tokenizer.bos_token_id, model.config
    given = {
        "model": model,
        "tokenizer": tokenizer,
        "model_config": {
            "n_heads": config.num_attention_heads,
            "n_layers": config.num_hidden_layers,
            "resid_dim": config.hidden_size,
            "name_or_path": branch,
            "layer_hook_names": [f"{blocks}.{layer}" for layer in range(config.num_hidden_layers)],
            "prepend_bos": bos is not None and tokenizer("Q: a").input_ids[0] == bos,
        },
    }
    vector = golden_vector(name).reshape(1, -1)

    def plain(**options: Any) -> Any:
        src.set_seed(SEED)
        return src.n_shot_eval_no_intervention(dataset, **options, **given)

    def injected(n_shots: int, layer: int = LAYER, **options: Any) -> Any:
        src.set_seed(SEED)
        return src.n_shot_eval(dataset, vector, layer, n_shots, **options, **given)

    for n in (0, 1, 5, N_SHOTS):
        yield f"baseline/{n}", plain(n_shots=n)
    for filtered, keep in (("all", None), ("kept", KEPT)):
        yield f"{filtered}/zero_shot", injected(0, filter_set=keep)
        yield f"{filtered}/clean", injected(N_SHOTS, filter_set=keep)
        yield f"{filtered}/shuffled", injected(N_SHOTS, filter_set=keep, shuffle_labels=True)
    for layer in range(config.num_hidden_layers):
        yield f"layers/zero_shot/{layer}", injected(0, layer)
        yield f"layers/shuffled/{layer}", injected(N_SHOTS, layer, shuffle_labels=True)
    yield "template/baseline", plain(n_shots=N_SHOTS, compute_ppl=False, **TEMPLATE)
    yield "template/zero_shot", injected(0, **TEMPLATE)
    yield "template/shuffled", injected(N_SHOTS, shuffle_labels=True, **TEMPLATE)
    for metric in METRICS:
        yield f"generated/{metric}/zero_shot", injected(0, generate_str=True, metric=metric)
        yield f"generated/{metric}/clean", injected(N_SHOTS, generate_str=True, metric=metric)
    if branch == "llama":  # the reference decodes vectors for two families only
        yield "tokens", src.fv_to_vocab(vector, model, given["model_config"], tokenizer, n_tokens=10)


def main(checkout: Path) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    provide_modules()
    src = Checkout.at(checkout)
    with tempfile.TemporaryDirectory() as folder:
        dataset = dataset_of(src, Path(folder), SEED)
        found = {name: dict(evaluations(src, name, dataset)) for name in MODELS}
    provenance = {
        "reference": f"ericwtodd/function_vectors at {COMMIT}",
        "sources": {path: digest for path, digest in src.sources().items() if "/utils/" in path},
        "dataset_sha256": sha256(DATASET.read_bytes()),
        "seed": SEED,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": version("transformers"),
            "numpy": version("numpy"),
        },
    }
    plain = {name: {key: _plain(value) for key, value in values.items()} for name, values in found.items()}
    write_text(RECORDED, json_text({"provenance": provenance} | plain, compact=True) + "\n")


def _plain(value: Any) -> Any:
    """NumPy's numbers and tuples, as JSON has them."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


if __name__ == "__main__":
    main(Path(sys.argv[1]))
