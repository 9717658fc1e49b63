"""The sweep's benchmark measures what it says, counts what it says, and writes its page. Nothing is asserted of time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from fvcore.embedded.random_models import random_lm
from tests.late import RUNNING

if RUNNING:
    import scale_page
    import sweep
    import sweep_costs
    import sweep_page
    import torch
    from sweep_results import About, Curve, Figures, Machine, Products, Run, Timed
    from sweep_world import Size


ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # its scripts know each other by name


def run(app: typer.Typer, *words: object) -> Result:
    sweep.console.width = 200  # a worker's terminal is narrow, and its width was read when the script was imported
    return CliRunner(env={"NO_COLOR": "1", "COLUMNS": "200"}).invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The figures of a whole run on a model of two layers."""
    out = tmp_path_factory.mktemp("figures") / "figures.json"
    options = {"--size": "2x128", "--trials": 2, "--rounds": 2, "--threads": 1, "--heads-timed": 2, "--out": out}
    done = run(sweep.app, *(word for pair in options.items() for word in pair))
    assert done.exit_code == 0, done.output
    assert "engine fast" in done.stdout
    return out


@pytest.mark.slow
def test_a_run_measures_every_library_in_every_round_and_they_agree(measured: Path) -> None:
    (only,) = Figures.read(measured).runs

    assert set(only.libraries) == {"torch_hooks", "exact", "fast"}  # what needs no checkout and no other interpreter
    assert {(t.library, t.n_trials, t.n_heads) for t in only.timed} == {
        ("torch_hooks", 1, 2), ("exact", 1, 2), ("fast", 1, 4), ("fast", 2, 4)
    }  # fmt: skip
    assert all(len(t.seconds) == 2 and min(t.seconds) > 0 for t in only.timed)
    for measured in (only.products, only.looser, only.plain):
        assert [len(products.seconds) for products in measured] == [sweep.N_PRODUCTS] * 2
    assert only.whole_exact_s
    assert only.lengths[0] == 108
    assert set(only.agreement) == {"torch_hooks", "exact"}
    assert max(only.agreement.values()) < 1e-5


@pytest.mark.slow
def test_a_run_takes_the_place_of_the_one_before(measured: Path) -> None:
    figures = Figures.read(measured)
    (only,) = figures.runs
    newer, other = only.model_copy(update={"date": "later"}), only.model_copy(update={"dtype": "bf16"})

    assert figures.having(newer).runs == (newer,)
    assert figures.having(other).runs == (only, other)


