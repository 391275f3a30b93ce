"""Speed and memory of judging, beside pandas calling the same function row by row.

    python benchmarks/bench_rules.py [--largest 1000000]

Queries of each bundled vertical, four fresh items to each; beyond 100,000 pairs they come again. Verdicts are
cached: ``cold`` starts with an empty cache, ``warm`` with a full one; ``pandas apply`` is cold as well.
``ways.py`` says what is measured.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable

import pandas as pd
from ways import print_table, sizes_asked

from lore_lib.rng import generator
from lore_lib.vertical.definition import Vertical, load_vertical, vertical_names
from lore_lib.vertical.rules import judge
from lore_lib.vertical.schema import Demand
from lore_lib.vertical.world import World

VERTICALS = vertical_names()
WAYS = [f"{name}: {how}" for name in VERTICALS for how in ("pandas apply", "judge, cold", "judge, warm")]
DRAWN = 100_000

Pairs = list[tuple[tuple[Demand, ...], dict[str, str]]]


def draw_pairs(name: str, count: int) -> Pairs:
    world, rng = World(load_vertical(name)), generator(17, "bench", name)
    pairs: Pairs = []
    while len(pairs) < min(count, DRAWN):
        query = world.draw_query(rng)
        pairs += [(query.demands, world.draw_item(query, level, rng).truth) for level in (1, 2, 3, 4)]
    return list(itertools.islice(itertools.cycle(pairs[:DRAWN]), count))


def judge_all(vertical: Vertical, pairs: Pairs) -> Counter[str]:
    return Counter(judge(vertical, demands, item).label for demands, item in pairs)


def apply_all(vertical: Vertical, frame: pd.DataFrame) -> Counter[str]:
    return Counter(frame.apply(lambda row: judge(vertical, row["demands"], row["item"]).label, axis=1))


def prepare(way: str, count: int) -> Callable[[], Counter[str]]:
    name, _, how = way.partition(": ")
    vertical, pairs = load_vertical(name), draw_pairs(name, count)
    vertical = vertical.model_copy()  # its engine has judged nothing yet
    if how == "pandas apply":
        return functools.partial(apply_all, vertical, pd.DataFrame(pairs, columns=["demands", "item"]))
    if how == "judge, warm":
        judge_all(vertical, pairs)
    return functools.partial(judge_all, vertical, pairs)


if __name__ == "__main__":
    sizes = sizes_asked(__doc__)
    for name in VERTICALS:
        print_table([way for way in WAYS if way.startswith(name)], sizes, prepare)
