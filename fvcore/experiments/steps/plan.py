"""Which examples Step6 evaluates, in which order: unique queries by default, or drawn with replacement."""

from collections.abc import Sequence
from operator import attrgetter

from fvcore.experiments.folder import Folder
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.scores import grouped
from fvcore.experiments.steps.settings import StepSettings
from fvcore.experiments.steps.zeroshot import Example, read
from fvcore.trials.draws import of_q_id, of_trial


def chosen_examples(folder: Folder, settings: StepSettings) -> list[Example]:
    """Those of the snapshot that are evaluated, as the settings say."""
    pick = with_replacement if settings.with_replacement else unique_queries
    return pick(read(folder / layout.ZERO_SHOT), settings.n_eval, settings.seed)


def unique_queries(examples: Sequence[Example], n_eval: int, seed: int) -> list[Example]:
    """Every prompt at most once: shuffled within its q_id, the q_ids in turn, until `n_eval` or none is left."""
    queues = []
    for q_id, own in grouped(examples, attrgetter("q_id")).items():
        first = {example.corrupted_prompt_str: example for example in reversed(own)}
        queue = [example for example in own if first[example.corrupted_prompt_str] is example]
        of_q_id(seed, q_id).shuffle(queue)
        queues.append(queue)
    rounds = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(rounds) for queue in queues if turn < len(queue)][:n_eval]


def with_replacement(examples: Sequence[Example], n_eval: int, seed: int) -> list[Example]:
    """Exactly `n_eval` examples: the q_ids in turn, each time any example of it."""
    own = grouped(examples, attrgetter("q_id"))
    q_ids = list(own)
    return [of_trial(seed, i).choice(own[q_ids[i % len(q_ids)]]) for i in range(n_eval)]
