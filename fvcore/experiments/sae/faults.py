"""Ways to look for pathways wrongly, each planted into the real code, and the check that must see it.

All on the planted model, whose causes are known. The checks are asked in their order, the cheap ones first, and the first one
that fails is what caught the fault; what they measure is never touched.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fvcore.embedded.planted import Planted, build
from fvcore.experiments import fault_table
from fvcore.experiments.fault_table import FaultRow
from fvcore.experiments.sae import attribution, mediation, replay
from fvcore.experiments.sae import bench as benches
from fvcore.experiments.sae.bench import Bench, Held
from fvcore.experiments.sae.config import Discover
from fvcore.experiments.sae.health import health
from fvcore.experiments.sae.pathways import Node
from fvcore.experiments.sae.selftest import Survey, survey
from fvcore.model.hooks import watch_modules
from fvcore.model.residual import Cached, hidden_states, residual_stream

NOTHING = "nothing"
LENGTHS = (0.5, 1.5)
"""Of decoder rows that were not folded."""


class Rig:
    """A planted model with what looks at it, as they are when they are asked."""

    @cached_property
    def survey(self) -> Survey:
        return survey(_world())

    @property
    def bench(self) -> Bench:
        return self.survey.bench

    def node(self, name: str, layer: int) -> Node:
        return Node(layer, self.survey.world.names[name])


@cache
def _world() -> Planted:
    return build()


def _site(rig: Rig) -> float:
    bench = rig.bench
    states = hidden_states(bench.lm, bench.ids(bench.contexts[0]))
    layers = range(bench.lm.n_layers - 1)
    return max(_apart(bench.plain(layer, layer)[0].hidden, states[layer + 1][0]) for layer in layers)


def _last_site(rig: Rig) -> float:
    bench, last = rig.bench, rig.bench.lm.n_layers - 1
    entering: dict[str, Tensor] = {}

    def see(name: str, side: str, x: Tensor | None, named: Any) -> None:
        if x is not None and side == "input":
            entering[name] = x

    with torch.no_grad(), watch_modules(bench.lm.hf, see):
        bench.lm.hf(input_ids=bench.ids(bench.contexts[0]), use_cache=False)
    return _apart(bench.plain(last, last)[0].hidden, entering["model.norm"][0])


def _edit(rig: Rig) -> float:
    """1 is added behind layer 1; what is recorded there is 1 more than what leaves block 1."""
    ids = rig.bench.ids(rig.bench.contexts[0])
    edited = residual_stream(rig.bench.lm, ids, {1: lambda hidden: hidden + 1}, last=2)
    return _apart(edited[1][0], rig.bench.plain(1, 1)[0].hidden + 1)


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _health(rig: Rig) -> float:
    """Findings in the weights of all layers."""
    bench = rig.bench
    return float(sum(len(health(bench.store.sae(layer)).findings) for layer in range(bench.lm.n_layers)))


def _gradient(rig: Rig) -> float:
    """How far B's slope in A2 is from what a small step of A2, up and down at the last token, does to B, as a share of it."""
    bench, source, target = rig.bench, rig.node("A2.0", 1), rig.node("B.0", 2)
    columns = bench.columns(1, [source.id])
    ends = [float(of[-1, 0]) for of in replay.found_in(bench, 1, 2, columns)]
    number = ends.index(max(ends))
    context, direction = bench.contexts[number], columns.directions[0]
    slope = attribution.gradients(bench, context, 2, bench.columns(2, [target.id]), [1])[3][1][0, -1] @ direction
    step = torch.zeros(context.n_tokens)
    step[-1] = 0.02
    edits = [replay.Edit(0, "step", sign * step, direction) for sign in (1, -1)]
    cached = Cached(1, bench.plain(1, 2)[number].hidden)
    before, _ = replay.run_edits(bench, context, cached, edits, replay.Readers(bench, [target]))
    told = (before[1, 0] - before[2, 0]) / (2 * step[-1])
    return float((slope - told).abs() / told.abs())


