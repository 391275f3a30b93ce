"""Ways of doing the same work at rising sizes, each in a process of its own, in one table.

``CPU s`` is the processor time of the work alone, all threads together, because a busy machine stretches the
wall clock; ``MiB`` is the peak of resident memory, looked at every 10 ms, above that of the prepared input.
The growth is the slope of log CPU seconds over log size from one size to the next: 1.00 is linear. The first
way is the plain one; ``x plain`` says how many times faster than it a way is at the same size.
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

Prepare = Callable[[str, int], Callable[[], object]]
"""(way, size) to the work itself; imports, input and warm caches belong here. Travels to the processes."""


def sizes_asked(doc: str | None, usual: int = 100_000) -> list[int]:
    """Powers of ten from 1,000 to below the largest size of the command line, then that size."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--largest", type=int, default=usual, help="largest size (default: %(default)s)")
    largest: int = parser.parse_args().largest
    return [*(size for size in (10**n for n in range(3, 9)) if size < largest), largest]


def print_table(ways: Iterable[str], sizes: Iterable[int], prepare: Prepare, unit: str = "pairs") -> None:
    """Measure every way at every size, the plain way first, and print a row of each."""
    spawn = multiprocessing.get_context("spawn")
    print(f"{'way':32}{unit:>10}{'CPU s':>9}{unit + '/s':>11}{'MiB':>8}{'growth':>8}{'x plain':>9}")
    plain: dict[int, float] = {}
    for way in ways:
        last: tuple[int, float] | None = None
        for size in sizes:
            heard, say = spawn.Pipe(duplex=False)
            child = spawn.Process(target=_measure, args=(prepare, way, size, say.send))
            child.start()
            say.close()
            try:
                seconds, mebibytes = heard.recv()
            except EOFError:
                print(f"{way:32}{size:>10,}  ended early, most often for lack of memory", flush=True)
                break
            finally:
                child.join()
            growth = f"{math.log(seconds / last[1]) / math.log(size / last[0]):.2f}" if last else ""
            ratio = f"{plain.setdefault(size, seconds) / seconds:.1f}"
            row = f"{size:>10,}{seconds:>9.3f}{size / seconds:>11,.0f}{mebibytes:>8.0f}{growth:>8}{ratio:>9}"
            print(f"{way:32}{row}", flush=True)
            last = (size, seconds)


def _measure(prepare: Prepare, way: str, size: int, say: Callable[[tuple[float, float]], None]) -> None:
    work = prepare(way, size)
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
