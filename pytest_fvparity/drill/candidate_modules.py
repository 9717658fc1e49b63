"""What a candidate's modules compute: seen by hooks while it runs, or said by itself.

A candidate that runs a Hugging Face model in this process need do nothing. One in another library or interpreter may
offer a method `block_outputs(prompts, layer)`: an artifact `<trial>/<module>` -> (token, ...) of what leaves a module of
that block, on the clean prompts, and `<trial>/<module>:input` of what enters one. Modules are named as in Hugging Face's
block, the block itself `block`. What enters the output projection is needed, all else as the candidate likes; a leaf
`<trial>/input_ids` may say what was fed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, cast

from torch import Tensor, nn

from fvcore.artifacts import Artifact, limited_to
from fvcore.gates import NotProvided
from fvcore.model.hooks import hooks_left, watch_modules
from fvcore.model.model import LanguageModel
from pytest_fvparity.drill.differences import INPUT, OUTPUT, Difference, Point, Values, difference
from pytest_fvparity.drill.passes import Batch, Passes, Window, nearest, window
from pytest_fvparity.parity.implementation import Implementation, copied

METHOD = "block_outputs"
BLOCK = "block"
WAYS_OUT = (
    "A candidate that keeps a Hugging Face model in an attribute is looked at; any other may offer a method "
    f"{METHOD}(prompts, layer) that returns {{'<trial>/<module of the block>': (token, width)}}"
)


class OtherTokens(Exception):
    """The candidate's model was not given a trial's prompt as it stands in the golden."""

    def __init__(self, trial: str, message: str) -> None:
        super().__init__(message)
        self.trial = trial


class CandidateModules(ABC):
    """What the drill asks of a candidate, on the golden's prompts and slots."""

    def __init__(self, candidate: Any, inputs: Sequence[Artifact]) -> None:
        self.candidate, self.inputs = candidate, inputs
        self.fed: dict[str, dict[str, Any]] = {}  # how it ran a trial, as the report shows it

    @abstractmethod
    def heads(self, lm: LanguageModel, layer: int, prompts: Mapping[str, list[int]]) -> dict[str, Tensor]:
        """What enters the output projection of a layer: trial -> (token, n_heads * d_head). Raises OtherTokens."""

    @abstractmethod
    def differences(self, trial: str, ids: Sequence[int], want: Values, share: float) -> list[Difference]:
        """How far the candidate is from the reference at every point of one prompt that both have."""

    def means(self) -> Tensor:
        """The candidate's mean activations, of the run that was looked at if there was one."""
        return cast("Tensor", self.candidate.mean_activations(*map(copied, self.inputs))["mean_activations"])


def modules_of(
    candidate: Implementation, model: nn.Module | None, lm: LanguageModel, inputs: Sequence[Artifact]
) -> CandidateModules:
    """What the candidate offers itself comes first; else it may run the model it was given, and those it keeps, if their
    modules have our names. `lm` is the reference's model."""
    if callable(getattr(candidate, METHOD, None)):
        return Asked(candidate, lm, inputs)
    kept = [getattr(value, "hf", value) for value in getattr(candidate, "__dict__", {}).values()]
    models = [root for root in (model, *kept) if isinstance(root, nn.Module) and hasattr(root, "get_input_embeddings")]
    last = lm.spec.out_proj_path(lm.n_layers - 1)
    fits = {id(root): root for root in models if last in dict(root.named_modules())}
    return Watched(candidate, list(fits.values()), inputs)


class Watched(CandidateModules):
    """The candidate runs its mean_activations, and hooks on its model look on."""

    def __init__(self, candidate: Implementation, models: Sequence[nn.Module], inputs: Sequence[Artifact]) -> None:
        super().__init__(candidate, inputs)
        self.models = models
        self._means: Tensor | None = None

    def heads(self, lm: LanguageModel, layer: int, prompts: Mapping[str, list[int]]) -> dict[str, Tensor]:
        """One run: every prompt's heads, which are small; a model that no tokens entered was not run."""
        module = lm.spec.out_proj_path(layer)
        looks = [_Heads(root, module) for root in self.models]
        self._run(looks)
        ran = next((look for look in looks if look.batches), None)
        if ran is None or not ran.entering:
            name = type(self.candidate).__name__
            raise NotProvided(f"the candidate {name} does not run {module} of the model it was given. {WAYS_OUT}")
        self.models = [ran.root]
        return {trial: self._heads_of(trial, ids, ran, lm) for trial, ids in prompts.items()}

    def _heads_of(self, trial: str, ids: list[int], ran: _Heads, lm: LanguageModel) -> Tensor:
        for batch, heads in ran.entering:
            place = window(batch, ids)
            if place is None:
                continue
            n_rows, width = batch.size
            self.fed[trial] = {
                "n_rows": n_rows,
                "row_length": width,
                "row": place.row,
                "first_position": place.first,
                "attention_mask": "given" if isinstance(batch.mask, list) else batch.mask or "none",
            }
            if fault := place.fault(batch):
                raise OtherTokens(trial, fault)
            return place.of(heads)
        raise OtherTokens(trial, self._other_ids(ids, nearest(ran.batches, ids), trial, lm))

    def _other_ids(self, wanted: list[int], fed: list[int], trial: str, lm: LanguageModel) -> str:
        """In what the nearest row differs, or whose prompt it is."""
        others = {leaf.rpartition("/")[0]: ids for leaf, ids in self.inputs[0].items() if leaf.endswith("/input_ids")}
        if whose := next((name for name, ids in others.items() if ids == fed), None):
            return f"it was never fed, while the prompt {whose} was"
        pairs = zip(wanted, fed, strict=False)
        at = next((i for i, (w, f) in enumerate(pairs) if w != f), min(len(wanted), len(fed)))

        def token(ids: list[int]) -> str:
            return f"{ids[at]} {lm.tokenizer.decode([ids[at]])!r}" if at < len(ids) else "none"

        return (
            f"its {len(wanted)} token ids were never fed in one row; the nearest row has {len(fed)} and differs first at "
            f"position {at}: expected {token(wanted)}, fed {token(fed)}"
        )

    def differences(self, trial: str, ids: Sequence[int], want: Values, share: float) -> list[Difference]:
        """One run, compared on the fly: of the candidate's tensors none is kept."""
        (root,) = self.models
        look = _Differences(root, ids, want, share)
        self._run([look])
        return [look.differences[point] for point in want if point in look.differences]

    def means(self) -> Tensor:
        assert self._means is not None
        return self._means

    def _run(self, looks: Sequence[Passes]) -> None:
        with ExitStack() as stack:
            for look in looks:
                stack.enter_context(hooks_left(look.root))  # what the candidate leaves behind goes too
                stack.enter_context(watch_modules(look.root, look.see))
            self._means = super().means()