@pytest.mark.slow
def test_the_page_is_written_from_the_figures(measured: Path, tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    done = run(sweep_page.app, measured, "--out", page)

    assert done.exit_code == 0, done.output
    text = page.read_text()
    assert "## 2x128: 2 layers x 128, 4 heads, fp32" in text
    assert "| fvcore, engine fast |" in text
    assert "| plain torch hooks | ~" in text  # two heads of four were timed
    assert "one pass a head were timed on 2 of 4 heads" in text
    assert list(tmp_path.iterdir()) == [page]  # no curves, no plot


# ---------------------------------------------------------------- what is counted


def test_flops_are_those_counted_by_hand() -> None:
    """Two layers of four heads, two key-value heads; d_model 32, MLP 64; prompts of 5 and 3 tokens."""
    lm = random_lm("llama")
    vocab = lm.vocab_size
    attention = 32 * 32 + 32 * 16 + 32 * 16 + 32 * 32  # q, k, v, o
    block = attention + 3 * 32 * 64  # gate, up, down

    def flops(products: list[sweep_costs.Product]) -> int:
        return sum(product.flops for product in products)

    head = 32 * vocab * 2 * 9  # eight heads and the prompt itself, twice
    looser = block * (2 * 8 + 2 * 4 + 2 * 8)  # both layers; the heads of the first, on both prompts; all of them
    assert flops(sweep_costs.looser_products(lm, [5, 3])) == 2 * (looser + head)
    # The first layer of the prompts, keys and values of the second, and what follows at the last tokens.
    prompts = block * 8 + 2 * 32 * 16 * 8 + (block - 2 * 32 * 16) * 2
    slices = 32 * 32 * 2 * 2  # of the projection: one token's worth a layer and prompt
    behind = 3 * 32 * 64 * 2 * (4 + 4)  # the MLP of each head's own layer
    above = block * 2 * 4  # the heads of the first layer, in the second
    assert flops(sweep_costs.least_products(lm, [5, 3])) == 2 * (prompts + slices + behind + above + head)
    assert sweep_costs.flops_of_token(lm) == 2 * (2 * block + 32 * vocab)
    assert len(sweep_costs.least_products(lm, [5, 3])) == 2 * 7 + 1  # every weight is read once
    # Both blocks for as many rows as meet them on average, in whole prompts of five tokens.
    ids, of_plain = sweep_costs.plain_pass(lm, [5, 3])
    assert ids.shape == (round((prompts + slices + behind + above) / (2 * block) / 5), 5)
    assert of_plain == 2 * 2 * block * ids.numel()


def test_products_are_those_of_the_models_own_weights() -> None:
    """Conv1D holds its weights the other way round, and its bias is no product."""
    for family in ("llama", "gpt2"):
        lm = random_lm(family)
        products = sweep_costs.least_products(lm, [5])
        own = {weight.data_ptr() for weight in lm.hf.parameters()}

        assert {product.weight.data_ptr() for product in products} <= own
        assert len(sweep_costs.seconds(products, 3)) == 3
        assert products[0].weight.shape[0] == 32  # (in, out)
        assert products[-1].weight.shape == (32, lm.vocab_size)
        assert len(sweep_costs.seconds_of_pass(lm, sweep_costs.plain_pass(lm, [5])[0], 3)) == 3


def test_apart_is_relative_to_the_largest_effect_of_all_heads() -> None:
    fast = torch.zeros(2, 2, 2)
    fast[1, 1, 1] = -0.5
    found = torch.zeros(1, 1, 2)
    found[0, 0, 1] = 0.05

    assert sweep._apart(found, fast) == pytest.approx(0.1)


def timed(library: str, n_trials: int, n_heads: int, seconds: tuple[float, ...], flops: int) -> Timed:
    return Timed(library=library, n_trials=n_trials, n_heads=n_heads, seconds=seconds, flops=flops, memory=10**6)


def made_run(**changed: Any) -> Run:
    """Two layers of four heads: the reference timed on one layer, engine fast on both."""
    libraries = ("reference", "exact", "fast")
    part = (1, 4, (5.0, 1.0, 5.0), 50)
    return Run(
        date="2026-01-01",
        size=Size.named("2x256"),
        dtype="fp32",
        machine=Machine(processor="a", device="cpu", threads=1, python="3", torch="2", transformers="5", busy=0.0),
        libraries={name: About(name=name, version="1", attention="sdpa") for name in libraries},
        lengths=(10, 20),
        timed=(
            timed("reference", *part),
            timed("exact", *part),
            timed("fast", 1, 8, (2.0,), 8),
            timed("fast", 2, 8, (3.0,), 24),
        ),
        products=(
            Products(n_trials=1, n_heads=8, seconds=(1.0, 9.0, 1.0), flops=8),
            Products(n_trials=2, n_heads=8, seconds=(2.0,), flops=24),
        ),
        agreement={"reference": 1e-6, "exact": 2e-6},
        whole_exact_s=None,
        **changed,
    )


def test_what_was_timed_in_part_is_scaled_by_passes_and_by_tokens() -> None:
    made = made_run()

    # 5 passes took 5 s, and 9 are needed; the second prompt is twice as long.
    assert [made.seconds("reference", n) for n in (1, 2)] == [9.0, 27.0]
    assert [made.seconds("fast", n) for n in (1, 2)] == [2.0, 3.0]
    assert [made.ratio("reference", "fast", n) for n in (1, 2)] == [4.5, 9.0]
    assert made.ratio("nnsight", "fast", 1) is None
    assert [made.times_bound("fast", n) for n in (1, 2)] == [2.0, 1.5]
    # 8 FLOPs in 2 s where the products run at 8 a second; the reference makes 10 a second.
    assert [made.share(library, 1) for library in ("fast", "reference")] == [0.5, 1.25]
    assert made.plain_times(1) is None
    # 16 FLOPs in 6 s, where the bound's products take 2 s for as many.
    plain = (Products(n_trials=1, n_heads=8, seconds=(6.0,), flops=16),)
    assert made_run(plain=plain).plain_times(1) == 3.0


def test_a_curve_that_bends_is_seen_and_plotted() -> None:
    def points(*seconds: float) -> Curve:
        steps = enumerate(seconds, start=1)
        least = Products(n_trials=1, n_heads=8, seconds=(0.5,), flops=1)
        return Curve(of="trials", points=tuple((timed("fast", n, 8, (s,), 1), least) for n, s in steps))

    straight, bent = points(3, 5, 7, 9), points(1, 4, 9, 16)

    assert sweep_page.off_straight(straight) < 1e-9
    assert sweep_page.off_straight(bent) > 0.15
    made = made_run(curves=(straight, bent))
    drawn = sweep_page.plot(made)
    assert drawn == sweep_page.plot(made)
    assert b"lower bound" in drawn
    assert "By trials, no point lies further than 0.0% from" in sweep_page.page([made], {made.key: "performance.svg"})


def test_the_page_of_scale_tells_a_line_from_a_parabola(tmp_path: Path) -> None:
    def curve(power: int, bound: int | None = None) -> scale_page.Curve:
        points = [
            scale_page.Point(n=n, seconds=n**power / 1000, memory=10**6 * n, sizes={"html": 40_000})
            for n in (10, 30, 100)
        ]
        return scale_page.Curve(name="`made`", of="trials", bound=bound, points=points)

    line, parabola = curve(1), curve(2, 64 * 10**6)
    scale_page.write_page(
        scale_page.Figures(date="2026-01-01", processor="a", torch="2", curves=[line, parabola]), tmp_path
    )

    assert (line.off, line.exponent("seconds"), parabola.exponent("memory")) == pytest.approx((0, 1, 1), abs=1e-9)
    assert parabola.off > 0.3
    assert parabola.exponent("seconds") == pytest.approx(2)
    page = (tmp_path / "scale.md").read_text()
    assert "|100|0.1|1|100|40|" in page
    assert "**Of 64 MB allowed it took 100.**" in page


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["12x700", "0x768", "gpt2", "12x768x3"])
def test_a_size_that_is_none_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected tiny-llama, llama-3\.1-8b, or layers x width"):
        Size.named(name)


def test_heads_change_and_weights_do_not() -> None:
    size = Size.named("12x768")

    assert [shape.n_heads for shape in sweep.Plan({}, {}, 1, 10, 12, False, True).shapes(size)] == [6, 12, 24, 48]
    with pytest.raises(ValueError, match="no 500 heads"):
        size.with_heads(500)


def test_a_library_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    done = run(sweep.app, "--size", "2x128", "--peers-python", tmp_path / "python")
    assert done.exit_code == 1
    assert "transformer_lens-2: cannot start" in done.stderr

    done = run(sweep.app, "--size", "2x128", "--fv-src", tmp_path)
    assert done.exit_code == 2
    assert "is no checkout of the reference" in " ".join(done.stderr.split())
