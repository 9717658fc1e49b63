"""A language model that is written down and not trained: it looks up a key in a demonstration, and does nothing else.

Its two layers are the two steps of a look-up. In layer 0 each token copies the key that stands a fixed number of tokens
before it: `Answer:` the key of its question, a value the key that it belongs to. In layer 1 `Answer:` attends to the
value whose key is its own, and says that value. A prompt that asks for no key ends in a word, and every such word has one
answer. All of it is formulas, so the model is there in milliseconds, and what it must do can be said exactly.

    demonstration   Demo: ⏎ key_3 -> VK ⏎ key_7 -> VB ⏎ ⏎       query   Question: What is the value for key_7? ⏎ Answer:
    other prompts   Task: rewrite this note. Tone: formal

Two things can be put out of order. `leak` adds a head that spreads the values over everything behind them, so that other
prompts are disturbed; `match_gain` below 1 makes the look-up vague, at 0 there is none.
"""

import atexit
import math
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor

from fvcore.embedded import WIRED

KEYS = tuple(f"key_{i}" for i in range(12))
VALUES = tuple(f"V{letter}" for letter in "ABCDEFGHIJKLMNOPQRST")
QUERY = ("Demo:", "->", "\n", "Question:", "What", "is", "the", "value", "for", "?", "Answer:")
_TASK = """
    Task: Tone: this .
    rewrite summarize classify translate shorten expand correct explain
    sentence note text title story poem memo mail
"""
TASK = tuple(_TASK.split())
TONES = ("formal", "friendly", "neutral", "playful", "serious", "plain", "polite", "warm")
OUTCOMES = tuple(f"out_{i}" for i in range(len(TONES)))
SPECIAL = ("<pad>", "<bos>", "<unk>")
WORDS = (*SPECIAL, *QUERY, *KEYS, *VALUES, *TASK, *TONES, *OUTCOMES)

TO_ASKED, TO_SHOWN = 3, 2
"""Tokens back: from `Answer:` to the key of its question, from a value to its key."""
N_HEADS, D_HEAD = 2, 64
SIZE = 4.0  # of what stands in the residual stream; its scale is of no consequence
SURE = 25.0  # nats times pairs by which the right offset wins
MATCH = 18.0  # nats by which the right key wins
SAID = 9.0  # nats of an answer, for a residual stream that holds it alone


def tokenizer() -> Any:
    """Whole words; a line break, a full stop and a question mark are words."""
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[?.]|[^\s?.]+"), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<bos>",
        unk_token="<unk>",
        model_max_length=512,
    )


def build(leak: float = 0.0, match_gain: float = 1.0) -> tuple[Any, Any]:
    """The model, in fp32 on the CPU, and its tokenizer.

    leak: how strongly a head spreads values (6: two values in front move other prompts by nats)     match_gain: 1 is a sure look-up
    """
    model = _blank()
    with torch.no_grad():
        wiring = _Wiring(model)
        wiring.embed()
        wiring.look_back(head=0, offset=TO_ASKED, write=wiring.rooms.asked)
        wiring.look_back(head=1, offset=TO_SHOWN, write=wiring.rooms.shown)
        wiring.match(match_gain)
        wiring.spread(leak)
        wiring.say()
    return model, tokenizer()


def save(directory: Path, leak: float = 0.0, match_gain: float = 1.0) -> Path:
    """Write the model as `from_pretrained` takes it; returns the directory."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # it is written in a moment
    model, own = build(leak, match_gain)
    model.save_pretrained(directory)
    own.save_pretrained(directory)
    return directory


@cache
def directory() -> Path:
    """Where this process keeps the model while it runs; made when it is first asked for."""
    room = Path(tempfile.mkdtemp(prefix="fvcore_"))
    atexit.register(shutil.rmtree, room, ignore_errors=True)
    return save(room / WIRED)


@dataclass(frozen=True, slots=True)
class _Rooms:
    """Where things stand in the residual stream: a constant, the word itself, and what the layers add."""

    constant = 0
    word = 1
    asked = word + len(WORDS)
    shown = asked + len(KEYS)
    found = shown + len(KEYS)
    width = (found + len(VALUES) + 7) // 8 * 8


def _blank() -> Any:
    """All weights 0, all norms 1."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=_Rooms.width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_HEADS,
        head_dim=D_HEAD,
        max_position_embeddings=512,
        pad_token_id=WORDS.index("<pad>"),
        bos_token_id=WORDS.index("<bos>"),
        eos_token_id=WORDS.index("<bos>"),
        tie_word_embeddings=False,
        dtype="float32",
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).float().eval()
    for name, weight in model.named_parameters():
        torch.nn.init.constant_(weight, 1.0 if "norm" in name else 0.0)
    return model


