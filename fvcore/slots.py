"""Station 2: the slot map, from the tokens of a real prompt to the slots of a one-token-per-word prompt.

1. Every token gets the label of the prompt part that made it. A part's tokens are counted by how many tokens the
   text so far grows when the part is appended, because tokenizers merge across parts.
2. The same is done for a dummy prompt in which every word is `a`: its tokens are the slots.
3. Each token of the real prompt is mapped to a slot; of a word with several tokens only the first is, and the
   range of all of them is kept for averaging.

Source: `get_token_meta_labels`, `compute_duplicated_labels`, `update_idx_map` in the reference's prompt_utils.py.
Where the reference silently cuts to the shorter of two lists, an error is raised here instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from fvcore.model.tokenizer import Tokenizer, n_tokens
from fvcore.prompts import Part, PromptTemplate
from fvcore.trials.fixed import FixedTrials, WordPair

QUERY_PREDICTIVE = "query_predictive_token"

# The token classes of the rank-4 effect, in order.
TOKEN_CLASSES = {
    "demonstration": r"demonstration_\d+_token",
    "label": r"demonstration_\d+_label_token",
    "separator": "separator_token",
    "predictive": "predictive_token",
    "structural": "structural_token",
    "end_of_example": "end_of_example_token",
    "query_demonstration": "query_demonstration_token",
    "query_structural": "query_structural_token",
    "query_separator": "query_separator_token",
    "query_predictive": QUERY_PREDICTIVE,
}
DUMMY_WORD = " a"


class SlotError(Exception):
    """A prompt cannot be mapped to slots."""


class SlotAlignmentError(SlotError):
    """Tokens, labels and slots do not line up."""


class NoPredictiveSlot(SlotError):
    """The template has no output prefix, so no token predicts the answer."""


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Which slot each token of a prompt belongs to.

    labels   one per token
    idx_map  token -> slot, the first token of each word only
    idx_avg  label of a word with several tokens -> (first token, last token), inclusive
    """

    labels: tuple[str, ...]
    idx_map: dict[int, int]
    idx_avg: dict[str, tuple[int, int]]
    n_slots: int
    notes: tuple[str, ...] = ()

    @property
    def full_idx_map(self) -> dict[int, int]:
        """idx_map, with every further token of a word mapped to its word's slot."""
        more = {
            token: self.idx_map[first]
            for first, last in self.idx_avg.values()
            for token in range(first, last + 1)
            if token not in self.idx_map
        }
        return self.idx_map | more

    @property
    def query_predictive_token(self) -> int:
        return self.labels.index(QUERY_PREDICTIVE)

    @property
    def query_predictive_slot(self) -> int:
        return self.idx_map[self.query_predictive_token]


def token_labels(
    tokenizer: Tokenizer, groups: Sequence[Sequence[Part]], prepend_bos: bool
) -> tuple[list[str], list[str]]:
    """One label a token, by how many tokens the text grows with each part; and notes on parts that merged."""
    labels, notes = ["bos_token"] if prepend_bos else [], list[str]()
    parts = [(position, *part) for group in groups for position, part in enumerate(group) if part[0]]
    totals = n_tokens(tokenizer, list(accumulate(part for _, part, _ in parts)))
    for (position, part, label), n_before, n_after in zip(parts, [0, *totals], totals, strict=False):
        n_new = n_after - n_before
        if n_new < 0:
            raise SlotAlignmentError(
                f"appending {part!r} ({label}) takes {-n_new} token(s) away; labels would outnumber tokens"
            )
        if n_new == 0:
            if not labels:
                raise SlotAlignmentError(f"the prompt begins with {part!r}, which is no token of its own")
            notes.append(f"merged_boundary: {part!r} merged into the token before it, now {label}")
            labels[-1] = label
        labels += [label] * n_new
        if position == 3:  # the output prefix: its last token is where the answer is predicted
            labels[-1] = labels[-1].replace("structural", "predictive").replace("separator", "predictive")
        if position == 5 and n_new:  # the output separator: its first token ends the example
            labels[-n_new] = labels[-n_new].replace("separator", "end_of_example")
    return labels, notes


