"""What each head does for the answer."""
# ruff: noqa: F403, F405

import re

import torch
from baukit import TraceDict
from utils.extract_utils import *
from utils.intervention_utils import *
from utils.model_utils import *
from utils.prompt_utils import *

TOKEN_CLASSES = [
    r"demonstration_\d+_token",
    r"demonstration_\d+_label_token",
    "separator_token",
    "predictive_token",
    "structural_token",
    "end_of_example_token",
    "query_demonstration_token",
    "query_structural_token",
    "query_separator_token",
    "query_predictive_token",
]


def activation_replacement_per_class_intervention(
    prompt_data, avg_activations, dummy_labels, model, model_config, tokenizer, last_token_only=True
):
    """(layer, head, class): how much likelier the answer gets when a head's tokens of a class become average."""
    labelled, prompt = get_token_meta_labels(prompt_data, tokenizer, prepend_bos=model_config["prepend_bos"])
    slot_of = update_idx_map(*compute_duplicated_labels(labelled, dummy_labels))
    target = get_answer_id(prompt, prompt_data["query_target"]["output"], tokenizer)[0]
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)

    def probability():
        return torch.softmax(model(**inputs).logits[0, -1], dim=-1)[target]

    classes = TOKEN_CLASSES[-1:] if last_token_only else TOKEN_CLASSES
    effect, before = torch.zeros(model_config["n_layers"], model_config["n_heads"], len(classes)), probability()
    for layer, head, number in torch.cartesian_prod(*map(torch.arange, effect.shape)).tolist():
        tokens = [token for token, _, label in labelled if re.fullmatch(classes[number], label)]
        replace = replace_activation_w_avg(layer, head, tokens, avg_activations, model, model_config, slot_of)
        with TraceDict(model, layers=[model_config["attn_hook_names"][layer]], edit_output=replace):
            effect[layer, head, number] = probability() - before
    return effect
