"""A plan of serving under study: all policies on the same days, the frontier, knobs, and what goes wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
import pandas as pd

from lore_lib.config import ServingConfig
from lore_lib.errors import DataError
from lore_lib.rng import generator
from lore_lib.sampling.intervals import Floats
from lore_lib.serving.latency import ServiceTimes
from lore_lib.serving.population import Population, doubles
from lore_lib.serving.router import POLICIES
from lore_lib.serving.simulate import Pace, pace, simulate
from lore_lib.serving.strata import STRATA, DecayedCounts, stratify
from lore_lib.serving.sweep import Way, changed, over_seeds, sweep
from lore_lib.serving.tally import Tally, contributions
from lore_lib.serving.traffic import ZipfMandelbrot, request_stream

SWEEP_PART = 4  # a sweep simulates a quarter of the days
THRESHOLDS = ((0.005, 0.045), (0.02, 0.18), (0.05, 0.3), (0.1, 0.6))  # head and torso share
UNSURE = (0.1, 0.25, 0.5)  # share of the judged pairs on which the student is least sure
LLM_SHARES = (0.05, 0.15, 0.3)  # of random routing
KNOBS = {
    "Zipf exponent": (0.7, 0.85, 1.0, 1.15, 1.3),
    "drift per day": (0.0, 0.1, 0.3, 1.0),
    "error of the counts (sigma)": (0.0, 0.5, 1.0, 2.0),
}
FIRST = {
    "acc@2": ("acc@2", ".3f"),
    "from_cache": ("cache", ".1%"),
    "from_student": ("student", ".1%"),
    "from_llm": ("LLM", ".1%"),
    "fallback": ("LLM had no time", ".1%"),
    "p95_ms": ("p95 ms", ",.0f"),
    "p99_ms": ("p99 ms", ",.0f"),
    "money_per_million": ("price per million", ",.2f"),
    "student_load": ("student load", ".2f"),
    "llm_load": ("LLM load", ".2f"),
}
"""Numbers of a summary to read first: what they are called, and how they are written."""
SHOWN = {
    "from_cache": "from the cache",
    "from_llm": "from the LLM",
    "fallback": "LLM had no time",
    "misplaced": "misplaced",
    "macro_f1": "macro-F1",
}
"""Numbers that a change of the traffic moves most: what they are called."""
_SETTING = {"drift per day": "drift_per_day", "error of the counts (sigma)": "frequency_noise"}


@dataclass(frozen=True)
class Study:
    """What is served, by whom and how fast; every question about it is a method.

    Args:
        judged: as in `population.doubles`.
        law: popularity of the queries.
        config: the plan.
        times: measured service times.
        seed: of the doubles and of the single runs; sweeps take `config.seeds`.
    """

    judged: pd.DataFrame
    law: ZipfMandelbrot
    config: ServingConfig
    times: ServiceTimes
    seed: int

    @cached_property
    def shares(self) -> Floats:
        """Share of the traffic by rank, (queries,)."""
        return self.law.shares(self.config.queries)

    @cached_property
    def pace(self) -> Pace:
        """The rate that keeps the LLM as busy as planned; the same in all that is compared."""
        return pace(self.config, self.shares, self.times)

    @cached_property
    def population(self) -> Population:
        """The doubles of the single runs."""
        return doubles(self.judged, self.config.queries, generator(self.seed, "doubles"))

    def days(self) -> dict[str, Tally]:
        """The same days under each policy."""
        return {policy: self.serve(self.population, policy, self.config) for policy in POLICIES}

    def past(self, rng: np.random.Generator) -> tuple[pd.Series, pd.Series]:
        """A day's log, and the strata that follow: requests by query, most asked first, and their strata."""
        counts, day = DecayedCounts(self.config.queries, np.inf), self.config.requests / self.config.days
        pairs = np.ones(self.config.queries, dtype=np.int64)
        for chunk in request_stream(self.shares, pairs, self.config, ceil(day), 1.0, day, rng):
            counts.add(chunk.query)
        asked = pd.Series(counts.estimate()).sort_values(ascending=False, kind="stable")
        asked = asked[asked > 0]
        counted = np.asarray(asked, dtype=np.float64)
        codes = stratify(counted, self.config.head_share, self.config.torso_share)
        return asked, pd.Series(np.array(STRATA)[codes], asked.index, name="stratum")

    def table(self, days: Mapping[str, Tally], resamples: int, rng: np.random.Generator) -> pd.DataFrame:
        """The summaries of several policies under one another, with the column policy."""
        rows = [
            tally.summary(self.config, resamples, rng).assign(policy=name) for name, tally in days.items()
        ]
        return pd.concat(rows, ignore_index=True)

    def gains(self, days: Tally, simple: pd.Series, resamples: int, rng: np.random.Generator) -> pd.DataFrame:
        """What each stratum adds when one simple judge answered everything before (see `contributions`).

        Args:
            days: the new way.
            simple: label of each judged pair by the old judge, in the order of `judged`.
        """
        before = doubles(
            self.judged.assign(student_label=simple.to_numpy()),
            self.config.queries,
            generator(self.seed, "doubles"),
        )
        old = self.serve(before, "all student", self.config)
        return contributions(old, days, resamples, rng)

    def frontier(self) -> pd.DataFrame:
        """Each policy at several settings.

        Returns:
            way, policy, the means over seeds of every number of `Tally.summary`, and value, low, high of
            macro-F1.
        """
        ways = {
            f"strata {head:g} + {torso:g}": self.way("stratified", head_share=head, torso_share=torso)
            for head, torso in THRESHOLDS
        }
        for part, below in zip(UNSURE, np.quantile(self.population.confidence, UNSURE), strict=True):
            ways[f"least sure {part:.0%}"] = self.way("confidence", escalate_below=min(float(below), 1.0))
        ways |= {f"random {share:g}": self.way("random", random_llm_share=share) for share in LLM_SHARES}
        ways |= {
            name: self.way(name) for name in ("cache + student", "cache + LLM", "all student", "all LLM")
        }
        found = over_seeds(sweep(self.judged, ways, self.times, self.config.seeds))
        scores = found[found["metric"] == "macro_f1"].set_index("way")[["value", "low", "high"]]
        wide = found.pivot(index="way", columns="metric", values="value").join(scores).loc[list(ways)]
        wide = wide.assign(macro_f1_low=wide["low"], macro_f1_high=wide["high"])
        wide.insert(0, "policy", [way.policy for way in ways.values()])
        return wide.rename_axis(index="way", columns=None).reset_index()

    def sensitivity(self) -> pd.DataFrame:
        """The stratified policy at the same rate when the traffic is another.

        Returns:
            knob, setting, metric, value, low, high, seeds.
        """
        keys = [(knob, setting) for knob, settings in KNOBS.items() for setting in settings]
        ways = {
            f"{knob} {setting:g}": self.way("stratified", **{_SETTING[knob]: setting})
            if knob in _SETTING
            else self.way("stratified")._replace(law=replace(self.law, exponent=setting))
            for knob, setting in keys
        }
        found = over_seeds(sweep(self.judged, ways, self.times, self.config.seeds))
        where = pd.DataFrame(keys, columns=["knob", "setting"]).assign(way=list(ways))
        return where.merge(found, on="way").drop(columns="way")

    def trouble(self) -> pd.DataFrame:
        """The stratified policy when something goes wrong: means over seeds, one row per case."""
        planned = self.way("stratified")
        rush = Pace(planned.at.per_second * 2, planned.at.day_s / 2)
        workers = changed(planned.config, llm_workers=2 * self.config.llm_workers)
        ways = {
            "as planned": planned,
            "twice the traffic": planned._replace(at=rush),
            "and twice the workers": planned._replace(at=rush, config=workers),
            "LLM down for 0.1 day": self.way("stratified", llm_outages=((0.4, 0.5),)),
            "LLM 3 times slower": self.way("stratified", llm_slowdown=3 * self.config.llm_slowdown),
            "changed items keep their scores": self.way("stratified", invalidate=False),
            "counts in a small sketch": self.way(
                "stratified", sketch_width=max(self.config.queries // 50, 1)
            ),
        }
        found = over_seeds(sweep(self.judged, ways, self.times, self.config.seeds))
        wide = found.pivot(index="way", columns="metric", values="value").loc[list(ways)]
        return wide.rename_axis(index="case", columns=None)

    def metrics(self, table: pd.DataFrame) -> list[dict[str, Any]]:
        """What a manifest keeps of `table`: name, value, low, high, n of each policy's main numbers.

        n counts what a number rests on: judged pairs for quality, simulated requests for delay and cost.
        """
        quality = {"acc@2": "acc@2", "macro-F1": "macro_f1", "item GoodRate": "item_goodrate"}
        spent = {"p95 latency (ms)": "p95_ms", "GPU-seconds per million requests": "gpu_s_per_million"}
        return [
            {
                "name": f"{name} | {row['policy']}",
                "value": row[of],
                "low": row.get(f"{of}_low"),
                "high": row.get(f"{of}_high"),
                "n": len(self.judged) if name in quality else int(row["requests"]),
            }
            for _, row in table[table["stratum"] == "all"].iterrows()
            for name, of in (quality | spent).items()
        ]

    def glance(self, **settings: Any) -> tuple[pd.DataFrame, Tally]:
        """A short run of the stratified policy with some settings changed: its summary, and its sums."""
        way = self.way("stratified", **settings)
        tally = simulate(self.population, self.shares, way.policy, way.config, self.times, self.seed, way.at)
        return tally.summary(way.config, 0, np.random.default_rng(0)), tally

    def serve(self, population: Population, policy: str, config: ServingConfig) -> Tally:
        """One run at the study's pace."""
        return simulate(population, self.shares, policy, config, self.times, self.seed, self.pace)

    def way(self, policy: str, **settings: Any) -> Way:
        """One setting of a sweep, at the study's rate; `queries` cannot be changed.

        Raises:
            DataError: another number of queries.
        """
        if "queries" in settings:
            raise DataError("a study has one population; make another Study for other queries.")
        part = {"requests": ceil(self.config.requests / SWEEP_PART), "days": self.config.days / SWEEP_PART}
        config = changed(self.config, **{**part, **settings})
        return Way(policy, config, self.law, self.pace)


def overview(rows: pd.DataFrame) -> pd.DataFrame:
    """The numbers of `Tally.summary` to read first, one column for each row, as text.

    A load is work per second of arrival: of the student on one core, of the LLM as a share of its workers.
    The student is taken to answer at once, so where its load is above 1 the delays want more than one core.
    What the LLM had no time for is part of the student's share.

    Args:
        rows: of one or several summaries, indexed by what is compared.
    """
    spans = rows[["macro_f1", "macro_f1_low", "macro_f1_high"]].itertuples(index=False, name=None)
    told = {"macro-F1": [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in spans]}
    told |= {name: [format(value, form) for value in rows[of]] for of, (name, form) in FIRST.items()}
    return pd.DataFrame(told, index=rows.index).T
