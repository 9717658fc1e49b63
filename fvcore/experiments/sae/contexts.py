"""What features are looked at in: each prompt by itself, and gone on with by the first tokens of responses that were logged."""

from collections.abc import Iterable, Iterator, Sequence
from heapq import nsmallest
from itertools import cycle
from typing import Any, TypeAlias

from fvcore.experiments.sae.config import Contexts
from fvcore.experiments.sae.readers import is_lone
from fvcore.experiments.sae.schemas import Context, Source
from fvcore.formats import FormatError, sha256

CONTEXTS = "data/prompts_sample.json"
SPARE = 8
"""Responses held for each one that is needed: their first tokens may be the same."""

Response: TypeAlias = tuple[str, str, str, int | None, str]
"""The draw, the feature, its condition, the trial, the text."""


class Draws:
    """Responses to each prompt's baseline, the smallest draws of each; a text counts once, and no order of files matters."""

    def __init__(self, prompt_types: Iterable[str], settings: Contexts, aliases: dict[str, str]) -> None:
        self.seed, self.aliases, self.most = settings.seed, aliases, SPARE * settings.per_prompt
        self.held: dict[str, dict[str, Response]] = {f"{kind}_baseline": {} for kind in prompt_types}

    def offer(self, file: str, feature: Any, condition: Any, trial: Any, response: Any) -> None:
        """A record of a log; what is no response to a baseline is passed over."""
        if not isinstance(condition, str) or (held := self.held.get(self.aliases.get(condition, condition))) is None:
            return
        if not isinstance(feature, str) or not isinstance(response, str):
            return
        if not response.strip() or is_lone(response):
            return
        number = trial if isinstance(trial, int) else None
        draw = sha256(f"{self.seed}|{file}|{feature}|{number}".encode(errors="backslashreplace"))
        one = (draw, feature, condition, number, response)
        held[response] = min(one, held.get(response, one), key=lambda found: found[0])
        if len(held) > 4 * self.most:
            self.held[condition] = {kept[-1]: kept for kept in self._smallest(condition)}

    def _smallest(self, condition: str) -> list[Response]:
        return nsmallest(self.most, self.held[condition].values(), key=lambda one: one[0])

    def of(self, prompt_type: str) -> list[Response]:
        return self._smallest(f"{prompt_type}_baseline")


def contexts(
    tokenizer: Any, prompt_type: str, prompt: str, responses: Sequence[Response], settings: Contexts
) -> list[Context]:
    """`per_prompt` different contexts at most: the prompt, then the prompt and a response's first tokens, as one text.

    They are tokenised together, so that the tokens are those that the model met. Raises FormatError for a tokenizer that
    does not say where its tokens stand in the text.
    """
    found = [_context(tokenizer, prompt_type, prompt, None, 0)]
    lengths = cycle([n for n in settings.prefix_tokens if n] or [0])
    for response in responses:
        if len(found) == settings.per_prompt:
            break
        one = _context(tokenizer, prompt_type, prompt, response, next(lengths))
        if one.input_ids not in [other.input_ids for other in found]:
            found.append(one)
    return [one.model_copy(update={"id": f"{prompt_type}-{number:02d}"}) for number, one in enumerate(found)]


def _context(tokenizer: Any, prompt_type: str, prompt: str, response: Response | None, n_tokens: int) -> Context:
    text = prompt + (response[-1] if response and n_tokens else "")
    if not tokenizer.is_fast:
        raise FormatError(
            f"{tokenizer.name_or_path}: expected a tokenizer that gives offsets (a fast one), found another"
        )
    read = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ends = list(_ends(read, len(prompt), n_tokens))
    ids, special = (tuple(read[key][at] for at in ends) for key in ("input_ids", "special_tokens_mask"))
    source = None
    if response and n_tokens:
        _, feature, condition, trial, _ = response
        behind = sum(read["offset_mapping"][at][0] >= len(prompt) for at in ends)
        source = Source(feature=feature, condition=condition, trial=trial, n_response_tokens=behind)
    return Context(
        id="",
        type="continued" if source else "bare",
        prompt_type=prompt_type,
        text_sha=sha256(text[: max((read["offset_mapping"][at][1] for at in ends), default=0)].encode()),
        source=source,
        n_tokens=len(ids),
        input_ids=ids,
        special=tuple(bool(one) for one in special),
    )


def _ends(read: Any, end_of_prompt: int, n_tokens: int) -> Iterator[int]:
    """Places of the prompt's tokens and of `n_tokens` behind them; of special tokens those before the text, for it goes on."""
    left, begun = n_tokens, False
    for at, ((start, _), special) in enumerate(zip(read["offset_mapping"], read["special_tokens_mask"], strict=True)):
        begun = begun or not special
        if special or start < end_of_prompt:
            if not (special and begun):
                yield at
        elif left:
            left -= 1
            yield at
