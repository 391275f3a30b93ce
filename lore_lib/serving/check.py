"""The simulation beside the real thing: the same trace predicted, then asked of a running service."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lore_lib.errors import DataError
from lore_lib.serving.app import build_app, running
from lore_lib.serving.bundle import Bundle, start_service
from lore_lib.serving.load import one_by_one, replay_apart

REST_S = 0.5  # between what is asked alone and the trace


def ask_the_service(bundle: Bundle, alone: pd.DataFrame, gap_s: float, trace: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Start the service of a bundle in this process, ask it from another one, and stop it.

    Args:
        bundle: what is served.
        alone: query, item_id: asked one at a time first, which measures each judge without a queue.
        gap_s: seconds between two of these; longer than an answer takes.
        trace: time_s, query, item_id, asked at those moments.

    Returns:
        "alone" and "trace": a row per answer, as `load.replay` gives them.
    """
    first = one_by_one(alone, gap_s)
    start_s = len(first) * gap_s + REST_S
    both = pd.concat([first, trace.assign(time_s=trace["time_s"] + start_s)], ignore_index=True)
    app = build_app(lambda: start_service(bundle, tell=print), bundle.config.service)
    with running(app) as url:
        answers = replay_apart(url, both)
    return {"alone": answers.iloc[: len(first)], "trace": answers.iloc[len(first) :].reset_index(drop=True)}


def side_by_side(predicted: pd.DataFrame, measured: pd.DataFrame, span_s: Mapping[str, float]) -> pd.DataFrame:
    """What was predicted, what was measured, and by how much the prediction was off.

    Args:
        predicted, measured: latency_ms, served_by; a row per answered request.
        span_s: seconds from the first request to the last answer, of "predicted" and "measured".

    Returns:
        quantity, predicted, measured, error: predicted / measured - 1, of shares the difference.

    Raises:
        DataError: one of them holds no answers.

    Example:
        >>> rows = pd.DataFrame({"latency_ms": [1.0, 3.0], "served_by": ["cache", "llm"]})
        >>> side_by_side(rows, rows, {"predicted": 4.0, "measured": 5.0}).iloc[0].tolist()
        ['answers per second', 0.5, 0.4, 0.25]
    """
    if predicted.empty or measured.empty:
        raise DataError(f"{len(predicted)} predicted and {len(measured)} measured answers; 1 or more of both")
    rows = []
    for name, answers in (("predicted", predicted), ("measured", measured)):
        kinds = answers.groupby("served_by")["latency_ms"]
        row = {"answers per second": len(answers) / span_s[name], "hit rate": (answers["served_by"] == "cache").mean()}
        row |= {f"p{level} ms": answers["latency_ms"].quantile(level / 100) for level in (50, 95)}
        row |= {f"p{level} ms | {kind}": ms.quantile(level / 100) for kind, ms in kinds for level in (50, 95)}
        rows.append(pd.Series(row, name=name))
    table = pd.concat(rows, axis=1).dropna()
    relative = table["predicted"] / table["measured"] - 1
    shares = table.index == "hit rate"
    table["error"] = np.where(shares, table["predicted"] - table["measured"], relative)
    return table.rename_axis("quantity").reset_index()
