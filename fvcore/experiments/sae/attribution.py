"""Which features of earlier layers may cause a target, by one pass forward and one back.

A feature adds its activation times its decoder row to the residual stream, and the rest of the stream, what the autoencoder
leaves over included, stays as it is. So the slope of anything behind it in an activation is the product of its row with the
gradient at the layer: no gradient has to go through an encoder, and none does.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fvcore.experiments.sae.bench import Bench, Columns
from fvcore.experiments.sae.config import Discover
from fvcore.experiments.sae.pathways import Candidate, Node, Place, TargetRow
from fvcore.experiments.sae.schemas import Context
from fvcore.fast.chunks import in_chunks
from fvcore.model.residual import Cached, residual_stream

SAME = 0.7
"""Cosine of two decoder rows from which on a source may be the target itself, carried on."""

Sources: TypeAlias = Mapping[int, Sequence[int] | None]
"""Layer -> the features there that may be sources; None: all."""


def short(value: Tensor | float) -> float:
    """The seven digits that a number of 32 bits has."""
    return float(f"{float(value):.7g}")


def attribute(bench: Bench, targets: Sequence[Node], sources: Sources, settings: Discover) -> list[TargetRow]:
    """A row for each target, all of one layer; `settings.batch_size` of them share a pass, fewer where memory is short."""
    rows = in_chunks(targets, settings.batch_size, partial(_batch, bench, sources, settings))
    return [row for batch in rows for row in batch]


def _batch(bench: Bench, sources: Sources, settings: Discover, targets: Sequence[Node]) -> list[TargetRow]:
    layer = targets[0].layer
    read = bench.columns(layer, [target.id for target in targets])
    columns = {below: bench.columns(below, sources[below]) for below in sorted(sources) if below < layer}
    tallies = {below: Tally(bench, read, one) for below, one in columns.items()}
    before, behind = [], []
    for context in bench.contexts:
        y, active, hidden, slopes = gradients(bench, context, layer, read, list(columns))
        before.append(y)
        behind.append(active)
        for below, tally in tallies.items():
            found = columns[below].encode(hidden[below]) * bench.counted(context)[:, None]
            slope = slopes[below]
            if settings.attribution == "ig":
                part = found @ columns[below].directions
                slope = integrated(bench, context, layer, read, Cached(below, hidden[below]), part, settings.ig_steps)
            tally.add(context, hidden[below], found, slope)
    y, active = torch.stack(before).cpu(), torch.stack(behind).cpu()
    scales = torch.maximum(active, read.threshold.cpu()).mean(0)
    rows = []
    for at, target in enumerate(targets):
        n_active = int((active[:, at] > 0).sum())
        status: Literal["ok", "target_inactive", "numeric_error"]
        status = "numeric_error" if not y[:, at].isfinite().all() else "ok" if n_active else "target_inactive"
        told = tallies if status == "ok" else {}
        scale = 0.0 if status == "numeric_error" else short(scales[at])
        found_of = {below: tally.candidates(at, scale, settings) for below, tally in told.items()}
        rows.append(
            TargetRow(
                target=target.name,
                status=status,
                scale=scale,
                n_active=n_active,
                activations=[] if status == "numeric_error" else [short(one) for one in y[:, at]],
                explained={str(below): tally.explained(at) for below, tally in told.items()},
                candidates=_strongest(found_of, settings.top_k),
            )
        )
    return rows


def gradients(
    bench: Bench, context: Context, layer: int, read: Columns, below: Sequence[int], start: Cached | None = None
) -> tuple[Tensor, Tensor, dict[int, Tensor], dict[int, Tensor]]:
    """Of each target of `read` at the last token its activation before and behind the gate (target,); of each layer below the
    residual stream (token, d_model), and there each target's gradient (target, token, d_model).

    One pass forward serves all targets, and one back, in which each is a row. start: the pass goes on from here
    """
    stream = residual_stream(bench.lm, bench.ids(context), last=layer, leaf=below[0] if below else None, start=start)
    end = stream[layer][0, -1]
    y = read.pre(end)
    slopes: Sequence[Tensor] = ()
    if below:
        each = torch.eye(len(y), dtype=y.dtype, device=y.device)
        found = torch.autograd.grad(y, [stream[one] for one in below], grad_outputs=each, is_grads_batched=True)
        slopes = [one[:, 0] for one in found]
    hidden = {one: stream[one][0].detach() for one in below}
    return y.detach(), read.encode(end.detach()), hidden, dict(zip(below, slopes, strict=True))


def integrated(
    bench: Bench, context: Context, layer: int, read: Columns, cached: Cached, part: Tensor, n_steps: int
) -> Tensor:
    """Gradients (target, token, d_model) at the cached layer, as the mean of those on the way from none of its features being
    there to all being there, in the middle of each step. part: what they add to the residual stream, (token, d_model)."""
    total = torch.zeros((), device=part.device)
    for step in range(n_steps):
        missing = (1 - (step + 0.5) / n_steps) * part
        point = Cached(cached.layer, (cached.hidden - missing.to(cached.hidden.dtype))[None])
        total = total + gradients(bench, context, layer, read, [cached.layer], point)[3][cached.layer]
    return total / n_steps


class Tally:
    """What contexts say, one after the other, of the features of a layer as causes of some targets."""

    def __init__(self, bench: Bench, read: Columns, columns: Columns) -> None:
        self.bench, self.columns = bench, columns
        self.directions = columns.directions
        self.cosines = (read.directions @ self.directions.T).cpu()  # (target, feature)
        self.attributions: list[Tensor] = []  # of each context (target, feature)
        self.gradients = torch.zeros_like(self.cosines)
        self.n_active = torch.zeros(self.cosines.shape[1], dtype=torch.long)
        self.best = torch.zeros_like(self.cosines)  # the largest part of an attribution that one token has
        self.place = torch.zeros(*self.cosines.shape, 2, dtype=torch.long)  # its context and token
        self.norms = torch.zeros(self.cosines.shape[1])
        self.whole = torch.zeros(len(self.cosines))

    def add(self, context: Context, hidden: Tensor, found: Tensor, slope: Tensor) -> None:
        """hidden (token, d_model); found (token, feature), 0 where a token does not count; slope (target, token, d_model)"""
        along = slope.to(found.dtype) @ self.directions.T  # (target, token, feature)
        active = found > 0
        n_tokens = active.sum(0)
        shares = found * along
        self.attributions.append(shares.sum(1).cpu())
        self.gradients += ((along * active).sum(1) / n_tokens.clamp(min=1)).cpu()
        self.n_active += (n_tokens > 0).cpu()
        self.norms += found.norm(dim=0).cpu()
        counted = hidden.to(found.dtype) * self.bench.counted(context)[:, None]
        self.whole += (counted * slope.to(found.dtype)).sum((1, 2)).cpu()
        largest, token = (one.cpu() for one in shares.abs().max(1))
        better = largest > self.best
        self.best = torch.where(better, largest, self.best)
        here = torch.stack([torch.full_like(token, len(self.attributions) - 1), token], -1)
        self.place = torch.where(better[..., None], here, self.place)

    def explained(self, target: int) -> tuple[float, float]:
        """What the features add up to, and <h, g>, which errors and biases are part of, too; mean over contexts."""
        parts = torch.stack([one[target].sum() for one in self.attributions]).mean()
        return short(parts), short(self.whole[target] / len(self.attributions))

    def candidates(self, target: int, scale: float, settings: Discover) -> list[tuple[int, Candidate]]:
        """Feature and candidate, of those that are active and weigh enough."""
        of_contexts = torch.stack([one[target] for one in self.attributions])
        mean = of_contexts.mean(0)
        gradient, norms = (one / self.n_active.clamp(min=1) for one in (self.gradients[target], self.norms))
        weighs = mean.abs() >= max(settings.min_rel_attr * scale, torch.finfo(mean.dtype).tiny)
        often = self.n_active >= min(settings.min_active_contexts, len(self.attributions))
        if settings.legacy_min_abs_gradient is not None:
            weighs &= gradient.abs() > settings.legacy_min_abs_gradient
        kept = (weighs & often).nonzero().flatten()
        strongest = kept[mean[kept].abs().argsort(descending=True, stable=True)][: settings.top_k]
        ids = self.columns.ids
        return [
            (
                ids[at],
                Candidate(
                    source=Node(self.columns.sae.layer, ids[at]).name,
                    gradient=short(gradient[at]),
                    attribution=short(mean[at]),
                    attribution_rel=short(abs(mean[at]) / scale),
                    attributions=[short(one) for one in of_contexts[:, at]],
                    n_active=int(self.n_active[at]),
                    norm=short(norms[at]),
                    decoder_cosine=short(self.cosines[target, at]),
                    passthrough=bool(self.cosines[target, at] > SAME),
                    top_position=self._place(*self.place[target, at].tolist()),
                ),
            )
            for at in strongest.tolist()
        ]

    def _place(self, number: int, token: int) -> Place:
        context, tokenizer = self.bench.contexts[number], self.bench.lm.tokenizer
        one = context.input_ids[token]
        text = str(one) if tokenizer is None else tokenizer.decode([one])
        return Place(context=context.id, token=text, offset_from_end=token - context.n_tokens + 1)


def _strongest(found: Mapping[int, list[tuple[int, Candidate]]], top_k: int) -> list[Candidate]:
    """Of all layers, by size; of equal ones the lower layer and the smaller feature."""
    every = [(-abs(one.attribution), layer, at, one) for layer, rows in found.items() for at, one in rows]
    return [one for *_, one in sorted(every, key=lambda row: row[:3])[:top_k]]
