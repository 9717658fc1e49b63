"""What was measured, as a file, and what follows from it."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict
from sweep_world import Size

from fvcore.formats import read_json, write_json

LIBRARIES = {
    "reference": "the reference",
    "transformer_lens": "TransformerLens",
    "nnsight": "nnsight",
    "torch_hooks": "plain torch hooks",
    "exact": "fvcore, engine exact",
    "fast": "fvcore, engine fast",
}
"""In the order of the tables."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Machine(_Record):
    processor: str
    device: str
    threads: int
    python: str
    torch: str
    transformers: str
    busy: float  # the share of all processors that others used just before


class About(_Record):
    name: str
    version: str
    attention: str


class Timed(_Record):
    """A library's sweeps, one a round: of the first trials, of all heads of the first layers."""

    library: str
    n_trials: int
    n_heads: int
    seconds: tuple[float, ...]
    flops: int
    memory: int  # bytes beside the model, at most


class Products(_Record):
    """The bare matrix products that a sweep needs at least."""

    n_trials: int
    n_heads: int
    seconds: tuple[float, ...]
    flops: int

    @property
    def rate(self) -> float:
        """FLOPs a second."""
        return self.flops / median(self.seconds)


class Curve(_Record):
    """How the fast engine's cost grows: one of (sweep, products) a point."""

    of: str  # trials or heads
    points: tuple[tuple[Timed, Products], ...]


class Station(_Record):
    """Another station on both engines, one time a round."""

    name: str
    exact: tuple[float, ...]
    fast: tuple[float, ...]
    apart: float  # largest difference, relative to the largest value
    scaled: bool  # exact was timed on a part

    @property
    def times_faster(self) -> float:
        return median(self.exact) / median(self.fast)


class Screened(_Record):
    """What `screened` gives: of the k best heads, and of the heads it did not compute."""

    k: int
    n_heads: int
    n_skipped: int
    recall: float
    seconds: float
    all_seconds: float  # a sweep over all heads of the same trials


class Together(_Record):
    """A sweep with another number of rows that run together, one time a round."""

    n_rows: int
    seconds: tuple[float, ...]


class Part(_Record):
    """A kind of operation, and its share of the time of a sweep."""

    name: str
    share: float


class Further(_Record):
    stations: tuple[Station, ...]
    screened: Screened
    parts: tuple[Part, ...]
    together: tuple[Together, ...] = ()


class Run(_Record):
    """All libraries on one model."""

    date: str
    size: Size
    dtype: str
    machine: Machine
    libraries: dict[str, About]
    lengths: tuple[int, ...]  # tokens of each prompt
    timed: tuple[Timed, ...]
    products: tuple[Products, ...]
    looser: tuple[Products, ...] = ()  # the same by the looser bound
    plain: tuple[Products, ...] = ()  # the model's own pass over as many rows, and its products
    agreement: dict[str, float]  # largest difference from the fast engine's effects, relative to the largest effect
    whole_exact_s: float | None  # a sweep of engine exact over all heads, timed once
    curves: tuple[Curve, ...] = ()
    further: Further | None = None
    remark: str = ""  # what a reader must know of how this run went

    @property
    def key(self) -> tuple[str, str, str]:
        return self.size.name, self.machine.device, self.dtype

    @property
    def n_trials(self) -> tuple[int, ...]:
        return tuple(products.n_trials for products in self.products)

    def timing(self, library: str, n_trials: int) -> Timed | None:
        return next((t for t in self.timed if (t.library, t.n_trials) == (library, n_trials)), None)

    def _whole(self, library: str, n_trials: int) -> tuple[Timed, float]:
        """What was timed, and how many times as much a sweep over all heads of these trials is, by passes and tokens."""
        if timed := self.timing(library, n_trials):
            return timed, (self.size.all_heads + 1) / (timed.n_heads + 1)
        one, times = self._whole(library, 1)
        return one, times * sum(self.lengths[:n_trials]) / self.lengths[0]

    def seconds(self, library: str, n_trials: int) -> float:
        """Of a sweep over all heads: measured, or scaled."""
        timed, times = self._whole(library, n_trials)
        return times * median(timed.seconds)

    def flops(self, library: str, n_trials: int) -> float:
        timed, times = self._whole(library, n_trials)
        return times * timed.flops

    def memory(self, library: str, n_trials: int) -> int:
        """Bytes. Libraries that go one prompt after the other need no more for more."""
        return self._whole(library, n_trials)[0].memory

    def bound(self, n_trials: int) -> Products:
        return next(products for products in self.products if products.n_trials == n_trials)

    def times_bound(self, library: str, n_trials: int) -> float:
        return self.seconds(library, n_trials) / median(self.bound(n_trials).seconds)

    def times_looser(self, library: str, n_trials: int) -> float | None:
        """None where the looser bound was not timed."""
        found = next((products for products in self.looser if products.n_trials == n_trials), None)
        return found and self.seconds(library, n_trials) / median(found.seconds)

    def plain_times(self, n_trials: int) -> float | None:
        """How long the model's own pass takes, by its products at the bound's rate; None where it was not timed."""
        found = next((products for products in self.plain if products.n_trials == n_trials), None)
        return found and self.bound(n_trials).rate / found.rate

    def share(self, library: str, n_trials: int) -> float:
        """What a library reaches, by its own FLOPs, of the rate at which the bare products ran."""
        return self.flops(library, n_trials) / self.seconds(library, n_trials) / self.bound(n_trials).rate

    def ratio(self, slower: str, faster: str, n_trials: int) -> float | None:
        """How many times as long one takes as the other; None if either was left out."""
        if not {slower, faster} <= self.libraries.keys():
            return None
        return self.seconds(slower, n_trials) / self.seconds(faster, n_trials)


class Figures(_Record):
    """The file. One run a model, device and dtype: a newer one takes the older one's place."""

    runs: tuple[Run, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Figures:
        return cls.model_validate(read_json(path))

    def write(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))

    def having(self, run: Run) -> Figures:
        kept = [old for old in self.runs if old.key != run.key]
        return Figures(runs=(*kept, run))
