"""What a run's rows say together: the numbers that gates judge, the metrics by the plan's names, and their intervals."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean, pstdev
from typing import Any

from fvcore.experiments.select_kv import gates
from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.gates import REL_KL_EPS
from fvcore.experiments.select_kv.schemas import Arm, Number, OffRow, OnRow, finite, number
from fvcore.experiments.statistics import Interval, bootstrap_interval, percentile, share_interval

SMALL_DIVERGENCE = 1e-4
"""Nats between base and teacher below which a ratio of the two says little."""

ROUNDTRIP_WARNING = 0.01
REDUCTIONS = ("stress", "typical")


@dataclass(frozen=True)
class Summary:
    """A run as its rows have it.

    rotation: `rotation_error`, `rotation_max` and `block_kl`; None where nothing is rotated
    """

    settings: Phase2
    on: Sequence[OnRow]
    off: Sequence[OffRow]
    rotation: Mapping[str, Number] | None

    def arms(self, name: str) -> list[Arm]:
        return [row.arms[name] for row in self.on]

    def accuracy(self, name: str) -> float:
        return fmean(arm.hit for arm in self.arms(name))

    def mean(self, name: str, of: str) -> float:
        """The mean over ON samples of an arm's number."""
        return mean(getattr(arm, of) for arm in self.arms(name))

    @property
    def random_accs(self) -> tuple[float, ...]:
        """Of each trial, over samples."""
        return tuple(fmean(arm.hit for arm in trial) for trial in zip(*(row.random for row in self.on), strict=True))

    @property
    def n_off_unique(self) -> int:
        """Prompts that do not read the same."""
        return len({(row.text, row.group) for row in self.off})

    @property
    def on_arms(self) -> list[str]:
        return list(self.on[0].arms)

    @property
    def off_arms(self) -> list[str]:
        return list(dict.fromkeys(arm for row in self.off for arm in row.arms))

    def off_deltas(self, arm: str, reduction: str) -> list[float]:
        """Of each OFF prompt that was asked on a state."""
        return [number(getattr(row.arms[arm], reduction)) for row in self.off if arm in row.arms]

    def off_p99(self, arm: str, reduction: str | None = None) -> float:
        """Under the reduction that the gate uses, if none is named."""
        return nearest_rank(self.off_deltas(arm, reduction or self.settings.thresholds.off_delta_reduction))

    @property
    def off_ratio(self) -> float:
        """How much less than the whole demo the selected tokens disturb."""
        full = self.off_p99("full")
        return self.off_p99("select") / full if full else math.nan

    def off_accuracy(self, arm: str) -> float | None:
        """None where no prompt has an answer."""
        shares = [row.arms[arm].accuracy for row in self.off if arm in row.arms]
        known = [share for share in shares if share is not None]
        return fmean(known) if known else None

    @property
    def off_base_accuracy(self) -> float | None:
        known = [row.base_hit for row in self.off if row.base_hit is not None]
        return fmean(known) if known else None

    @property
    def eps_noise(self) -> float:
        """The mean KL between two base runs of the first prompts of both sides."""
        return mean([*(one for row in self.on for one in row.noise), *(one for row in self.off for one in row.noise)])

    def repro_diff(self, hit: str, arm: str) -> float:
        """The largest difference between the accuracies of the repetitions."""
        repeats = zip(*(row.repeats for row in self.on), strict=True)
        accuracies = [self.accuracy(arm), *(fmean(getattr(one, hit) for one in repeat) for repeat in repeats)]
        return max(accuracies) - min(accuracies)

    @property
    def rel_kl_ratio_of_means(self) -> float:
        return self.mean("select", "kl_teacher") / (mean(row.base_teacher_kl for row in self.on) + REL_KL_EPS)

    def thresholds(self) -> gates.Thresholds:
        """Those of the settings; the three eps from floors, multipliers and noise."""
        given = self.settings.thresholds
        # The noise first: where it is NaN, so is what is derived of it.
        eps_null = max(given.eps_null_multiplier * self.eps_noise, given.eps_null_floor)
        cache = max(given.eps_teacher_cache_multiplier * self.eps_noise, given.eps_teacher_cache_floor)
        derived = {
            "eps_null": eps_null,
            "eps_nonzero": given.eps_nonzero_multiplier * eps_null,
            "eps_teacher_cache": cache,
            "rotation_max": (self.rotation or {}).get("rotation_max") or gates.ROTATION_MAX,
        }
        names = {one.name for one in fields(gates.Thresholds)}
        return gates.Thresholds(**given.model_dump(include=names), **derived)

    def measured(self) -> gates.Measured:
        base_teacher = mean(row.base_teacher_kl for row in self.on)
        rotated = {} if self.rotation is None else {name: number(value) for name, value in self.rotation.items()}
        return gates.Measured(
            thresholds=self.thresholds(),
            teacher_cache_kl=mean(row.teacher_cache_kl for row in self.on),
            teacher_divergence=mean(row.teacher_base_kl for row in self.on),
            null_kl_on=self.mean("null", "kl_base"),
            null_kl_off=mean(row.null_kl for row in self.off),
            full_effect_kl=self.mean("full", "kl_base"),
            roundtrip_rel_kl=self.mean("full", "kl_teacher") / (base_teacher + REL_KL_EPS),
            repro_full_acc_diff=self.repro_diff("full_hit", "full"),
            repro_select_acc_diff=self.repro_diff("select_hit", "select"),
            acc_base=self.accuracy("base"),
            acc_teacher=self.accuracy("teacher"),
            acc_select=self.accuracy("select"),
            random_accs=self.random_accs,
            off_delta_p99=self.off_p99("select"),
            delta_on_mean=self.mean("select", "kl_base"),
            rel_kl_to_teacher=self.mean("select", "rel_kl"),
            rotation_error=rotated.get("rotation_error"),
            block_kl=rotated.get("block_kl"),
            advisory=self.settings.is_advisory,
        )

    def on_table(self) -> dict[str, dict[str, Number]]:
        """Arm -> its means over ON samples; `random` is the mean over trials and samples."""
        every = {name: self.arms(name) for name in self.on_arms}
        every["random"] = [arm for row in self.on for arm in row.random]
        return {name: _means(arms) for name, arms in every.items()}

    def off_table(self) -> dict[str, dict[str, Number]]:
        """Arm -> percentiles and means over OFF prompts under both reductions, and accuracy where prompts have answers."""
        return {arm: self._off_row(arm) for arm in self.off_arms}

    def _off_row(self, arm: str) -> dict[str, Number]:
        row: dict[str, Number] = {"accuracy": self.off_accuracy(arm)}
        for reduction in REDUCTIONS:
            deltas = self.off_deltas(arm, reduction)
            row[f"p99_{reduction}"] = finite(nearest_rank(deltas))
            row[f"p50_{reduction}"] = finite(nearest_rank(deltas, 50))
            row[f"mean_{reduction}"] = finite(mean(deltas))
        return row

    def intervals(self) -> dict[str, dict[str, Any]]:
        """Of what is a mean over ON samples: shares by Wilson, the rest by bootstrap; none where a number is not finite."""
        seed, on = self.settings.seed, self.on
        differences: dict[str, Sequence[float]] = {
            "on_gain_select": [row.arms["select"].hit - row.arms["base"].hit for row in on],
            "select_minus_random": [row.arms["select"].hit - fmean(arm.hit for arm in row.random) for row in on],
            "delta_on_select": [number(row.arms["select"].kl_base) for row in on],
            "rel_kl_to_teacher_select": [number(row.arms["select"].rel_kl) for row in on],
            "answer_logprob_gain": [number(row.arms["select"].gain) for row in on],
            "off_delta_select": self.off_deltas("select", self.settings.thresholds.off_delta_reduction),
        }
        found = {
            name: bootstrap_interval([float(value) for value in values], seed=seed)
            for name, values in differences.items()
            if all(map(math.isfinite, values))
        }
        for arm in self.on_arms:
            found[f"acc_{arm}"] = share_interval(sum(one.hit for one in self.arms(arm)), len(on))
        return {name: _interval(one) for name, one in found.items()}

    def reproducibility(self) -> dict[str, Any]:
        repeats = [one for row in self.on for one in row.repeats]
        largest = max((number(one.max_abs_logit_diff) for one in repeats), default=0.0)
        return {
            "repro_runs": self.settings.eval.repro_runs,
            "repro_acc_diff_full": self.repro_diff("full_hit", "full"),
            "repro_acc_diff_select": self.repro_diff("select_hit", "select"),
            "repro_max_abs_logit_diff": finite(largest),
            "repro_selection_identical": all(one.same_selection for one in repeats),
        }

    def warnings(self) -> list[str]:
        """What holds and should be known."""
        measured, small = self.measured(), sum(_is_small(row) for row in self.on)
        unasked, fewer = sum(not row.n_states for row in self.off), sum(row.selection.fewer_spans for row in self.on)
        unequal = sum(any(len(one.spans) < len(row.selection.spans) for one in row.selection.random) for row in self.on)
        said = {
            f"roundtrip_rel_kl is {measured.roundtrip_rel_kl:.3g}, above {ROUNDTRIP_WARNING}": (
                measured.roundtrip_rel_kl > ROUNDTRIP_WARNING
            ),
            f"{small} ON samples whose teacher hardly differs from the base": small > 0,
            f"{unasked} OFF prompts are of the group of every state, and were not asked": unasked > 0,
            f"{fewer} ON samples have fewer spans than the budget": fewer > 0,
            f"{unequal} ON samples have a random trial with fewer spans than the selection": unequal > 0,
        }
        return [*self.settings.warnings, *(text for text, holds in said.items() if holds)]

    def metrics(self) -> dict[str, float]:
        """Every run metric by its name; NaN where a number was not finite."""
        measured, judged = self.measured(), gates.Judged.of(self.measured())
        return {
            "phase2_on_acc_base": measured.acc_base,
            "phase2_on_acc_teacher": measured.acc_teacher,
            "phase2_on_acc_student_select": measured.acc_select,
            "phase2_on_acc_student_random_mean": measured.acc_random_mean,
            "phase2_on_gain_select": measured.on_gain,
            "phase2_off_delta_p99_select": measured.off_delta_p99,
            "phase2_delta_on_mean_select": measured.delta_on_mean,
            "phase2_rel_kl_to_teacher_select": measured.rel_kl_to_teacher,
            "phase2_gateA_pass": float(judged.gates["A"].passed),
            "phase2_gateB_pass": float(judged.gates["B"].passed),
            **self._more_on(),
            **self._more_off(),
            **{f"phase2_gateA_{check.name}": check.value for check in judged.gates["A"].checks},
        }

    def _more_on(self) -> dict[str, float]:
        return {
            "phase2_on_acc_student_random_std": pstdev(self.random_accs),
            **{f"phase2_on_acc_student_random_{trial}": acc for trial, acc in enumerate(self.random_accs)},
            **{
                f"phase2_on_acc_student_{arm}": self.accuracy(arm)
                for arm in self.on_arms
                if arm not in {"base", "teacher", "teacher_cached", "select"}
            },
            "phase2_answer_logprob_gain_mean": self.mean("select", "gain"),
            "phase2_rel_kl_to_teacher_select_ratio_of_means": self.rel_kl_ratio_of_means,
            "phase2_rel_kl_to_teacher_select_median": nearest_rank(
                [number(arm.rel_kl) for arm in self.arms("select")], 50
            ),
            "phase2_small_teacher_divergence_count": float(sum(_is_small(row) for row in self.on)),
        }

    def _more_off(self) -> dict[str, float]:
        found = {"phase2_off_ratio": self.off_ratio}
        for reduction in REDUCTIONS:
            deltas = self.off_deltas("select", reduction)
            found[f"phase2_off_delta_p99_{reduction}"] = nearest_rank(deltas)
            found[f"phase2_off_delta_mean_{reduction}"] = mean(deltas)
        for arm in self.off_arms:
            if arm != "select":
                found[f"phase2_off_delta_p99_{arm}"] = self.off_p99(arm)
        accuracies = {"base": self.off_base_accuracy} | {arm: self.off_accuracy(arm) for arm in self.off_arms}
        return found | {f"phase2_off_acc_{arm}": share for arm, share in accuracies.items() if share is not None}


def mean(values: Iterable[Number]) -> float:
    """NaN of nothing, and where one of the values is not finite."""
    found = [number(value) for value in values]
    return fmean(found) if found else math.nan


def nearest_rank(values: Sequence[float], percent: float = 99) -> float:
    """A percentile; NaN of nothing, and where one of the values is NaN, since it has no rank."""
    if not values or any(map(math.isnan, values)):
        return math.nan
    return percentile(values, percent)


def _means(arms: Sequence[Arm]) -> dict[str, Number]:
    of = ("hit", "kept", "kl_base", "kl_teacher", "rel_kl", "gain")
    named = {"hit": "accuracy"}
    return {named.get(name, name): finite(mean(getattr(arm, name) for arm in arms)) for name in of}


def _interval(found: Interval) -> dict[str, Any]:
    return {name: value for name, value in asdict(found).items() if name != "n_groups"}


def _is_small(row: OnRow) -> bool:
    return number(row.base_teacher_kl) < SMALL_DIVERGENCE
