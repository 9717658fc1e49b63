"""Tiny random models of every supported family, and toy tokenizers of every kind that matters to slots.

What they are made of, and the words they are asked about, stand in `random_models.yaml`.

Random initialisation hides faults: biases start at zero, and small weights make all effects equal. So biases are
drawn, and weights are large (initializer_range 0.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore.formats import read_yaml, sha256
from fvcore.prompts import sample_trials
from fvcore.trials.fixed import PREFIXES, FixedTrials, Meta, TemplatePart, WordPair, text_of

# The lists below are read where nothing else of a model is: torch and transformers come with the first model.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from fvcore.model.model import LanguageModel

DATA = read_yaml(Path(__file__).with_suffix(".yaml"))
FAMILIES = tuple(DATA["families"])
EVERY_FAMILY = (*FAMILIES, *DATA["further"])
RIG_TOKENIZERS: dict[str, str] = DATA["rig_tokenizers"]


def _pairs(written: str) -> list[tuple[str, str]]:
    return [(first, second) for first, second in (pair.split() for pair in written.split(", "))]


PAIRS = _pairs(DATA["pairs"])
AWKWARD_PAIRS = [pair for a, b in _pairs(DATA["awkward_pairs"]) for pair in ((a, b), (b, a))]


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
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        family, vocab_size=vocab_size, bos_token_id=1, eos_token_id=2, pad_token_id=None,
        tie_word_embeddings=False, **{"initializer_range": 0.3} | _sizes(family, n_layers),
    )  # fmt: skip
    return of_config(config, seed)


def of_config(config: Any, seed: int = 0) -> Any:
    """A model in fp32 and eval mode, drawn by the config, biases too."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


def _sizes(family: str, n_layers: int) -> dict[str, Any]:
    sizes = dict((DATA["families"] | DATA["further"])[family])
    if "layer_types" in sizes:
        sizes["layer_types"] = [sizes["layer_types"][layer % 2] for layer in range(n_layers)]
    if family == "gpt_neo":
        pairs, rest = divmod(n_layers, 2)
        sizes |= {"attention_types": [[["global", "local"], pairs], [["global"], rest]], "num_layers": n_layers}
    return sizes | {"n_layer" if "n_embd" in sizes else "num_hidden_layers": n_layers}


def random_lm(
    family: str,
    kind: str | None = None,
    seed: int = 0,
    directory: Path | None = None,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    n_layers: int = 2,
) -> LanguageModel:
    """A tiny random model with a toy tokenizer; saved to `directory` if one is given."""
    from fvcore.model.model import LanguageModel

    tokenizer = toy_tokenizer(kind or ("gpt2" if family == "gpt2" else "bos"), pairs)
    hf = random_model(family, len(tokenizer), seed, n_layers)
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
    rows = [WordPair(input=a, output=b) for a, b in pairs]
    if edit:
        edit(rows)
    file = sample_trials(tokenizer, rows, meta)
    return FixedTrials(f"fixed_trials_pairs_{lm.name}", sha256(text_of(file).encode()), file)
