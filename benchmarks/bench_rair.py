"""Evaluate at rising sizes: the bootstrap of all metrics against scikit-learn called once per resample; and
the cost of the whole official benchmark with a 7B model, reckoned from tokens.

``python benchmarks/bench_rair.py --largest 1000000``
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from ways import print_table, sizes_asked

RESAMPLES = 100
WAYS = ("scikit-learn per resample", "confusion matrices")


def judged(pairs: int) -> pd.DataFrame:
    """Answers to pairs of queries of eight each."""
    rng, labels = np.random.default_rng(0), np.array(["L1", "L2", "L3", "L4"])
    gold = rng.choice(labels, pairs)
    said = np.where(rng.random(pairs) < 0.7, gold, rng.choice(np.append(labels, ""), pairs))
    query = pd.Series(np.arange(pairs) // 8).astype(str)
    return pd.DataFrame({"query_id": query, "gold": gold, "predicted": said})


def prepare(way: str, pairs: int) -> Callable[[], object]:
    from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score

    from lore_lib.rair.metrics import evaluate

    rows = judged(pairs)
    if way == "confusion matrices":
        return lambda: evaluate(rows, RESAMPLES, np.random.default_rng(0))
    codes = {label: level for level, label in enumerate(["L1", "L2", "L3", "L4", ""])}
    gold, said = (rows[name].map(codes).to_numpy() for name in ("gold", "predicted"))
    places = np.arange(pairs).reshape(-1, 8)

    def plain() -> object:
        rng, scores = np.random.default_rng(0), []
        for _ in range(RESAMPLES):
            drawn = places[rng.integers(0, len(places), len(places))].ravel()
            a, b = gold[drawn], said[drawn]
            far = np.where(b == 4, np.where(a < 2, 3, 0), b)
            scores.append(
                (
                    accuracy_score(a, b),
                    accuracy_score(a > 1, np.where(b == 4, a < 2, b > 1)),
                    f1_score(a, b, labels=range(4), average="macro"),
                    cohen_kappa_score(a, far, weights="quadratic"),
                )
            )
        return np.quantile(scores, (0.025, 0.975), axis=0)

    return plain


def official_cost(
    pairs: int = 54_539,
    prompt_tokens: float = 800,
    completion_tokens: float = 120,
    parameters: float = 7.6e9,
    flops: float = 989e12,
    utilisation: float = 0.4,
    bandwidth: float = 3.35e12,
    streams: int = 256,
    cache_bytes: float = 57_344,
) -> pd.Series:
    """Hours of one GPU, by two bounds: arithmetic while reading prompts, memory while writing.

    Reading: 2 x parameters operations per token at a share of the peak. Writing: each step streams the
        weights (2 bytes a
    parameter) and the key-value cache of all streams (57,344 bytes a token: 28 layers x 4 heads x 128 x 2 x
    2 bytes, as Qwen2.5-7B has them) through the memory once.

    Args:
        pairs: of the benchmark, as its paper counts them.
        prompt_tokens: of a pair; the paper's own figure is about 800.
        completion_tokens: of a chain with its label.
        parameters: of the model.
        flops: peak in bf16 of an H100 SXM, dense.
        utilisation: share of the peak that is reached.
        bandwidth: bytes per second of its memory.
        streams: completions written at once.
        cache_bytes: key-value cache of one token.
    """
    reading = pairs * prompt_tokens * 2 * parameters / (flops * utilisation)
    held = streams * (prompt_tokens + completion_tokens / 2) * cache_bytes
    step = (2 * parameters + held) / (bandwidth * 0.7)
    writing = pairs * completion_tokens / streams * step
    return pd.Series(
        {
            "prompt tokens (million)": pairs * prompt_tokens / 1e6,
            "completion tokens (million)": pairs * completion_tokens / 1e6,
            "reading (hours)": reading / 3600,
            "writing (hours)": writing / 3600,
            "together (hours)": (reading + writing) / 3600,
        }
    )


def measured_tokens() -> pd.DataFrame:
    """Characters of the Chinese prompt, and tokens of the bundled one, over RAIR-mini."""
    from lore_lib.config import FeaturesConfig
    from lore_lib.features.build import caption_items
    from lore_lib.features.captioner import PixelCaptioner
    from lore_lib.rair.benchmark import bundled_verticals, load_benchmark
    from lore_lib.rair.systems import asked_pairs
    from lore_lib.sampling.engine import load_tokenizer
    from lore_lib.vertical.definition import load_vertical

    tokenizer, rows = load_tokenizer("data/models/lore-nano"), []
    for name in bundled_verticals():
        benchmark = load_benchmark(f"rair-mini/{name}")
        seen = caption_items(benchmark.tables()["items"], PixelCaptioner(load_vertical(name)))
        for template in ("nano", "en", "zh"):
            asked = asked_pairs(benchmark.tables(), seen, FeaturesConfig(template=template), None)
            tokens = [len(ids) for ids in tokenizer(asked["prompt"].tolist())["input_ids"]]
            rows.append((name, template, asked["prompt"].str.len().mean(), np.mean(tokens)))
    return pd.DataFrame(rows, columns=["vertical", "template", "characters", "lore-nano tokens"])


if __name__ == "__main__":
    print_table(WAYS, sizes_asked(__doc__), prepare)
    print(f"\nPrompts of RAIR-mini\n{measured_tokens().round(0).to_string(index=False)}")
    reckoned = {
        "chain of 120 tokens": official_cost(),
        "label alone (8 tokens)": official_cost(completion_tokens=8),
        "chain of 400 tokens": official_cost(completion_tokens=400),
    }
    print(f"\n54,539 rows, 7.6e9 parameters, one H100\n{pd.DataFrame(reckoned).round(2).to_string()}")