def dummy_labels(tokenizer: Tokenizer, template: PromptTemplate, n_shots: int, prepend_bos: bool) -> list[str]:
    """The label of every slot: the labels of a prompt in which each word is one token."""
    if len(tokenizer.tokenize(DUMMY_WORD)) != 1:
        pieces = tokenizer.tokenize(DUMMY_WORD)
        raise SlotAlignmentError(
            f"slots need {DUMMY_WORD!r} to be one token; this tokenizer makes {pieces} of it, so no one-token-per-word "
            "prompt can be written. Use another tokenizer."
        )
    demos = [WordPair(input=DUMMY_WORD, output=DUMMY_WORD)] * n_shots
    labels, _ = token_labels(tokenizer, template.parts(demos, DUMMY_WORD), prepend_bos)
    n_tokens = len(tokenizer(template.text(demos, DUMMY_WORD)).input_ids)
    _require_alignment(labels, n_tokens, template, "dummy prompt")
    return labels


def slot_map(
    tokenizer: Tokenizer,
    template: PromptTemplate,
    demos: Sequence[WordPair],
    query: str,
    slots: Sequence[str],
    prepend_bos: bool,
    where: str = "prompt",
) -> SlotMap:
    """Map one prompt's tokens to `slots` (the dummy labels). `where` names trial and regime in errors."""
    if not query:
        raise SlotError(f"{where}: the query is empty; a query needs at least one token")
    try:
        labels, notes = token_labels(tokenizer, template.parts(demos, query), prepend_bos)
    except SlotAlignmentError as error:
        raise SlotAlignmentError(f"{where}: {error}") from None
    _require_alignment(labels, len(tokenizer(template.text(demos, query)).input_ids), template, where)
    kept, ranges = words_of(labels)
    if len(kept) != len(slots):
        gone = [label for label in slots if "demo" in label and label not in set(labels)]
        lost = f"; no token is left of {', '.join(gone)} (a word swallowed by its neighbour)" if gone else ""
        raise SlotAlignmentError(f"{where}: {len(slots)} slots expected, the prompt fills {len(kept)}{lost}")
    idx_map = dict(zip(kept, range(len(slots)), strict=True))
    return SlotMap(tuple(labels), idx_map, ranges, len(slots), tuple(notes))


def verify(trials: FixedTrials, tokenizer: Tokenizer, first: int | None = None) -> list[str]:
    """Why prompts of a trials file have no slots under this tokenizer, one line each (empty: all have)."""
    template, meta, problems = PromptTemplate.of(trials.meta, tokenizer), trials.meta, []
    try:
        slots = dummy_labels(tokenizer, template, meta.n_shots, meta.model_prepend_bos)
    except SlotError as error:
        return [str(error)]
    for trial, (regime, demos) in ((t, d) for t in trials.trials[:first] for d in t.demos_by_regime.items()):
        where = f"trial {trial.key}, {regime} prompt"
        try:
            slot_map(tokenizer, template, demos, trial.query.input, slots, meta.model_prepend_bos, where)
        except SlotError as error:
            problems.append(str(error))
    return problems


def words_of(labels: Sequence[str]) -> tuple[list[int], dict[str, tuple[int, int]]]:
    """The tokens that have a slot, all but the further ones of a word; and first and last token of words with several."""
    ranges: dict[str, tuple[int, int]] = {}
    later_tokens = set()
    for token, label in enumerate(labels):
        if "demo" not in label:
            continue
        if label in ranges:
            later_tokens.add(token)
        ranges[label] = (ranges.get(label, (token, token))[0], token)
    kept = [token for token in range(len(labels)) if token not in later_tokens]
    return kept, {label: r for label, r in sorted(ranges.items()) if r[1] > r[0]}


def _require_alignment(labels: Sequence[str], n_tokens: int, template: PromptTemplate, where: str) -> None:
    if not template.prefixes.output:
        raise NoPredictiveSlot(
            f"{where}: the output prefix is empty, so no token is marked as predicting the answer and every indirect "
            "effect would be 0. Give the template an output prefix such as 'A:'."
        )
    if len(labels) != n_tokens:
        more = "a BOS the tokenizer adds but the labels lack" if len(labels) < n_tokens else "a BOS the tokenizer lacks"
        raise SlotAlignmentError(
            f"{where}: {n_tokens} tokens but {len(labels)} labels; often {more}: check model_prepend_bos"
        )
    if not labels or labels[-1] != QUERY_PREDICTIVE:
        last = labels[-1] if labels else None
        raise SlotAlignmentError(f"{where}: the last token is labelled {last!r}, expected {QUERY_PREDICTIVE!r}")