class _Heads(Passes):
    """Keeps what enters one module, pass by pass."""

    def __init__(self, root: nn.Module, module: str) -> None:
        super().__init__(root)
        self.module = module
        self.batches: list[Batch] = []
        self.entering: list[tuple[Batch, Tensor]] = []

    def begun(self, batch: Batch) -> None:
        self.batches.append(batch)

    def computed(self, batch: Batch, point: Point, tensor: Tensor) -> None:
        if (point.module, point.side) == (self.module, INPUT):
            self.entering.append((batch, tensor.detach().cpu().clone()))


class _Differences(Passes):
    """Compares what goes on at a prompt's tokens with the reference's values, in the first pass that has the prompt."""

    def __init__(self, root: nn.Module, ids: Sequence[int], want: Values, share: float) -> None:
        super().__init__(root)
        self.ids, self.want, self.share = ids, want, share
        self.differences: dict[Point, Difference] = {}
        self.done = False
        self.place: Window | None = None

    def begun(self, batch: Batch) -> None:
        self.done = self.done or self.place is not None
        self.place = None if self.done else window(batch, self.ids)

    def computed(self, batch: Batch, point: Point, tensor: Tensor) -> None:
        if self.place and point in self.want:
            self.differences[point] = difference(point, self.want[point], self.place.of(tensor), self.share)


class Asked(CandidateModules):
    """The candidate says what its modules compute."""

    def __init__(self, candidate: Any, lm: LanguageModel, inputs: Sequence[Artifact]) -> None:
        super().__init__(candidate, inputs)
        self.lm = lm

    def heads(self, lm: LanguageModel, layer: int, prompts: Mapping[str, list[int]]) -> dict[str, Tensor]:
        name = f"{lm.spec.out_proj_path(layer).removeprefix(f'{lm.spec.block_path(layer)}.')}:{INPUT}"
        try:
            given = self.candidate.block_outputs(copied(self.inputs[0]), layer)
        except NotProvided as error:
            raise NotProvided(f"{error}. {WAYS_OUT}") from error
        for trial, ids in prompts.items():
            fed = [int(token) for token in given.get(f"{trial}/input_ids", ids)]
            if fed != ids:
                raise OtherTokens(trial, f"its token ids are {ids}, fed were {fed}")
        if missing := [leaf for trial in prompts if (leaf := f"{trial}/{name}") not in given]:
            raise NotProvided(f"{METHOD} gives no leaf {missing[0]!r}, what enters the output projection. {WAYS_OUT}")
        return {trial: given[f"{trial}/{name}"].flatten(1) for trial in prompts}

    def differences(self, trial: str, ids: Sequence[int], want: Values, share: float) -> list[Difference]:
        """From the first block on, this prompt alone; no block behind the first that differs is asked for."""
        alone = limited_to(self.inputs[0], [trial])
        rows: list[Difference] = []
        for layer in range(self.lm.n_layers):
            path = self.lm.spec.block_path(layer)
            here = {point: value for point, value in want.items() if f"{point.module}.".startswith(f"{path}.")}
            if not here or any(row.beyond for row in rows):
                break
            given = self._given(alone, layer)
            for point, value in here.items():
                tensor = given.get(f"{trial}/{_leaf(point, path)}")
                if isinstance(tensor, Tensor):
                    rows.append(difference(point, value, _formed(tensor, value), share))
        return rows

    def _given(self, prompts: Artifact, layer: int) -> Mapping[str, Any]:
        with suppress(NotProvided):
            return cast("Artifact", self.candidate.block_outputs(copied(prompts), layer))
        return {}  # a folder may hold the bad layer alone


def _formed(given: Tensor, value: Tensor) -> Tensor:
    """Heads may come as (token, head, d_head): the same numbers in another form."""
    same = given.numel() == value.numel() and given.shape[:1] == value.shape[:1]
    given = given.to(value.device)
    return given.reshape(value.shape) if same else given


def _leaf(point: Point, block: str) -> str:
    """How `block_outputs` names a point; a module's further calls in one pass are numbered from 1."""
    name = point.module.removeprefix(block).removeprefix(".") or BLOCK
    again = f":{point.nth}" if point.nth else ""
    return f"{name}{again}" if point.side == OUTPUT else f"{name}{again}:{INPUT}"