def _noop(rig: Rig) -> float:
    """The most that giving A2 the value that it has changes B."""
    source, target = rig.node("A2.0", 1), rig.node("B.0", 2)
    own = rig.survey.settings.replay
    return replay.replay(rig.bench, {source: [target]}, 1.0, own, 0)[0].noop


def _special(rig: Rig) -> float:
    """Candidates of all targets that count most at a special token."""
    contexts = {one.id: one for one in rig.bench.contexts}
    places = [one.top_position for row in rig.survey.targets for one in row.candidates]
    return float(sum(contexts[at.context].special[at.offset_from_end - 1] for at in places))


def _causes(rig: Rig) -> float:
    return float(len(rig.survey.world.true - rig.survey.validated))


def _decoys(rig: Rig) -> float:
    world = rig.survey.world
    return float(len(rig.survey.validated - world.true - world.open))


@dataclass(frozen=True, slots=True)
class Check:
    """said: what it measures     allowed: the most that passes"""

    said: str
    allowed: float
    measure: Callable[[Rig], float]


CHECKS = {
    "site": Check("what is recorded behind a block, against the library's own hidden states", 1e-4, _site),
    "last site": Check("what is recorded behind the last block, against what enters the final norm", 1e-4, _last_site),
    "edit": Check("what is recorded at a layer that is edited, against the edit", 1e-4, _edit),
    "health": Check("findings of the health check in the autoencoders' weights", 0, _health),
    "no-op": Check("what replaying the value that is there changes", Discover().replay.noop_tol, _noop),
    "gradient": Check("a slope against a step of the same feature, as a share", 0.01, _gradient),
    "special": Check("candidates that count most at a special token", 0, _special),
    "causes": Check("planted causes that are not validated", 0, _causes),
    "decoys": Check("validated pathways that are no causes", 0, _decoys),
}  # fmt: skip
"""Cheap ones first. A run's prototype asks for site and health, every replay for no-op, `selftest` for the last two."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The first check that failed, what it measured, and what it measures without the fault."""

    caught_by: str
    value: float | None = None
    clean: float | None = None


def first_failing() -> Seen:
    """Ask the checks in order."""
    rig = Rig()
    for name, check in CHECKS.items():
        value = check.measure(rig)
        if not value <= check.allowed:
            return Seen(name, value)
    return Seen(NOTHING)


@cache
def clean(name: str) -> float:
    """What a check measures where nothing is planted. Raises RuntimeError where it does not pass: then it could show nothing."""
    value = CHECKS[name].measure(_unharmed())
    if not value <= CHECKS[name].allowed:
        raise RuntimeError(f"check {name!r} fails by itself: {value:.3g}, allowed {CHECKS[name].allowed:.3g}")
    return value


@cache
def _unharmed() -> Rig:
    return Rig()


@dataclass(frozen=True)
class Fault:
    """expected: the check that must catch it     plant: the context in which it is there"""

    id: str
    hazard: str
    planted: str
    expected: str
    plant: Callable[[], AbstractContextManager[None]]

    def seen(self) -> Seen:
        with self.plant():
            found = first_failing()
        return found if found.caught_by == NOTHING else replace(found, clean=clean(found.caught_by))


# What is done wrongly.

Stream = dict[int, Tensor]


@contextmanager
def _streams(change: Callable[..., Stream]) -> Iterator[None]:
    """Every residual stream is what `change` makes of the right one, given what makes it without edits, the model and the edits."""
    right = residual_stream

    def instead(lm: Any, ids: Tensor, edits: Any = None, **how: Any) -> Stream:
        return change(right(lm, ids, edits, **how), partial(right, lm, ids, **how), lm, edits or {})

    with ExitStack() as held:
        for module in (benches, attribution, replay, mediation, sys.modules[__name__]):
            held.enter_context(patch.object(module, "residual_stream", instead))
        yield


def _one_layer_early(stream: Stream, again: Callable[[], Stream], lm: Any, edits: Any) -> Stream:
    return {layer: stream.get(layer - 1, hidden) for layer, hidden in stream.items()}


