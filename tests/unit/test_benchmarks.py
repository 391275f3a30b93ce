"""`make bench` finds every benchmark, and the ways that are compared do the same work."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from lore_lib.artifacts import read_parquet
from lore_lib.errors import EngineError
from lore_lib.sampling.engine import load_tokenizer
from lore_lib.vertical.definition import Vertical

READY = """
import http.server, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *told):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""


def test_make_bench_runs_every_benchmark(root: Path) -> None:
    recipe = re.search(r"^bench:.*\n((?:\t.*\n)+)", (root / "Makefile").read_text(), flags=re.MULTILINE)
    assert recipe is not None
    assert "benchmarks/bench_*.py" in recipe[1]
    files = {path.name for path in (root / "benchmarks").glob("*.py")}
    others = {name for name in files if not name.startswith("bench_")}
    assert others == {"ways.py", "real_icecat.py"}  # what the benches share; what needs a folder of real data


def test_all_ways_of_judging_give_the_same_labels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    bench: Any = importlib.import_module("bench_rules")
    for name in bench.VERTICALS:
        cold, warm, plain = (bench.prepare(way, 40)() for way in bench.WAYS if way.startswith(name))
        assert cold == warm == plain
        assert cold.total() == 40
        assert len(cold) == 4
    monkeypatch.setattr(bench, "DRAWN", 8)
    few = bench.draw_pairs("apparel_home", 20)
    assert few[:8] == few[8:16]
    assert few[:4] == few[16:]


def test_both_ways_of_generating_write_the_same_rows(
    root: Path, vertical: Vertical, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    bench: Any = importlib.import_module("bench_generate")
    for way in bench.WAYS:
        bench.write(way, vertical, 60, tmp_path / way)
    plain, streamed = (
        [read_parquet(file) for file in sorted((tmp_path / way).iterdir())] for way in bench.WAYS
    )
    for one, other in zip(plain, streamed, strict=True):
        pd.testing.assert_frame_equal(one, other[one.columns], check_dtype=False)


def test_all_ways_of_tokenising_count_the_same_tokens(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    bench: Any = importlib.import_module("bench_tokenise")
    monkeypatch.setattr(bench, "BATCH", 2)
    tokenizer = load_tokenizer(str(root / "data" / "models" / "lore-nano"))
    prompts = [f"query: dress {word}" for word in ("", "navy", "a rather longer one", "red", "€ 30")]
    first, *others = (bench.count(way, prompts, tokenizer) for way in bench.WAYS)
    assert len(set(first)) > 1
    assert all(counted == first for counted in others)


def test_both_ways_of_captioning_name_the_same_colours(
    root: Path, vertical: Vertical, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    bench: Any = importlib.import_module("bench_captions")
    by_hand, by_library = (bench.prepare(way, 40)() for way in bench.WAYS)
    assert by_hand == by_library
    assert by_hand.total() == 40
    assert len(by_hand) > 8


def test_all_ways_of_simulating_serve_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    bench: Any = importlib.import_module("bench_serving")
    monkeypatch.setattr(bench, "QUERIES", 500)
    rows = bench.prepare_simulation("pandas, per request", 5000)()
    sums = bench.prepare_simulation("no queue", 5000)()
    for stratum, level in rows.index:
        assert sums.latency_quantile(level, stratum) == pytest.approx(rows[stratum, level], rel=0.03)
    jobs = [bench.prepare_queue(way, 500)() for way in bench.QUEUES]
    assert jobs[0].finish_s == pytest.approx(jobs[1].finish_s)


def test_both_ways_of_updating_have_the_same_loss(
    root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    bench: Any = importlib.import_module("bench_grpo")
    rollout = bench.rollout_of(12, 0.6)
    rollout = {name: rows % 300 if name.endswith("_ids") else rows for name, rows in rollout.items()}
    plain, lean = (bench.update(bench.trainer_of(way, str(tiny_model)), rollout) for way in bench.WAYS)
    assert abs(plain) > 1e-3
    assert lean == pytest.approx(plain, rel=1e-4)


def test_all_ways_of_tuning_and_of_sampling_do_the_same_work(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    bench: Any = importlib.import_module("bench_train")
    rows = bench.write_rows(tmp_path / "rows.parquet", 6)
    trained = [bench.prepare_tuning(rows, {}, way, 6)() for way in bench.TUNING]
    assert [run.global_step for run in trained] == [1, 1, 1]
    first, *others = (run.training_loss for run in trained)
    assert others == pytest.approx([first] * 2, rel=1e-4)
    loop, drawn = (
        bench.prepare_sampling(root / "data/models/lore-nano", rows, way, 2)()
        for way in (bench.LOOP, bench.ENGINE)
    )
    assert [len(each) for each in loop] == [len(each) for each in drawn] == [8, 8]


def test_the_load_on_the_service_is_bounded_and_its_server_ends(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    bench: Any = importlib.import_module("bench_service")
    pairs = pd.DataFrame({"query": ["dress", "rug"], "item_id": ["1", "2"], "prompt": ["", ""]})
    trace = bench.trace_of(pairs, rate=40.0, seconds=10.0, rng=np.random.default_rng(0))
    assert len(trace) == 400
    assert trace["time_s"].is_monotonic_increasing
    assert trace["time_s"].iloc[-1] == pytest.approx(10, rel=0.2)
    assert len(bench.trace_of(pairs, 1e6, 10.0, np.random.default_rng(0))) == bench.MOST

    alone = pd.DataFrame({"latency_ms": [100.0, 300.0, 400.0, 200.0], "status": [200, 200, 200, 503]})
    alone = alone.assign(served_by=["llm", "llm", "student", ""], degraded=[False, False, True, False])
    alone = alone.assign(reason=["", "", "llm_slow", "overloaded"], late_ms=0.0)
    row = bench.row_of("llm", alone.assign(time_s=bench.in_turn(alone["latency_ms"].tolist())))
    assert row["answered/s"] == pytest.approx(3 / 0.8)
    assert row["by itself"] == pytest.approx(2 / 0.8)
    assert (row["degraded"], row["refused"]) == (0.25, 0.25)
    assert row["why"] == "llm_slow 0.25, overloaded 0.25"

    url = f"http://127.0.0.1:{(port := bench.free_port())}"

    def fail_while_it_runs() -> None:
        with bench.started([sys.executable, "-c", READY, str(port)], url, 30):
            assert httpx.get(url).status_code == 200
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_it_runs()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    with pytest.raises(EngineError, match="not ready"), bench.started([sys.executable, "-c", ""], url, 30):
        pass
