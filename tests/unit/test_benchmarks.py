"""`make bench` finds every benchmark, and the ways that are compared do the same work."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest


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
    drawn = {name: bench.draw_pairs(name, 30) for name in bench.VERTICALS}
    for name in bench.VERTICALS:
        cold, warm, plain = (
            list(bench.prepare(drawn, way, 20)()) for way in bench.WAYS if way.startswith(name)
        )
        assert cold == warm == plain
        assert len(cold) == 20
        assert len(set(cold)) > 2