def _behind_the_norm(stream: Stream, again: Callable[[], Stream], lm: Any, edits: Any) -> Stream:
    last = lm.n_layers - 1
    return stream | ({last: lm.hf.model.norm(stream[last])} if last in stream else {})


def _as_before(stream: Stream, again: Callable[[], Stream], lm: Any, edits: Any) -> Stream:
    plain = again() if edits else {}
    return stream | {layer: plain[layer] for layer in edits}


@contextmanager
def _without_error() -> Iterator[None]:
    run_edits = replay.run_edits

    def instead(bench: Bench, context: Any, cached: Cached, *rest: Any) -> Any:
        sae = bench.store.sae(cached.layer)
        return run_edits(bench, context, replace(cached, hidden=sae.decode(sae.encode(cached.hidden))), *rest)

    with patch.object(replay, "run_edits", instead):
        yield


@contextmanager
def _no_gradients() -> Iterator[None]:
    gradients = attribution.gradients

    def instead(*args: Any, **how: Any) -> Any:
        *rest, slopes = gradients(*args, **how)
        return (*rest, {layer: torch.zeros_like(slope) for layer, slope in slopes.items()})

    with patch.object(attribution, "gradients", instead):
        yield


@contextmanager
def _bench(change: Callable[[Bench], Bench]) -> Iterator[None]:
    made = benches.planted
    with patch.object(benches, "planted", lambda world: change(made(world))):
        yield


def _unfolded(bench: Bench) -> Bench:
    """The same reconstructions, of activations in other units."""
    found = {}
    for layer in range(bench.lm.n_layers):
        sae = bench.store.sae(layer)
        length = torch.linspace(*LENGTHS, sae.d_sae)
        found[layer] = replace(
            sae, w_enc=sae.w_enc / length, w_dec=sae.w_dec * length[:, None], threshold=sae.threshold / length
        )
    return replace(bench, store=Held(found))


FAULTS = (
    Fault("off_by_one", "an autoencoder of layer l reads hidden_states[l], which enters block l",
          "every layer's stream is the one of the layer before", "site", lambda: _streams(_one_layer_early)),
    Fault("post_norm", "the last layer's autoencoder reads hidden_states[-1], which is behind the final norm",
          "the last layer's stream is normalised", "last site", lambda: _streams(_behind_the_norm)),
    Fault("edits_after_recording", "an edit is set behind the hook that records, so that records do not show it",
          "what is recorded at an edited layer is what it was before", "edit", lambda: _streams(_as_before)),
    Fault("units", "activations in the files' units, in which layers cannot be compared",
          "decoder rows of lengths .5 to 1.5, and activations and thresholds that make up for it", "health",
          lambda: _bench(_unfolded)),
    Fault("no_grad_encoder", "gradients are asked of features that were read off the stream without gradients",
          "every gradient is 0, as what comes of None", "gradient", _no_gradients),
    Fault("error_dropped", "an edit puts the reconstruction in the place of the stream, so that its error is lost",
          "replays begin with the reconstruction", "no-op", _without_error),
    Fault("last_token_only", "causes at earlier tokens are not looked for",
          "sources count at the last token alone", "causes", lambda: _bench(lambda one: replace(one, positions="last"))),
    Fault("bos_included", "the first token's huge activations count as causes",
          "special tokens count like others", "special", lambda: _bench(lambda one: replace(one, exclude_special=False))),
)  # fmt: skip


def rows(chosen: Sequence[Fault] = FAULTS) -> list[FaultRow]:
    """Each fault with what caught it."""
    return [FaultRow(fault, fault.seen()) for fault in chosen]


rounded = partial(fault_table.rounded, least=1e-4)


def write(path: Path, found: Sequence[FaultRow]) -> Path:
    """The table as Markdown."""
    return fault_table.write(path, "fvcore.experiments.sae", found, checks=CHECKS, rounded=rounded)
