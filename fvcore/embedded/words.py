"""What the shipped models know: three groups of words, and relations that permute each group.

A relation is a permutation of its group, so every relation of a group has the same inputs and the same labels.
The labels of a prompt therefore say nothing about its relation; only the *pairing* of input and label does. That is
what makes shuffled labels useless to the model and gives its heads something to carry.

A `|` marks where the tokenizers cut a word: `gener|ous` is one word of two tokens. First pieces are distinct within
a group, so that the first token of an answer decides which word it is.

    python -m fvcore.embedded.words datasets/      writes datasets/tiny_<relation>/raw/tiny_<relation>.json
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from string import ascii_lowercase

from fvcore.formats import json_text, write_text

Relation = Mapping[str, str]
"""Input word -> answer word, without the space that precedes a word in a prompt."""

_ANTONYMS = """
    hot cold            big small           tall short          fast slow           old young
    good bad            happy sad           heavy light         dark bright         strong weak
    hard soft           wet dry             clean dirty         rich poor           wide narrow
    thick thin          deep shallow        loud quiet          early late          full empty
    sharp blunt         smooth rough        sweet bitter        true false          easy diffi|cult
    cheap ex|pen|sive    safe danger|ous     ugly beauti|ful     guilty inno|cent    opaque trans|parent
    gener|ous self|ish  tempor|ary perman|ent                   verti|cal hor|izon|tal
"""
_NUMBERS = """
    one two three four five six seven eight nine ten
    elev|en twelve thir|teen fourteen fifteen sixteen seventeen eighteen nineteen twen|ty
"""


def whole(marked: str) -> str:
    """A word without its cuts: `whole("gener|ous") == "generous"`."""
    return marked.replace("|", "")


def pieces(marked: str) -> list[str]:
    """A word in the pieces the tokenizers give it: `pieces("gener|ous") == ["gener", "ous"]`."""
    return marked.split("|")


MARKED_GROUPS: Mapping[str, tuple[str, ...]] = {
    "adjective": tuple(sorted(_ANTONYMS.split(), key=whole)),
    "letter": tuple(ascii_lowercase),
    "number": tuple(_NUMBERS.split()),
}
"""Group name -> its words in order, with their cuts. Adjectives are in alphabetical order."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    name: tuple(whole(word) for word in words) for name, words in MARKED_GROUPS.items()
}


def antonym() -> Relation:
    """Real English antonyms, in both directions."""
    words = [whole(word) for word in _ANTONYMS.split()]
    pairs = list(zip(words[::2], words[1::2], strict=True))
    return dict(pairs) | {second: first for first, second in pairs}


def shifted(group: str, steps: int) -> Relation:
    """Each word's neighbour `steps` further in its group, around the end."""
    words = GROUPS[group]
    return {word: words[(i + steps) % len(words)] for i, word in enumerate(words)}


def relations() -> dict[str, Relation]:
    """Every relation the models are trained on, by name; `antonym` first."""
    tables = {"antonym": antonym()}
    for group in GROUPS:
        tables[f"next_{group}"] = shifted(group, 1)
        tables[f"prev_{group}"] = shifted(group, -1)
        tables[f"skip_{group}"] = shifted(group, 2)
        tables[f"skip_back_{group}"] = shifted(group, -2)
        # First and last word answer each other, and so on inwards.
        tables[f"mirror_{group}"] = dict(zip(GROUPS[group], reversed(GROUPS[group]), strict=True))
    # More relations of the adjectives than of the other groups: a model that has seen no usable pair guesses one of
    # them, and that chance bounds zero-shot and shuffled accuracy from below.
    tables["leap_adjective"] = shifted("adjective", 7)
    tables["across_adjective"] = shifted("adjective", len(GROUPS["adjective"]) // 2)
    return tables


def group_of(relation: Relation) -> str:
    """The group a relation permutes."""
    return next(name for name, words in GROUPS.items() if set(words) == set(relation))


def dataset_files() -> dict[str, str]:
    """Path below `datasets/` -> content, for every relation: the reference's format, a list of input/output rows."""
    return {
        f"tiny_{name}/raw/tiny_{name}.json": json_text(
            [{"input": word, "output": answer} for word, answer in relation.items()]
        )
        for name, relation in relations().items()
    }


if __name__ == "__main__":
    for _name, _text in dataset_files().items():
        write_text(Path(sys.argv[1]) / _name, _text)