class _Wiring:
    """Writes the weights, one ability after the other."""

    rooms = _Rooms()

    def __init__(self, model: Any) -> None:
        self.model = model
        self.lookback, self.lookup = (block.self_attn for block in model.model.layers)
        self.frequencies: Tensor = model.model.rotary_emb.inv_freq.double()

    def normed(self, *parts: float) -> float:
        """What a norm makes of SIZE beside others: `parts` are all that stand in the stream, as multiples of SIZE."""
        return math.sqrt(self.rooms.width / sum(part**2 for part in parts))

    def embed(self) -> None:
        table = self.model.model.embed_tokens.weight
        for word in range(len(WORDS)):
            table[word, self.rooms.constant] = table[word, self.rooms.word + word] = SIZE

    def look_back(self, head: int, offset: int, write: int) -> None:
        """Attend to the token `offset` before, whatever it is, and copy its key.

        Query and key are the same for all tokens, and only their rotation differs: the query is turned back by the offset, so
        that it meets the key of that distance in phase.
        """
        size = self.normed(1, 1)
        gain = math.sqrt(SURE * math.sqrt(D_HEAD)) / size
        turned = torch.cat([(self.frequencies * offset).cos(), -(self.frequencies * offset).sin()]).float()
        row, half = head * D_HEAD, D_HEAD // 2
        self.lookback.q_proj.weight[row : row + D_HEAD, self.rooms.constant] = gain * turned
        self.lookback.k_proj.weight[row : row + half, self.rooms.constant] = gain
        for i, key in enumerate(KEYS):
            self.lookback.v_proj.weight[row + i, self.rooms.word + WORDS.index(key)] = 1 / size
            self.lookback.o_proj.weight[write + i, row + i] = SIZE

    def match(self, gain: float) -> None:
        """Attend to the value whose key is the one asked for; in the slowest pairs, which positions hardly turn."""
        size = self.normed(1, 1, 1)
        strength = math.sqrt(MATCH * gain * math.sqrt(D_HEAD)) / size
        first = D_HEAD // 2 - len(KEYS)
        for i in range(len(KEYS)):
            self.lookup.q_proj.weight[first + i, self.rooms.asked + i] = strength
            self.lookup.k_proj.weight[first + i, self.rooms.shown + i] = strength
        self._copy_values(head=0, strength=3.0)

    def spread(self, leak: float) -> None:
        """A head without queries attends to everything alike."""
        self._copy_values(head=1, strength=leak)

    def _copy_values(self, head: int, strength: float) -> None:
        size, row = self.normed(1, 1, 1), head * D_HEAD
        for i, value in enumerate(VALUES):
            self.lookup.v_proj.weight[row + i, self.rooms.word + WORDS.index(value)] = 1 / size
            self.lookup.o_proj.weight[self.rooms.found + i, row + i] = strength * SIZE

    def say(self) -> None:
        """A value that was found; of `Answer:` with nothing found a question mark; of a tone its outcome."""
        size = self.normed(1, 1, 1, 1, 1)
        told = self.model.lm_head.weight
        for i, value in enumerate(VALUES):
            told[WORDS.index(value), self.rooms.found + i] = SAID / size
        for word, answer in (("Answer:", "?"), *zip(TONES, OUTCOMES, strict=True)):
            told[WORDS.index(answer), self.rooms.word + WORDS.index(word)] = SAID / size
