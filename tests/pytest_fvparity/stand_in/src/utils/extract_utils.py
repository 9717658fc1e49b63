"""What is read out of a model, and the vector made of it."""
# ruff: noqa: F403, F405

import numpy as np
import torch
from baukit import TraceDict

from .eval_utils import *
from .intervention_utils import *
from .model_utils import *
from .prompt_utils import *


def gather_attn_activations(prompt_data, dummy_labels, model, tokenizer, model_config):
    """(layer, head, slot, d_head) of one prompt; a word of several tokens is averaged."""
    names = model_config["attn_hook_names"]
    labelled, prompt = get_token_meta_labels(prompt_data, tokenizer, prepend_bos=model_config["prepend_bos"])
    idx_map, idx_avg = compute_duplicated_labels(labelled, dummy_labels)
    with TraceDict(model, layers=names, retain_input=True, retain_output=False) as trace:
        model(**tokenizer(prompt, return_tensors="pt").to(model.device))
    heads = torch.stack([split_heads(trace[name].input[0], model_config).transpose(0, 1) for name in names])
    last = dict(idx_avg.values())
    return torch.stack([heads[:, :, first : last.get(first, first) + 1].mean(dim=2) for first in idx_map], dim=2)


def get_mean_head_activations(
    dataset,
    model,
    model_config,
    tokenizer,
    n_icl_examples=10,
    N_TRIALS=100,  # noqa: N803
    shuffle_labels=False,
    prefixes=None,
    separators=None,
):
    template = {"prefixes": prefixes, "separators": separators}
    dummy_labels = get_dummy_token_labels(n_icl_examples, tokenizer, model_config, **template)
    activations = []
    for _ in range(N_TRIALS):
        prompt_data = word_pairs_to_prompt_data(
            dataset["train"][np.random.choice(len(dataset["train"]), n_icl_examples, replace=False)],
            query_target_pair=dataset["valid"][np.random.choice(len(dataset["valid"]), 1)],
            prepend_bos_token=not model_config["prepend_bos"],
            shuffle_labels=shuffle_labels,
            **template,
        )
        activations.append(gather_attn_activations(prompt_data, dummy_labels, model, tokenizer, model_config))
    return torch.stack(activations).float().cpu().mean(dim=0)


def compute_function_vector(mean_activations, indirect_effect, model, model_config, n_top_heads=10, token_class_idx=-1):
    """The sum of what the heads with the largest average effect write, and those heads as (layer, head, score)."""
    effect = indirect_effect.mean(dim=0)
    effect = effect[:, :, token_class_idx] if effect.ndim == 3 else effect
    scores, places = torch.topk(effect.flatten(), n_top_heads)
    vector, top_heads = torch.zeros(model_config["resid_dim"]), []
    for score, place in zip(scores.tolist(), places.tolist(), strict=True):
        layer, head = divmod(place, model_config["n_heads"])
        alone = torch.zeros(model_config["resid_dim"])
        split_heads(alone, model_config)[head] = mean_activations[layer, head, -1]
        vector += out_proj(model, model_config, layer)(alone.reshape(1, 1, -1).to(model.device, model.dtype)).flatten()
        top_heads.append((layer, head, round(score, 4)))
    return vector.to(model.dtype).reshape(1, -1), top_heads
