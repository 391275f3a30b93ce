"""The simulation beside the real thing: one trace, simulated and then asked of a running service."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lore_lib.config import Config, ServingConfig
from lore_lib.errors import DataError
from lore_lib.sampling.intervals import Floats
from lore_lib.serving.app import build_app, running
from lore_lib.serving.bundle import Bundle, start_service
from lore_lib.serving.latency import ServiceTimes
from lore_lib.serving.load import replay_apart
from lore_lib.serving.population import Population, as_they_are
from lore_lib.serving.router import ROUTES
from lore_lib.serving.service import QueryCounter
from lore_lib.serving.simulate import Server, pace
from lore_lib.serving.traffic import Chunk, Ints, request_stream

PAST_REQUESTS = 20_000  # that name the strata and choose what is cached
HEAD_SHARE, TORSO_SHARE = 0.1, 0.7  # a small tail, so that seconds hold enough requests of every kind
LLM_LOAD = 0.5
ALONE = (
    5,
    20,
)  # least and most requests of each kind that are asked one at a time, one a second of the trace
STEADY = {  # nothing changes within seconds
    **dict.fromkeys(
        ("daily_swing", "bursts_per_day", "drift_per_day", "changed_per_day", "replaced_per_day"), 0.0
    ),
    **{
        "refills_per_day": 1.0,
        "memory_days": 1e9,
        "frequency_noise": 0.0,
        "llm_slowdown": 1.0,
        "llm_outages": (),
    },
}


@dataclass(frozen=True)
class Check:
    """A short trace over the judged pairs, and the past before it.

    Attributes:
        judged: query, item_id, llm_label, in the order of the population's rows.
        population: of the simulation.
        config: of the simulation, with the limits of the real service.
        day_s: seconds of the past.
        past: requests of the past.
        ahead: requests of the trace.
    """

    judged: pd.DataFrame
    population: Population
    config: ServingConfig
    day_s: float
    past: list[Chunk]
    ahead: list[Chunk]

    @property
    def trace(self) -> pd.DataFrame:
        """time_s from 0, query, item_id."""
        asked = self._asked(np.concatenate([chunk.pair for chunk in self.ahead]))
        moments = np.concatenate([chunk.time_s for chunk in self.ahead]) - self.day_s
        return asked[["query", "item_id"]].assign(time_s=moments)

    @property
    def counts(self) -> pd.Series:
        """Past requests by query."""
        asked = self._asked(np.concatenate([chunk.pair for chunk in self.past]))
        return asked["query"].value_counts()

    def scores(self, head: set[str]) -> pd.DataFrame:
        """What the offline job scores, as the simulator has it: head pairs that were asked often enough.

        Args:
            head: its queries.

        Returns:
            query, item_id, label.
        """
        demand = np.bincount(
            np.concatenate([chunk.pair for chunk in self.past]), minlength=len(self.population.row)
        )
        hot = np.argsort(-demand, kind="stable")
        table = self._asked(hot[demand[hot] >= self.config.admit_count])
        table = table[table["query"].isin(head) & (table["llm_label"] != "")].head(self.config.cache_pairs)
        return table[["query", "item_id", "llm_label"]].rename(columns={"llm_label": "label"})

    def _asked(self, pairs: Ints) -> pd.DataFrame:
        return self.judged.iloc[self.population.row[pairs]].reset_index(drop=True)


@dataclass(frozen=True)
class Found:
    """A trace, predicted and measured.

    Attributes:
        predicted, measured: time_s, latency_ms, served_by, and of the measured what else `load.replay` tells.
        table: from `side_by_side`.
    """

    predicted: pd.DataFrame
    measured: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """Side by side; refused requests are left out."""
        return side_by_side(self.predicted, self.measured[self.measured["status"] == 200])

    @property
    def latencies_ms(self) -> dict[str, Floats]:
        """What a figure of both needs."""
        pairs = {"predicted": self.predicted, "measured": self.measured}
        return {name: answers["latency_ms"].to_numpy() for name, answers in pairs.items()}


def compare(
    judged: pd.DataFrame, shares: pd.Series, bundle: Bundle, times: ServiceTimes, rng: np.random.Generator
) -> Found:
    """Plan a trace, ask it of the service, and simulate it with what single requests took there.

    Args:
        judged, shares, times, rng: see `plan`.
        bundle: what is served.
    """
    check = plan(judged, shares, bundle.config, times, rng)
    measured, alone = ask(check, bundle)
    return Found(predict(check, alone, rng), measured)


def plan(
    judged: pd.DataFrame, shares: pd.Series, config: Config, times: ServiceTimes, rng: np.random.Generator
) -> Check:
    """A trace of `serving.check_seconds` at which the service's LLM is `LLM_LOAD` busy, and its past.

    Args:
        judged: query_id, query, item_id, label, llm_label, student_label; pairs the run's catalogue has.
        shares: of the traffic by query_id.
        config: of the run.
        times: measured beforehand; they set the rate.
        rng: source of the requests.

    Raises:
        DataError: no request came, or no query is tail.
    """
    real = config.service
    serving = config.serving.model_copy(
        update=STEADY
        | {"head_share": HEAD_SHARE, "torso_share": TORSO_SHARE, "llm_utilisation": LLM_LOAD, "llm_batch": 1}
        | {"llm_workers": real.llm_workers, "llm_queue_limit": real.llm_queue_limit}
        | {"llm_timeout_s": real.llm_timeout_ms / 1000}
    )
    population = as_they_are(judged, shares)
    table = judged.assign(query_id=judged["query_id"].astype(str)).sort_values("query_id", kind="stable")
    rate = pace(serving, shares.to_numpy(), times).per_second
    day_s = PAST_REQUESTS / rate
    end_s = day_s + serving.check_seconds
    stream = request_stream(
        shares.to_numpy(), population.pairs_per_query, serving, sys.maxsize, rate, day_s, rng
    )  # so many never come: what bounds it is its time
    past, ahead = [], []
    for chunk in itertools.takewhile(lambda chunk: chunk.begin_s < end_s, stream):
        soon = chunk.time_s < end_s
        if chunk.begin_s < day_s:
            past.append(chunk)
        elif soon.any():
            part = {name: getattr(chunk, name)[soon] for name in ("time_s", "rank", "query", "pair")}
            ahead.append(chunk._replace(**part))
    if not ahead:
        raise DataError(
            f"no request came in {serving.check_seconds:g} s at {rate:.2f} a second; raise check_seconds"
        )
    return Check(table, population, serving, day_s, past, ahead)


def ask(check: Check, bundle: Bundle) -> tuple[pd.DataFrame, ServiceTimes]:
    """Start the service in this process, ask it the trace from another one, and stop it.

    Args:
        check: from `plan`.
        bundle: of the run; its counts and scores give way to those of the check.

    Returns:
        A row per answer as `load.replay` gives them, and the times of single requests, asked before.
    """
    trace = check.trace
    with tempfile.TemporaryDirectory() as folder:
        served = _bundle_of(check, bundle, folder)
        alone = _alone(check, served)
        app = build_app(lambda: start_service(served, tell=lambda line: None), served.config.service)
        with running(app) as url:
            both = pd.concat([alone.assign(time_s=0.0), trace], ignore_index=True)
            answers = replay_apart(url, both, in_turn=len(alone))
    asked = answers.iloc[len(alone) :].reset_index(drop=True)
    return asked, _times(answers.iloc[: len(alone)])


def predict(check: Check, times: ServiceTimes, rng: np.random.Generator) -> pd.DataFrame:
    """Simulate the trace.

    Args:
        check: from `plan`.
        times: of single requests.
        rng: source of the drawn times.

    Returns:
        time_s from 0, latency_ms, served_by, in order of the trace.
    """
    server = Server(check.population, "stratified", check.config, times, check.day_s, rng)
    parts = [server.answer(chunk) for chunk in (*check.past, *check.ahead)]
    served = [part for part in (*parts, server.close()) if part is not None]
    rows = pd.concat(
        pd.DataFrame(
            {
                "time_s": part.time_s - check.day_s,
                "latency_ms": part.latency_ms,
                "served_by": np.array(ROUTES)[part.route],
            }
        )
        for part in served
    )
    return rows.sort_values("time_s", kind="stable", ignore_index=True)


def side_by_side(predicted: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """What was predicted, what was measured, and by how much the prediction was off.

    Args:
        predicted, measured: time_s, latency_ms, served_by; a row per answered request.

    Returns:
        quantity, predicted, measured, error: predicted / measured - 1, of shares the difference.

    Raises:
        DataError: one of them holds no answers.

    Example:
        >>> rows = pd.DataFrame({"time_s": [0.0, 1.0], "latency_ms": [5.0, 1000.0]})
        >>> rows["served_by"] = ["cache", "llm"]
        >>> slower = rows.assign(latency_ms=[10.0, 3000.0])
        >>> side_by_side(rows, slower).head(2).values.tolist()
        [['answers per second', 1.0, 0.5, 1.0], ['share from the cache', 0.5, 0.5, 0.0]]
    """
    columns = []
    for name, answers in (("predicted", predicted), ("measured", measured)):
        if answers.empty:
            raise DataError(f"nothing was {name}; give 1 answer or more")
        kinds = answers.groupby("served_by")["latency_ms"]
        end_s = (answers["time_s"] + answers["latency_ms"] / 1000).max()
        row = {"answers per second": len(answers) / (end_s - answers["time_s"].min())}
        row |= {f"share from the {kind}": len(ms) / len(answers) for kind, ms in kinds}
        row |= {f"p{level} ms": answers["latency_ms"].quantile(level / 100) for level in (50, 95)}
        row |= {f"p{level} ms, {kind}": ms.quantile(level / 100) for level in (50, 95) for kind, ms in kinds}
        columns.append(pd.Series(row, name=name))
    table = pd.concat(columns, axis=1).rename_axis("quantity").reset_index()
    difference, shares = table["predicted"] - table["measured"], table["quantity"].str.startswith("share")
    return table.assign(error=np.where(shares, difference, difference / table["measured"]))


def _bundle_of(check: Check, bundle: Bundle, folder: str) -> Bundle:
    """The bundle with the past of the check, and a store of its own."""
    real = bundle.config.service.model_copy(
        update={"store": f"sqlite:///{folder}/scores.sqlite", "llm_batch": 1}
    )
    config = bundle.config.model_copy(update={"serving": check.config, "service": real})
    counts = {str(query): float(count) for query, count in check.counts.items()}
    strata = _strata(check)
    scores = check.scores({query for query, stratum in strata.items() if stratum == "head"})
    dated = scores.assign(version=bundle.catalogue.versions(scores["item_id"]), scored_at=time.time())
    return replace(bundle, config=config, counts=counts, scores=dated)


def _strata(check: Check) -> dict[str, str]:
    counts = {str(query): float(count) for query, count in check.counts.items()}
    counter = QueryCounter(counts, check.config.head_share, check.config.torso_share, PAST_REQUESTS)
    return {query: counter.stratum(query) for query in counts}


def _alone(check: Check, served: Bundle) -> pd.DataFrame:
    """Pairs that each judge will answer, to be asked one at a time: query, item_id."""
    stratum = check.judged["query"].map(_strata(check)).fillna("tail")
    cached = pd.MultiIndex.from_frame(served.scores[["query", "item_id"]])
    hit = pd.MultiIndex.from_frame(check.judged[["query", "item_id"]]).isin(cached)
    kinds = (check.judged[hit], check.judged[stratum == "torso"], check.judged[stratum == "tail"])
    least, most = ALONE
    count = min(most, max(least, round(check.config.check_seconds)))
    picked = [pd.concat([kind] * count).head(count) for kind in kinds]
    return pd.concat(picked, ignore_index=True)[["query", "item_id"]]


def _times(alone: pd.DataFrame) -> ServiceTimes:
    """What single requests took, by kind. A kind without any is not met in the trace: any time will do."""
    student = alone.loc[alone["stratum"] == "torso", "latency_ms"].to_numpy()
    cache = alone.loc[alone["served_by"] == "cache", "latency_ms"].to_numpy()
    llm = alone.loc[alone["stratum"] == "tail", "latency_ms"].to_numpy()
    cache, llm = (ms if len(ms) else student for ms in (cache, llm))
    return ServiceTimes(cache, student, llm, hardware="over HTTP, one at a time")
