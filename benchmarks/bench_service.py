"""Throughput and tail latency of `lore serve`, judge by judge, beside calling the model per request.

    python benchmarks/bench_service.py [--run demo] [--seconds 10]

Takes a finished run, and starts its service on this machine as a user would, with a store of its own. Three
kinds of pairs are asked: those in the cache, those for the student, those for the LLM; of each kind some one
at a time, then at random moments at half the rate of one at a time, then at eight times that rate, which is
too much. Requests leave at their moments, whether or not earlier ones are answered, and latency counts from
there; ``late`` is the 95th percentile of how late they left, for the asking process shares the cores.

``generate`` is what one would write first: transformers' own generate in this process, one thread like the
service's LLM, one pair at a time. ``x plain`` counts only what the judge itself answered, per second, against
it: an answer that the student gave in the LLM's place is degraded, and no gain. Of few requests the p99 is
about their slowest: mind ``requests``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import httpx
import numpy as np
import pandas as pd

from lore_lib.artifacts import read_parquet
from lore_lib.completion import parse
from lore_lib.errors import ArtifactError, EngineError
from lore_lib.features.prompts import neutralise
from lore_lib.rng import generator
from lore_lib.sampling.intervals import Floats
from lore_lib.serving.bundle import FEATURES, Bundle, open_bundle
from lore_lib.serving.load import replay, summary
from lore_lib.serving.service import QueryCounter

ALONE = 25  # requests of each kind that are asked one at a time
RATES = {"half": 0.5, "eightfold": 8.0}  # of the rate of one at a time
MOST = 10_000  # requests in a row of the table
START_S, END_S = 120.0, 15.0
PLAIN = "generate"


def pairs_by_judge(bundle: Bundle) -> dict[str, pd.DataFrame]:
    """query, item_id and the LLM's prompt of the run's pairs, by who is to answer them."""
    prompts, queries = (
        read_parquet(bundle.folder / FEATURES / f"{name}.parquet") for name in ("prompts", "queries")
    )
    pairs = prompts.merge(queries[["query_id", "query"]], on="query_id")[["query", "item_id", "prompt"]]
    shares = bundle.config.serving
    counter = QueryCounter(bundle.counts, shares.head_share, shares.torso_share, MOST)
    stratum = pairs["query"].map(neutralise).map(counter.stratum)
    cached = pd.MultiIndex.from_frame(bundle.scores[["query", "item_id"]])
    scored = pd.MultiIndex.from_frame(pairs[["query", "item_id"]]).isin(cached)
    return {
        "cache": pairs[(stratum == "head") & scored],
        "student": pairs[stratum == "torso"],
        "llm": pairs[stratum == "tail"],
    }


def trace_of(pairs: pd.DataFrame, rate: float, seconds: float, rng: np.random.Generator) -> pd.DataFrame:
    """Pairs at random moments, ``rate`` a second on average, ``MOST`` at most."""
    count = min(MOST, max(2, round(rate * seconds)))
    asked = pairs.iloc[rng.integers(len(pairs), size=count)][["query", "item_id"]].reset_index(drop=True)
    return asked.assign(time_s=np.cumsum(rng.exponential(1 / rate, count)))


def in_turn(latency_ms: Sequence[float]) -> Floats:
    """When each request left, in seconds, if it waited for the one before."""
    return np.cumsum([0.0, *latency_ms[:-1]]) / 1000


def ask_alone(url: str, pairs: pd.DataFrame) -> pd.DataFrame:
    """Answers to pairs asked one at a time."""
    trace = pairs[["query", "item_id"]].assign(time_s=0.0)
    answers = asyncio.run(replay(url, trace, in_turn=len(trace)))
    return answers.assign(time_s=in_turn(answers["latency_ms"].tolist()))


def generate_alone(bundle: Bundle, prompts: Sequence[str]) -> pd.DataFrame:
    """The labels of prompts by transformers' generate, one at a time, with the columns of the others."""
    import torch

    from lore_lib.sampling.engine import chat_text, load_model, load_tokenizer

    model_config, longest = bundle.config.model, bundle.config.sampling.max_completion_tokens
    model = load_model(str(bundle.llm), model_config.dtype, model_config.device)
    tokenizer = load_tokenizer(str(bundle.llm))
    torch.set_num_threads(1)

    def label(prompt: str) -> str:
        inputs = tokenizer(
            chat_text(tokenizer, prompt),
            return_tensors="pt",
            add_special_tokens=False,
            return_attention_mask=True,
        ).to(model.device)
        tokens = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=longest,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[0, inputs["input_ids"].shape[1] :]
        ended = tokens.tolist()[-1:] == [tokenizer.eos_token_id]
        return parse(tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=False)).label

    label(prompts[0])
    rows = []
    for prompt in prompts:
        start = time.perf_counter()
        said = label(prompt)
        rows.append(((time.perf_counter() - start) * 1000, said))
    answers = pd.DataFrame(rows, columns=["latency_ms", "label"]).assign(
        status=200, served_by=PLAIN, degraded=False, reason="", late_ms=0.0
    )
    return answers.assign(time_s=in_turn(answers["latency_ms"].tolist()))


