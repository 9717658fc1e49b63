"""Tiny random models of every supported family, and toy tokenizers of every kind that matters to slots.

Random initialisation hides faults: biases start at zero, and small weights make all effects equal. So biases are
drawn, and weights are large (initializer_range 0.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore.formats import sha256
from fvcore.prompts import PromptTemplate, prompt_at_boundary, require_bos_agreement
from fvcore.trials import PREFIXES, FixedTrials, Meta, TemplatePart, WordPair, sample, text_of

# The lists below are read where nothing else of a model is: torch and transformers come with the first model.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from fvcore.model.model import LanguageModel

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 12},  # 4 heads x 12 = 48, d_model is 32
    "gpt2": {},
    "gptj": {"rotary_dim": 4},
    "gpt_neox": {"rotary_pct": 0.25},
}
FAMILIES = tuple(SIZES)
"""The families that every station is tested on."""

GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}  # 4 heads of 10
WIDE = GROUPED | {"head_dim": 12}  # 4 heads x 12 = 48, d_model is 40
FURTHER: dict[str, dict[str, Any]] = {
    "gpt_neo": {"window_size": 8},
    "mixtral": WIDE | {"num_local_experts": 3, "num_experts_per_tok": 2},
    "gemma": WIDE | {"num_key_value_heads": 1},
    "gemma2": WIDE | {"sliding_window": 16, "query_pre_attn_scalar": 12},
    "gemma3_text": WIDE | {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "olmo": GROUPED | {"clip_qkv": 8.0},
    "olmo2": GROUPED,
    "phi": {"num_key_value_heads": 1, "qk_layernorm": True},
    "phi3": GROUPED | {"sliding_window": 16},
    "starcoder2": GROUPED | {"sliding_window": 16},
    "granite": GROUPED | {"residual_multiplier": 0.4, "attention_multiplier": 0.3, "embedding_multiplier": 3.0},
    "cohere": GROUPED | {"use_qk_norm": True},
    "stablelm": GROUPED | {"use_qkv_bias": True, "qk_layernorm": True},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 40, "init_std": 0.3},
    "falcon": {"num_attention_heads": 4, "num_kv_heads": 2, "new_decoder_architecture": True, "bias": True},
    "bloom": {},
}
"""What is theirs: sizes that divide badly, fewer keys than heads, heads x width != d_model, windows shorter than a prompt."""

EVERY_FAMILY = (*FAMILIES, *FURTHER)

# The five families of the test rig, each with the toy tokenizer that is like its own (`bos` stands in for Qwen's, so
# that there are two that add BOS): grouped heads; Conv1D with bias and tensor output; tuple output; parallel blocks with
# bias; heads x width != d_model.
RIG_TOKENIZERS = {"llama": "bos", "gpt2": "gpt2", "gptj": "gpt2", "gpt_neox": "plain", "qwen3": "bos"}

# Opposites, with words of several tokens (in 4-letter pieces) as inputs and outputs.
PAIRS = [
    ("hot", "cold"), ("big", "tiny"), ("unhappy", "glad"), ("sunny", "overcast"), ("up", "down"), ("wet", "dry"),
    ("fast", "slow"), ("open", "shut"), ("early", "late"), ("strong", "weak"), ("bright", "dark"), ("full", "empty"),
    ("hard", "soft"), ("high", "low"), ("near", "far"), ("new", "old"), ("rich", "poor"), ("safe", "dangerous"),
    ("sharp", "blunt"), ("sweet", "sour"), ("thick", "thin"), ("true", "false"), ("wide", "narrow"), ("young", "aged"),
]  # fmt: skip

# Words that separate right from wrong: most have several tokens, some end in punctuation that swallows the newline
# after it, and every pair stands in both directions, so that words come twice in a prompt.
AWKWARD_PAIRS = [
    pair
    for a, b in (
        ("unhappy", "glad"), ("sunny", "overcast"), ("Mr.", "Madam!"), ("yes!", "never."), ("hot", "cold"),
        ("narrow", "wide"), ("dangerous", "safe"), ("bright", "dark"), ("strong", "weak"), ("early", "late"),
        ("empty", "full"), ("young", "elderly"),
    )
    for pair in ((a, b), (b, a))
]  # fmt: skip


def toy_tokenizer(kind: str = "bos", pairs: Sequence[tuple[str, str]] = PAIRS) -> PreTrainedTokenizerFast:
    """`bos`: adds BOS, two newlines are one token. `gpt2`: no BOS, two newlines are one token at the end of a text only.

    `plain`: as `bos`, without BOS. `eos`: appends an end-of-text token to every encoding. All but `gpt2` join
    punctuation that ends a word with the newlines after it. `pairs` are the words it knows.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    newlines = r"\n\n(?![^\n])|\n" if kind == "gpt2" else r" ?[.!?]\n*|\n\n|\n"
    pattern = newlines + r"| ?[A-Za-z]{1,4}|[^A-Za-z\s]|\s"
    specials = ["<|endoftext|>", "<s>", "</s>", "[UNK]"]
    splitter = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    words = {word for pair in pairs for word in pair} | {"a", "yes", "Mr", "over", "cast"}
    pieces = {"Q", "A", ":", "\n", "\n\n", "!", "?", ".", " "}
    for word in words:
        for text in (word, f" {word}", f" {word}\n", f" {word}\n\n"):
            pieces |= {piece for piece, _ in splitter.pre_tokenize_str(text)}
    vocab = {token: i for i, token in enumerate([*specials, *sorted(pieces)])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.Fuse()
    template = {"bos": "<s> $A", "eos": "$A </s>"}.get(kind)
    if template:
        ids = [(token, vocab[token]) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    if kind == "gpt2":
        names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", model_max_length=256, clean_up_tokenization_spaces=False, **names
    )


def random_model(family: str, vocab_size: int, seed: int = 0, n_layers: int = 2) -> Any:
    """Two layers; four or five heads; d_model 32, or 40 in the further families."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    sizes = _further_sizes(family, n_layers) if family in FURTHER else _sizes(family, n_layers)
    config = AutoConfig.for_model(
        family, vocab_size=vocab_size, initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=None,
        tie_word_embeddings=False, **sizes,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


def _sizes(family: str, n_layers: int) -> dict[str, Any]:
    names = {
        "gpt2": {"n_embd": 32, "n_layer": n_layers, "n_head": 4, "n_positions": 256},
        "gptj": {"n_embd": 32, "n_layer": n_layers, "n_head": 4, "n_positions": 256},
    }
    sizes = names.get(
        family,
        {
            "hidden_size": 32,
            "num_hidden_layers": n_layers,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 256,
        },
    )
    return sizes | SIZES[family]


def _further_sizes(family: str, n_layers: int) -> dict[str, Any]:
    own = dict(FURTHER[family])
    if "layer_types" in own:
        own["layer_types"] = [own["layer_types"][layer % 2] for layer in range(n_layers)]
    if family == "gpt_neo":
        pairs, rest = divmod(n_layers, 2)
        own |= {"attention_types": [[["global", "local"], pairs], [["global"], rest]], "num_layers": n_layers}
    return {
        "hidden_size": 40,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 5,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
    } | own


def random_lm(
    family: str,
    kind: str | None = None,
    seed: int = 0,
    directory: Path | None = None,
    pairs: Sequence[tuple[str, str]] = PAIRS,
) -> LanguageModel:
    """A tiny random model with a toy tokenizer; saved to `directory` if one is given."""
    from fvcore.model.model import LanguageModel

    tokenizer = toy_tokenizer(kind or ("gpt2" if family == "gpt2" else "bos"), pairs)
    hf = random_model(family, len(tokenizer), seed)
    if directory is not None:
        hf.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    return LanguageModel.wrap(hf, tokenizer, f"random-{family}", directory)


def trials_for(
    lm: LanguageModel,
    n_trials: int = 3,
    n_shots: int = 3,
    seed: int = 0,
    edit: Callable[[list[Any]], None] | None = None,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    prefixes: TemplatePart = PREFIXES,
) -> FixedTrials:
    """Fixed trials over `pairs` under this model's tokenizer."""
    tokenizer = lm.tokenizer
    meta = Meta(
        dataset_json="datasets/pairs/raw/pairs.json",
        seed=seed,
        n_trials=n_trials,
        n_shots=n_shots,
        prefixes=prefixes,
        model_name_for_tokenizer=lm.name,
        model_prepend_bos=tokenizer("a").input_ids[0] == tokenizer.bos_token_id,
    )
    require_bos_agreement(tokenizer, meta)
    template = PromptTemplate.of(meta, tokenizer)
    rows = [WordPair(input=a, output=b) for a, b in pairs]
    if edit:
        edit(rows)
    file = sample(
        rows,
        meta,
        lambda prompt, answer: list(prompt_at_boundary(tokenizer, prompt, answer).answer_ids),
        template.text,
    )
    return FixedTrials(f"fixed_trials_pairs_{lm.name}", sha256(text_of(file).encode()), file)
