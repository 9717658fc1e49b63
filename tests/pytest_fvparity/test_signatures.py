"""What differences give away: each pattern is told of numbers that have it, and of random ones none is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.late import RUNNING

if RUNNING:
    import torch
    from torch import Tensor

    from fvcore.compare import Tolerance
    from pytest_fvparity.parity.signatures import Numbers, _of_heads, of_artifact, of_numbers
    from pytest_fvparity.selftest.run import catalogue

AXES = ("layer", "head", "slot", "dim")


def numbers(change: Callable[[Any], Any], words: frozenset[int] = frozenset(), seed: int = 0) -> Numbers:
    want = torch.randn(4, 4, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Numbers(want, change(want.clone()), torch.full_like(want, 1e-5), AXES, words)


def adding(*at: Any) -> Callable[[Any], Any]:
    def add(x: Any) -> Any:
        x[at] += torch.rand(x[at].shape, dtype=x.dtype) + 0.5
        return x

    return add


def zeroing(x: Any) -> Any:
    x[1, :, 2:4] = 0
    return x


ALL = slice(None)
PATTERNS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "nan": (lambda x: x / 0, "480 of 480 values are not finite"),
    "zeros": (lambda x: x * 0, "every value is 0"),
    "half": (lambda x: x / 2, "every value is 0.5 times what is expected"),
    "sign": (lambda x: -x, "every value is -1 times what is expected (the sign is reversed)"),
    "offset": (lambda x: x + 0.25, "every value is off by the same 0.25"),
    "differences": (
        lambda x: x.flatten(-2).diff(dim=-1, prepend=torch.zeros(4, 4, 1)).view_as(x),
        "every value is the expected one less that of the head before it",
    ),
    "bias": (lambda x: x + torch.arange(5.0).double(), "every row is off by the same vector, as when a bias"),
    "layers reversed": (lambda x: x.flip(0), "layers are in another order, reversed: layer 0 is layer 3"),
    "heads shifted": (lambda x: x.roll(1, 1), "heads are in another order, shifted: head 0 is head 3"),
    "heads tiled": (lambda x: x[:, [0, 2, 1, 3]], "heads are in another order, as when grouped heads are tiled"),
    "dropped": (zeroing, "40 of 480 values are 0 that should not be, and all others agree"),
    "rounded": (lambda x: x.round(decimals=4), "every value is rounded to 4 decimals"),
    "bf16": (lambda x: x.bfloat16().double(), "every value is one that bf16 holds"),
    "fp16": (lambda x: x.half().double(), "every value is one that fp16 holds"),
    "last slot": (adding(ALL, ALL, -1), "only the last slot differs"),
    "first layer": (adding(0), "only the first layer differs"),
    "one head": (adding(ALL, 2), "only head 2 differs"),
    "all but the first": (adding(ALL, ALL, slice(1, None)), "every slot but the first differs"),
    "every second": (adding(ALL, slice(1, None, 2)), "every second head differs, as when key and value heads"),
    "from a layer": (adding(slice(2, None)), "everything from layer 2 on differs"),
    "from a slot": (adding(ALL, ALL, slice(3, None)), "everything from slot 3 on differs"),
    "tiled": (adding(1, [1, 2]), "only layer 1 differs"),
    "a slot scaled": (
        lambda x: x * torch.tensor([1, 1, 1.1, 1, 1, 1]).double()[:, None],
        "only slot 2 differs; there every value is 1.1 times what is expected",
    ),
    "heads of a layer": (
        lambda x: torch.cat([x[:1], x[1:2, [1, 0, 2, 3]], x[2:]]),
        "only layer 1 differs; there heads are in another order: head 0 is head 1",
    ),
    "tiled and what follows": (lambda x: adding(slice(1, 4, 2))(adding(1, [1, 2])(x)), "every second layer differs"),
    "rounded on the way": (lambda x: x * (1 + 2**-12), "every value is 1.00024 times what is expected"),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_told(name: str) -> None:
    change, told = PATTERNS[name]

    assert (of_numbers(numbers(change)) or "").startswith(told)


def test_words_of_several_tokens_are_told_by_their_slots() -> None:
    words = frozenset({1, 3, 4})

    assert (of_numbers(numbers(adding(ALL, ALL, [1, 4]), words)) or "").startswith("only slots of words with several")
    assert (of_numbers(numbers(adding(ALL, ALL, [1, 2]), words)) or "") == ""


def test_nothing_is_said_of_effects_that_were_not_given() -> None:
    want = {"cie": [1.0], "aie": [1.0], "heads": [[0, 0], [1, 1]]}
    assert "mean does not" in (_of_heads(want, {"cie": [1.0], "aie": [2.0]}, {"aie": 1}) or "")
    assert _of_heads(want, {"aie": [2.0]}, {"aie": 1}) is None
    assert "ranking" in (_of_heads(want, {"aie": [1.0], "heads": [[1, 1], [0, 0]]}, {"heads": 1}) or "")
    assert _of_heads(want, {"heads": [[1, 1], [0, 0]]}, {"heads": 1}) is None


def told_of(key: str, want: dict[str, Any], have: dict[str, Any]) -> str | None:
    return of_artifact(key, want, have, lambda leaf: Tolerance(atol=1e-6), lambda leaf: ("rank",))


def test_the_same_values_in_another_dtype_are_told_as_that_and_nothing_else() -> None:
    want = {"cie": torch.tensor([0.1, 0.2, 0.3]), "scores": torch.tensor([0.3, 0.7, 0.1], dtype=torch.float64)}

    for leaf, value in want.items():
        other = value.double() if value.dtype == torch.float32 else value.float()
        said = f"the same values in another dtype: give {leaf}.to({value.dtype})"
        assert told_of("top_heads", want, want | {leaf: other}) == said
        assert "another dtype" not in (told_of("top_heads", want, want | {leaf: 2 * other}) or "")


def test_of_a_wrong_shape_no_pattern_is_told() -> None:
    want = {"0:0/base_logits": torch.tensor([1.0, 2.0]), "0:0/with_logits": torch.tensor([3.0, 4.0])}

    assert "how strongly" in (told_of("injection_output", want, want | {"0:0/with_logits": torch.ones(2)}) or "")
    assert told_of("injection_output", want, want | {"0:0/with_logits": torch.ones(1, 2)}) is None


def test_nothing_is_dropped_where_nothing_is_wrong() -> None:
    assert of_numbers(numbers(lambda x: x + 1e-7 * torch.rand(x.shape, dtype=x.dtype))) is None


def test_of_random_differences_nothing_is_told() -> None:
    def noise(x: Tensor) -> Tensor:
        return x + torch.rand(x.shape, dtype=x.dtype)

    assert {of_numbers(numbers(noise, frozenset({1}), seed)) for seed in range(10)} == {None}


def test_the_catalogue_holds_every_kind_of_signature() -> None:
    """A fault that must be told of in the headline is missed if it is not (`Fault.met`)."""
    told = [fault.told for fault in catalogue().values() if fault.told]

    words = (
        "average",
        "sign",
        "one another's numbers",
        "BOS",
        "ranking",
        "0.5 times",
        "nll",
        "biases",
        "tiled",
        "from slot",
    )
    for word in words:
        assert any(word in one for one in told), word
