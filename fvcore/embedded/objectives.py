"""What the shipped models are trained to do: four losses, each a function of one batch.

1. `next_token_losses`: answer, from the demonstrations so far; and write the layout of the text.
2. `probe_loss`: know, after the first blocks, which relation a demonstration belongs to. Without this nudge the
   pairing of question and answer is found late or never.
3. `injection_loss`, for a model whose vectors do not emerge without it: the function vector of a text, added to a
   zero-shot prompt, must give the answer.
4. `guess_loss`: when the answers are shuffled, guess.
"""

from collections.abc import Sequence
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm

from fvcore.embedded.batches import Batch, first_token
from fvcore.embedded.words import Relation
from fvcore.model.hooks import add_to_residual
from fvcore.model.model import LanguageModel


def at_answers(values: Tensor, batch: Batch, offset: int) -> Tensor:
    """`values` (text, token, ...) at each answer's first token plus `offset`: (text, pair, ...)."""
    return values[torch.arange(len(values))[:, None], batch.first + offset]


def next_token_losses(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy (nats per token) of answers and of layout."""
    predicted, actual = logits[:, :-1].float(), batch.input_ids[:, 1:]
    answers, layout = batch.is_answer[:, 1:], batch.is_layout[:, 1:]
    return cross_entropy(predicted[answers], actual[answers]), cross_entropy(predicted[layout], actual[layout])


def probe_loss(probe: nn.Module, hidden: Tensor, batch: Batch, relation: Sequence[int]) -> Tensor:
    """Cross-entropy of a linear probe that reads each text's relation at the first token of each of its answers.

    hidden: (text, token, d_model), a block's output
    """
    at = at_answers(hidden, batch, 0).float()
    predicted = probe(layer_norm(at, at.shape[-1:]))  # (text, pair, relation)
    return cross_entropy(predicted.flatten(0, 1), torch.tensor(relation).repeat_interleave(predicted.shape[1]))


def relation_vectors(
    lm: LanguageModel, layer: int, heads: Tensor, batch: Batch, relation: Sequence[int], skipped: int
) -> dict[int, Tensor]:
    """The function vector of all heads of `layer`, (d_model,), for each relation of the texts.

    Means are over the tokens that predict an answer, without the first `skipped` of each text: before, the text does
    not tell its relation. A bias counts once per head, as in `fvcore.vectors`.
    """
    predictive = at_answers(heads, batch, -1)[:, skipped:].float().mean(dim=1)  # (text, head, d_head)
    o_proj = lm.o_proj(layer)
    bias = getattr(o_proj, "bias", None)
    more = 0.0 if bias is None else (lm.n_heads - 1) * bias
    return {
        index: o_proj(predictive[torch.tensor(relation) == index].mean(dim=0).flatten()) + more
        for index in sorted(set(relation))
    }


def injection_loss(
    lm: LanguageModel,
    tokenizer: Tokenizer,
    vectors: dict[int, Tensor],
    relations: Sequence[Relation],
    layer: int,
    n_questions: int,
    begin: str,
    rng: Random,
) -> Tensor:
    """Cross-entropy of the answers' first tokens, each relation's vector added at the output of block `layer`."""
    asked = [(index, *pair) for index in vectors for pair in rng.sample(list(relations[index].items()), n_questions)]
    encodings = tokenizer.encode_batch([f"{begin}Q: {question}\nA:" for _, question, _ in asked])
    prompts = [torch.tensor(encoding.ids) for encoding in encodings]
    added = torch.stack([vectors[index] for index, _, _ in asked])
    targets = torch.tensor([first_token(tokenizer, answer) for _, _, answer in asked])
    logits, order = [], []
    # Prompts of one length at a time, so that the last token is last for all of them.
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
        with add_to_residual(lm, layer, added[rows]):
            logits.append(lm.logits(torch.stack([prompts[row] for row in rows]))[:, -1].float())
        order += rows
    return cross_entropy(torch.cat(logits), targets[order])


def guess_loss(tokenizer: Tokenizer, logits: Tensor, batch: Batch, guesses: Sequence[Sequence[str]]) -> Tensor:
    """Cross-entropy of guessed answers' first tokens; `guesses` holds one for each of the last pairs of a text."""
    targets = torch.tensor([[first_token(tokenizer, guess) for guess in text] for text in guesses])
    predicted = at_answers(logits, batch, -1)[:, -targets.shape[1] :].float()
    return cross_entropy(predicted.flatten(0, 1), targets.flatten())
