"""What is changed in a running model."""
# ruff: noqa: F403, F405

import bitsandbytes  # noqa: F401
from baukit import TraceDict, get_module

from .model_utils import *


def replace_activation_w_avg(layer, head, tokens, avg_activations, model, model_config, idx_map):
    """At `tokens`, the head's activation becomes its average at their slots."""

    def replace(output, layer_name, inputs):
        edited = inputs[0].clone()
        for token in tokens:
            split_heads(edited, model_config)[-1, token, head] = avg_activations[layer, head, idx_map[token]]
        return get_module(model, layer_name).forward(edited)

    return replace


def add_function_vector(edit_layer, fv_vector, device, idx=-1):
    """Only a block's tuple is edited, and the vector keeps its dtype."""

    def add(output, layer_name):
        if layer_number(layer_name) == edit_layer and isinstance(output, tuple):
            output[0][:, idx] += fv_vector.to(device)
        return output

    return add


def function_vector_intervention(
    sentence,
    target,
    edit_layer,
    function_vector,
    model,
    model_config,
    tokenizer,
    compute_nll=False,
    generate_str=False,
):
    """Without and with the vector: next-token logits; these and the answer's NLL; or 16 generated tokens."""
    prompt = tokenizer(sentence, return_tensors="pt").input_ids.to(model.device)
    whole = tokenizer(sentence + target, return_tensors="pt").input_ids.to(model.device)
    n_prompt, n_answer = prompt.shape[1], whole.shape[1] - prompt.shape[1]

    def run():
        if generate_str:
            return tokenizer.decode(model.generate(prompt, max_new_tokens=16)[0]), None
        if not compute_nll:
            return model(prompt).logits[:, -1], None
        labels = whole.clone()
        labels[:, :n_prompt] = -100
        output = model(whole, labels=labels)
        return output.logits[:, n_prompt - 1], output.loss.item()

    idx = -1 - n_answer if compute_nll else -1
    edit = add_function_vector(edit_layer, function_vector.reshape(1, -1), model.device, idx=idx)
    clean, clean_nll = run()
    with TraceDict(model, layers=model_config["layer_hook_names"], edit_output=edit):
        injected, injected_nll = run()
    return (clean, injected, clean_nll, injected_nll) if compute_nll else (clean, injected)
