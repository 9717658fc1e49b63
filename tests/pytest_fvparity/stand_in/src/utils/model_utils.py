"""What is known about models: where the output projection stands, chosen by the model's name."""

OUT_PROJ = {
    "gpt2-xl": "transformer.h.{}.attn.c_proj",
    "gpt-j": "transformer.h.{}.attn.out_proj",
    "gpt-neox": "gpt_neox.layers.{}.attention.dense",
    "llama": "model.layers.{}.self_attn.o_proj",
}


def out_proj(model, model_config, layer):
    (path,) = [path for name, path in OUT_PROJ.items() if name in model_config["name_or_path"]]
    return model.get_submodule(path.format(layer))


def split_heads(activations, model_config):
    """(..., hidden) -> (..., head, hidden / n_heads), sharing memory."""
    return activations.unflatten(-1, (model_config["n_heads"], -1))


def layer_number(layer_name):
    return int(layer_name.split(".")[2])
