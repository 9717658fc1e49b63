"""Whether a state is of the relation or of the query it was chosen on: asked the queries of other samples of its relation."""

from collections.abc import Sequence
from typing import Any

from fvcore.experiments.select_kv.bench import Bench
from fvcore.experiments.select_kv.compute import Chosen
from fvcore.experiments.select_kv.data import OnSample
from fvcore.experiments.select_kv.points import share
from fvcore.fast.chunks import Advance, silent


def curve(bench: Bench, samples: Sequence[OnSample], advance: Advance = silent) -> dict[str, Any]:
    """Accuracy on the query that chose the state, on others, and on the same others without a state; {} without others.

    An answer that the state's own demo shows is left out: it could be copied.
    """
    own, other, base = list[bool](), list[bool](), list[bool]()
    of_own, of_other = list[str](), list[str]()
    for sample in samples:
        others = [one for one in samples if _is_other(sample, one)]
        if others:
            chosen = Chosen.of(bench, sample)
            prefix = bench.kept(sample, chosen.demo, chosen.selection.indices)
            mine, *theirs = bench.runtime.next_logits([sample.query_ids, *(one.query_ids for one in others)], prefix)
            bare = bench.runtime.next_logits([bench.base_ids(one.query_ids) for one in others])
            own.append(bench.is_hit(sample, mine, sample.query_ids, prefix))
            other += [bench.is_hit(one, said, one.query_ids, prefix) for said, one in zip(theirs, others, strict=True)]
            base += [
                bench.is_hit(one, said, bench.base_ids(one.query_ids), None)
                for said, one in zip(bare, others, strict=True)
            ]
            of_own.append(sample.relation)
            of_other += [sample.relation] * len(others)
        advance(0, 1)
    if not own:
        return {}
    return {"own": share(own, of_own), "others": share(other, of_other), "base": share(base, of_other)}


def _is_other(chosen_on: OnSample, asked: OnSample) -> bool:
    same = chosen_on.relation and asked.relation == chosen_on.relation
    return bool(same and asked.index != chosen_on.index and asked.answer not in chosen_on.demo.text)