def row_of(judge: str, answers: pd.DataFrame) -> dict[str, float | str]:
    """A row of the table, without the ratio; ``by itself``: answers of the judge that was meant, a second."""
    told = summary(answers)
    good, reasons = answers[answers["status"] == 200], answers.loc[answers["reason"] != "", "reason"]
    why = (reasons.value_counts() / len(answers)).items()
    return {
        "requests": len(answers),
        "offered/s": len(answers) / answers["time_s"].max(),
        "answered/s": told["answered_per_s"],
        "by itself": told["answered_per_s"] * float((good["served_by"] == judge).mean()),
        "p50 ms": told["p50_ms"],
        "p95 ms": told["p95_ms"],
        "p99 ms": told["p99_ms"],
        "late": answers["late_ms"].quantile(0.95),
        "degraded": float(answers["degraded"].mean()),
        "refused": told["refused"],
        "why": ", ".join(f"{reason} {share:.2f}" for reason, share in why),
    }


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def started(command: Sequence[str], url: str, most_s: float = START_S) -> Iterator[None]:
    """A server and all its processes while the block runs; it has ended afterwards, whatever happens.

    Args:
        command: that starts it.
        url: of the server; /readyz answers 200 once it takes requests.
        most_s: that it may take until then.

    Raises:
        EngineError: it ended, or was not ready in time.
    """
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        until = time.monotonic() + most_s
        while not _ready(url):
            if server.poll() is not None or time.monotonic() > until:
                raise EngineError(f"the service was not ready within {most_s:g} s; see its errors above")
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(END_S)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # what it has left behind
        server.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def measure(bundle: Bundle, seconds: float) -> pd.DataFrame:
    """The table, a row per judge and rate."""
    rng, kinds = generator(17, "bench_service"), pairs_by_judge(bundle)
    alone = {judge: pairs.sample(ALONE, replace=True, random_state=17) for judge, pairs in kinds.items()}
    plain = generate_alone(bundle, alone["llm"]["prompt"].tolist())
    rows = {f"{PLAIN}, one at a time": row_of(PLAIN, plain)}
    port = str(free_port())
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lore_lib", "serve", "--run", bundle.config.run, "--port", port]
        with started([*command, "--set", f"service.store=sqlite:///{folder}/scores.sqlite"], url):
            for judge, pairs in kinds.items():
                answers = ask_alone(url, alone[judge])
                rows[f"{judge}, one at a time"] = single = row_of(judge, answers)
                if judge == "llm":
                    same = (answers["label"] == plain["label"]).sum()
                    print(f"service and {PLAIN} give the same label to {same} of {len(plain)} pairs")
                for name, times in RATES.items():
                    trace = trace_of(pairs, times * float(single["answered/s"]), seconds, rng)
                    rows[f"{judge}, {name}"] = row_of(judge, asyncio.run(replay(url, trace)))
    table = pd.DataFrame(rows).T.infer_objects()
    ratio = table["by itself"] / table.loc[f"{PLAIN}, one at a time", "by itself"]
    table.insert(table.columns.get_loc("why"), "x plain", ratio)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", default="demo", help="a finished run (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load (default: %(default)s)")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that the service ends as well
    try:
        bundle = open_bundle(asked.run)
    except ArtifactError as error:
        print(f"not measured: {error}")
        return
    lacking = [judge for judge, pairs in pairs_by_judge(bundle).items() if pairs.empty]
    if lacking:
        print(f"not measured: run {asked.run} has no pairs for {', '.join(lacking)}; take a larger profile")
        return
    print(measure(bundle, asked.seconds).to_string(float_format=lambda value: f"{value:,.2f}"))


if __name__ == "__main__":
    main()
