"""Ways of doing the same work at rising sizes, each in a process of its own, in one table.

``CPU s`` is the processor time of the work alone, because a busy machine stretches the wall clock; ``MB`` is
the peak of resident memory, looked at every 10 ms, above that of the prepared input. The growth is the slope
of log CPU seconds over log pairs from one size to the next: 1.00 is linear.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable

import psutil

SIZES = (1_000, 10_000, 100_000)

Prepare = Callable[[str, int], Callable[[], object]]
"""(way, pairs) to the work itself; imports, input and warm caches belong here. Travels to the processes."""


def sizes_asked(doc: str | None) -> list[int]:
    """The sizes of the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of pairs, rising")
    return sorted(parser.parse_args().sizes)


def print_table(ways: Iterable[str], sizes: Iterable[int], prepare: Prepare) -> None:
    """Measure every way at every size and print a row of each."""
    spawn = multiprocessing.get_context("spawn")
    print(f"{'way':32}{'pairs':>10}{'CPU s':>9}{'pairs/s':>11}{'MB':>8}{'growth':>8}")
    for way in ways:
        last: tuple[int, float] | None = None
        for pairs in sizes:
            heard, say = spawn.Pipe(duplex=False)
            child = spawn.Process(target=_measure, args=(prepare, way, pairs, say.send))
            child.start()
            say.close()
            seconds, megabytes = heard.recv()
            child.join()
            growth = f"{math.log(seconds / last[1]) / math.log(pairs / last[0]):.2f}" if last else ""
            rate = f"{pairs / seconds:,.0f}"
            print(f"{way:32}{pairs:>10,}{seconds:>9.3f}{rate:>11}{megabytes:>8.0f}{growth:>8}", flush=True)
            last = (pairs, seconds)


def _measure(prepare: Prepare, way: str, pairs: int, say: Callable[[tuple[float, float]], None]) -> None:
    work = prepare(way, pairs)
    gc.collect()
    process, over = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss]

    def watch() -> None:
        while not over.wait(0.01):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    made = work()
    seconds = time.process_time() - start
    over.set()
    watcher.join()
    seen.append(process.memory_info().rss)
    del made  # what was made counts as well
    say((seconds, (max(seen) - seen[0]) / 2**20))
