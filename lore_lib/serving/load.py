"""Replay a trace at a running service and time every answer.

Open loop: each request leaves at its own moment, whether or not earlier ones are answered, and its latency
counts from that moment. A client that waits for answers before it asks on would leave out just the requests
that a slow service makes wait (coordinated omission).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from lore_lib.artifacts import read_parquet, write_parquet
from lore_lib.errors import DataError, EngineError

TRACE_COLUMNS = ("time_s", "query", "item_id")
LONGEST_S = 600.0  # of a trace, so that no test runs on
PATIENCE_S = 30.0  # for one answer
TICK_S = 0.001  # an event loop's timer rings up to so late: the last of it is waited for awake
PAIR_PATH = "/v1/relevance"


async def replay(url: str, trace: pd.DataFrame, connections: int = 1000, in_turn: int = 0) -> pd.DataFrame:
    """Ask what the trace asks, when it asks.

    Args:
        url: of the service, such as http://127.0.0.1:8080.
        trace: time_s (rising, from 0), query, item_id.
        connections: held open at most.
        in_turn: so many of the first rows are asked beforehand, one at a time, whatever their time_s: what an
            answer takes when nothing else is asked. The moments of the others count from when these are done.

    Returns:
        One row per request, in order: time_s, late_ms (how late it left: a busy client), latency_ms (from
        when it should have left), status (0: no answer), label, served_by, stratum, degraded, reason.

    Raises:
        DataError: not a trace, or a longer one than `LONGEST_S`.
    """
    import aiohttp

    _check(trace)
    rows: list[tuple[float, float, float, int, str, str, str, bool, str]] = []
    clock = time.perf_counter

    async def ask(moment: float, body: bytes) -> None:
        left = clock()
        status, told = 0, {}
        try:
            async with session.post(PAIR_PATH, data=body) as response:
                told = json.loads(await response.read())
                status = response.status
        except (aiohttp.ClientError, TimeoutError, ValueError):
            status = 0
        due, answer = begun + moment, told if status == 200 else {}
        reason = (
            answer.get("reason", "") if status == 200 else told.get("error", {}).get("reason", "no_answer")
        )
        rows.append(
            (moment, (left - due) * 1000, (clock() - due) * 1000, status, answer.get("label", ""),
             answer.get("served_by", ""), answer.get("stratum", ""), answer.get("degraded", False), reason)
        )  # fmt: skip

    async with aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=connections),
        timeout=aiohttp.ClientTimeout(PATIENCE_S),
        headers={"content-type": "application/json"},
    ) as session:
        bodies = [
            json.dumps({"query": query, "item_id": item_id}).encode()
            for query, item_id in zip(trace["query"], trace["item_id"], strict=True)
        ]
        for body in bodies[:in_turn]:
            begun = clock()
            await ask(0.0, body)
        begun = clock()
        async with asyncio.TaskGroup() as group:
            for moment, body in zip(trace["time_s"].tolist()[in_turn:], bodies[in_turn:], strict=True):
                while (left_s := begun + moment - clock()) > 0:
                    await asyncio.sleep(max(0.0, left_s - TICK_S))
                group.create_task(ask(moment, body))
    columns = ["time_s", "late_ms", "latency_ms", "status", "label", "served_by", "stratum", "degraded"]
    answers = pd.DataFrame(rows, columns=[*columns, "reason"])
    rest = answers.iloc[in_turn:].sort_values("time_s", kind="stable")
    return pd.concat([answers.iloc[:in_turn], rest], ignore_index=True)


def replay_apart(url: str, trace: pd.DataFrame, in_turn: int = 0) -> pd.DataFrame:
    """`replay` in a process of its own, so that asking does not slow down a service in this one.

    Raises:
        EngineError: that process failed.
    """
    _check(trace)
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "trace.parquet", Path(folder) / "answers.parquet"
        write_parquet(trace[list(TRACE_COLUMNS)], asked)
        command = [sys.executable, "-m", "lore_lib", "load", "--url", url]
        command += ["--trace", str(asked), "--out", str(answered), "--in-turn", str(in_turn)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EngineError(f"the load test failed: {done.stderr.strip()[-500:]}")
        return read_parquet(answered)


def summary(answers: pd.DataFrame) -> dict[str, float]:
    """Requests, requests per second answered, p50 and p95 latency, hit rate, and the shares that fell short.

    Refused requests are no answers: they count in `refused` alone.
    """
    good = answers[answers["status"] == 200]
    if good.empty:
        raise DataError(f"none of {len(answers)} requests was answered; is the service up?")
    span_s = (good["time_s"] + good["latency_ms"] / 1000).max() - answers["time_s"].min()
    return {
        "requests": float(len(answers)),
        "answered_per_s": float(len(good) / span_s),
        "p50_ms": float(good["latency_ms"].quantile(0.5)),
        "p95_ms": float(good["latency_ms"].quantile(0.95)),
        "p99_ms": float(good["latency_ms"].quantile(0.99)),
        "hit_rate": float((good["served_by"] == "cache").mean()),
        "degraded": float(good["degraded"].mean()),
        "refused": float((answers["status"] != 200).mean()),
    }


def _check(trace: pd.DataFrame) -> None:
    missing = [name for name in TRACE_COLUMNS if name not in trace]
    if missing or trace.empty:
        raise DataError(
            f"the trace has {len(trace)} rows and lacks {missing or 'nothing'}; give {TRACE_COLUMNS}"
        )
    times = trace["time_s"].to_numpy(dtype=float)
    if times[0] < 0 or (np.diff(times) < 0).any() or not times[-1] <= LONGEST_S:
        raise DataError(f"time_s must rise from 0 to at most {LONGEST_S:g} seconds; it ends at {times[-1]:g}")
