"""The tokenizers of the shipped models: byte-level BPE, built by rule instead of trained.

1. The alphabet is the 256 bytes, written as byte-level BPE writes them (space is `Ġ`, newline is `Ċ`).
2. Each piece of a word gets a chain of merges that grows it from the left, one letter at a time:
   `Ġ+h`, `Ġh+o`, `Ġho+t`. First pieces (with their space) come before inner pieces, so a word is read as its longest
   known beginning and then the rest. Words therefore tokenize exactly as `words` cuts them.
3. `\\n\\n` is one token, as in GPT-2 and Llama 3. The split rules below decide where it can appear.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from fvcore.embedded.words import MARKED_GROUPS, pieces
from fvcore.formats import write_json, write_text

# The split rules are those of the published tokenizers of Llama 3 and GPT-2.
_LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

GPT2_EOS = "<|endoftext|>"


SPECIALS = {"tiny-llama": ("<|begin_of_text|>", "<|end_of_text|>"), "tiny-gpt2": (GPT2_EOS, GPT2_EOS)}
"""By model: the tokens that begin and that end a text."""


def _merges() -> list[tuple[str, str]]:
    """All merges in order of rank, each once."""
    cut = [pieces(word) for words in MARKED_GROUPS.values() for word in words]
    first = [f"Ġ{head}" for head, *_ in cut]
    # Longest first, so that `teen` is complete before `en` could take its end.
    inner = sorted((piece for _, *rest in cut for piece in rest), key=len, reverse=True)
    chains = ((piece[:i], piece[i]) for piece in [*first, *inner, "ĊĊ"] for i in range(1, len(piece)))
    return list(dict.fromkeys(chains))


def _bpe(split: str, specials: Iterable[str]) -> Tokenizer:
    merges = _merges()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *(left + right for left, right in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def build(name: str) -> Tokenizer:
    """The tokenizer of an embedded model."""
    bos, eos = SPECIALS[name]
    if name == "tiny-llama":  # puts BOS in front of every text by itself and appends nothing
        tokenizer = _bpe(_LLAMA_SPLIT, (bos, eos))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    else:  # adds nothing to a text; `<|endoftext|>` is begin and end of text alike
        tokenizer = _bpe(_GPT2_SPLIT, (GPT2_EOS,))
        # Offsets keep the space of a word: the place where an answer starts is the place after the colon.
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def save(name: str, directory: Path, max_length: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` for `AutoTokenizer`."""
    bos, eos = SPECIALS[name]
    config = {
        # Written by hand: transformers 5 would write a class name that transformers 4 does not know.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_length,
    }
    write_text(directory / "tokenizer.json", build(name).to_str(pretty=True))
    write_json(directory / "tokenizer_config.json", config)
