"""Speed and memory of judging, beside pandas calling the same function row by row.

    python benchmarks/bench_rules.py [--largest 1000000]

Queries of each bundled vertical, four fresh items to each. Verdicts are cached: ``cold`` judges what was
never judged before, ``warm`` the same pairs again; ``pandas apply`` is cold as well. ``ways.py`` says what is
measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pandas as pd
from ways import print_table, sizes_asked

from lore_lib.rng import generator
from lore_lib.vertical.definition import Vertical, load_vertical
from lore_lib.vertical.rules import judge
from lore_lib.vertical.schema import Demand
from lore_lib.vertical.world import World

VERTICALS = ("apparel_home", "beauty_care")
WAYS = [f"{name}: {how}" for name in VERTICALS for how in ("pandas apply", "judge, cold", "judge, warm")]

Pairs = list[tuple[tuple[Demand, ...], dict[str, str]]]


def draw_pairs(name: str, count: int) -> Pairs:
    world, rng = World(load_vertical(name)), generator(17, "bench", name)
    pairs: Pairs = []
    while len(pairs) < count:
        query = world.draw_query(rng)
        pairs += [(query.demands, world.draw_item(query, level, rng).truth) for level in (1, 2, 3, 4)]
    return pairs[:count]


def judge_all(vertical: Vertical, pairs: Pairs) -> list[str]:
    return [judge(vertical, demands, item).label for demands, item in pairs]


def apply_all(vertical: Vertical, frame: pd.DataFrame) -> pd.Series:
    return frame.apply(lambda row: judge(vertical, row["demands"], row["item"]).label, axis=1)


def prepare(drawn: dict[str, Pairs], way: str, count: int) -> Callable[[], object]:
    name, _, how = way.partition(": ")
    vertical, pairs = load_vertical(name), drawn[name][:count]
    if how == "pandas apply":
        return functools.partial(apply_all, vertical, pd.DataFrame(pairs, columns=["demands", "item"]))
    if how == "judge, warm":
        judge_all(vertical, pairs)
    return functools.partial(judge_all, vertical, pairs)


if __name__ == "__main__":
    sizes = sizes_asked(__doc__)
    every = {name: draw_pairs(name, sizes[-1]) for name in VERTICALS}
    for name in VERTICALS:
        ways = [way for way in WAYS if way.startswith(name)]
        print_table(ways, sizes, functools.partial(prepare, every))
