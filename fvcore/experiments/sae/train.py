"""TopK autoencoders trained on the residual stream of a shipped model, which is asked its own relations meanwhile.

Small, so that what is done with features can be seen on a model that learned. They are of use if they explain the stream
and if the model still answers with one layer's stream replaced by what they make of it; training ends with that judgement.
"""

from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch import Tensor

from fvcore.experiments.folder import Folder, locked
from fvcore.experiments.progress import Progressing, Watched
from fvcore.experiments.sae.autoencoder import SAE
from fvcore.experiments.sae.config import Training
from fvcore.experiments.sae.health import fvu
from fvcore.experiments.sae.loaders import canonical, save_sae_lens
from fvcore.experiments.sae.schemas import Row
from fvcore.experiments.sae.streams import by_length, counted, questions, streams_of
from fvcore.model.hooks import replace_outputs
from fvcore.model.model import LanguageModel, load
from fvcore.prompts import Prompt

REPORT = "training.json"
FOLDER = "L{layer}"
MAX_FVU, MIN_SPLICED = 0.06, 0.95
"""What the autoencoders of every layer must reach: variance left unexplained, ten-shot accuracy through them."""

RATE, COOLING = 3e-3, 0.3  # of Adam; the part of the steps in which it goes to 0
DEAD = 20  # steps without being active, after which a feature is trained on what the others leave over
REVIVED, SHARE = 32, 1 / 32  # at most so many of them a token, and the weight of what they explain


class Trained(Row):
    """One layer, on prompts that it was not trained on. dead: features that are active at none of their tokens"""

    layer: int
    fvu: float
    l0: float
    dead: int
    spliced_accuracy: float

    def failures(self) -> Iterator[str]:
        if self.fvu > MAX_FVU:
            yield f"layer {self.layer}: {self.fvu:.3f} of the variance is left unexplained, expected at most {MAX_FVU}"
        if self.spliced_accuracy < MIN_SPLICED:
            yield f"layer {self.layer}: accuracy is {self.spliced_accuracy:.3f} through it, expected at least {MIN_SPLICED}"


class TrainingReport(Row):
    """`training.json` beside the folders of the layers."""

    model: str
    settings: Training
    n_tokens: int
    clean_accuracy: float
    layers: list[Trained]
    failures: list[str]


def train(settings: Training, progress: Progressing | None = None) -> TrainingReport:
    """Train, save and judge the autoencoders of every layer. The same settings give the same on one machine."""
    watched = Watched(progress)
    with locked(settings.out):
        lm, rng = load(settings.model, device="cpu", dtype="fp32", seed=settings.seed), Random(settings.seed)
        taught, asked = (list(questions(lm, n, rng)) for n in (settings.prompts, settings.held_out))
        streams, unseen = (streams_of(lm, [one.input_ids for one in prompts]) for prompts in (taught, asked))
        rows = []
        with watched.running("Training", lm.n_layers) as advance:
            for layer in range(lm.n_layers):
                sae = fitted(streams[layer], layer, settings)
                save_sae_lens(sae, settings.out / FOLDER.format(layer=layer), lm.name)
                rows.append(_judged(lm, sae, unseen[layer], asked))
                advance(layer, 1)
        report = TrainingReport(
            model=lm.name,
            settings=settings,
            n_tokens=len(streams[0]),
            clean_accuracy=accuracy(lm, asked),
            layers=rows,
            failures=[sentence for row in rows for sentence in row.failures()],
        )
        Folder(settings.out).write({REPORT: report.model_dump(mode="json")})
    return report


def fitted(stream: Tensor, layer: int, settings: Training) -> SAE:
    """An autoencoder of a stream (token, d_model), trained on it centred and at a mean length of 1 a number."""
    mean = stream.mean(0)
    scale = float((stream - mean).norm(dim=1).mean() / stream.shape[1] ** 0.5)
    draw = torch.Generator().manual_seed(settings.seed)
    rows = torch.nn.functional.normalize(torch.randn(settings.d_sae, stream.shape[1], generator=draw), dim=1)
    start = (rows, rows, torch.zeros(settings.d_sae), torch.zeros_like(mean))
    encoder, decoder, b_enc, b_dec = (one.clone().requires_grad_() for one in start)
    _descend((stream - mean) / scale, encoder, b_enc, decoder, b_dec, settings, draw)
    encoder, decoder, b_enc, b_dec = (one.detach() for one in (encoder, decoder, b_enc, b_dec))
    middle = b_dec + mean / scale
    return canonical(
        layer,
        encoder,
        b_enc,
        decoder,
        middle,
        k=settings.k,
        centred=True,
        scale=(1 / scale, 1 / scale),
        kind="topk",
        nominal_l0=settings.k,
    )


def _descend(
    stream: Tensor,
    encoder: Tensor,
    b_enc: Tensor,
    decoder: Tensor,
    b_dec: Tensor,
    settings: Training,
    draw: torch.Generator,
) -> None:
    """Least squares by Adam; decoder rows stay of length 1; what is never active learns from what is left over."""
    adam = torch.optim.Adam([encoder, b_enc, decoder, b_dec], lr=RATE, betas=(0.9, 0.99))
    silent = torch.zeros(settings.d_sae)
    for step in range(settings.steps):
        adam.param_groups[0]["lr"] = RATE * min(1.0, (settings.steps - step) / (COOLING * settings.steps))
        batch = stream[torch.randint(len(stream), (settings.batch,), generator=draw)]
        pre = (batch - b_dec) @ encoder.T + b_enc
        active = _largest(pre, settings.k)
        error = batch - active @ decoder - b_dec
        loss = error.square().sum(1).mean()
        silent = torch.where((active > 0).any(0), 0, silent + 1)
        if (dead := silent > DEAD).any():
            revived = _largest(pre[:, dead], min(REVIVED, int(dead.sum()))) @ decoder[dead]
            loss = loss + SHARE * (error.detach() - revived).square().sum(1).mean()
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)


def _largest(pre: Tensor, k: int) -> Tensor:
    values, at = pre.relu().topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, at, values)


def _judged(lm: LanguageModel, sae: SAE, stream: Tensor, asked: Sequence[Prompt]) -> Trained:
    features = sae.encode(stream)
    active = features > 0
    return Trained(
        layer=sae.layer,
        fvu=fvu(stream, sae.decode(features)),
        l0=float(active.sum(1).float().mean()),
        dead=int((~active.any(0)).sum()),
        spliced_accuracy=accuracy(lm, asked, sae),
    )


def accuracy(lm: LanguageModel, asked: Sequence[Prompt], sae: SAE | None = None) -> float:
    """Share of prompts that are answered; with an autoencoder its layer's stream is replaced by what that makes of it."""
    right = 0
    for numbers in by_length([one.input_ids for one in asked]):
        ids = torch.tensor([asked[number].input_ids for number in numbers], device=lm.device)
        targets = torch.tensor([asked[number].target_id for number in numbers], device=lm.device)
        right += int((_logits(lm, ids, sae).argmax(-1) == targets).sum())
    return right / len(asked)


@torch.no_grad()
def _logits(lm: LanguageModel, ids: Tensor, sae: SAE | None) -> Tensor:
    """(prompt, vocab) at the last token."""
    if sae is None:
        return lm.logits(ids)[:, -1]
    of_text = counted(lm, ids)[..., None]

    def splice(layer: int, hidden: Tensor) -> Tensor:
        return torch.where(of_text, sae.decode(sae.encode(hidden)).to(hidden.dtype), hidden)

    with replace_outputs(lm, [sae.layer], "splicing", splice):
        return lm.logits(ids)[:, -1]
