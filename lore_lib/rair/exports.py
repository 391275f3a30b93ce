"""What other evaluation tools read: TREC qrels and runs, results and a task of lm-evaluation-harness."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import yaml

from lore_lib.artifacts import atomic_write_text, write_jsonl
from lore_lib.completion import render_answer
from lore_lib.errors import DataError
from lore_lib.rair.benchmark import Benchmark
from lore_lib.rair.metrics import UNPARSED
from lore_lib.vertical.schema import LABELS

GAIN: Mapping[str, int] = {label: level for level, label in enumerate(LABELS)}
"""Relevance grade of a label in qrels, 0 to 3; trec_eval takes 1 and more as relevant, so pass it -l 2 (L3,
L4)."""


def trec_qrels(benchmark: Benchmark) -> str:
    """Judgements as trec_eval reads them: "query 0 item grade" a line; a blank in an id becomes %20."""
    rows = benchmark.rows
    keys = zip(rows["query_id"].map(_word), rows["item_id"].map(_word), rows["label"], strict=True)
    return "".join(f"{query} 0 {item} {GAIN[label]}\n" for query, item, label in keys)


def trec_run(judged: pd.DataFrame, benchmark: Benchmark, tag: str) -> str:
    """Each query's items ranked by the level a system gave them: "query Q0 item rank score tag" a line.

    Level 4 is the best, an answer that could not be read is 0. Four levels tie often; ties stand in the
    order of item ids, and trec_eval breaks them in its own way: compare rankings only where ties are few, or
    give scores.

    Args:
        judged: from :meth:`Benchmark.judged`.
        benchmark: which pair is which query and item.
        tag: the run's name, without blanks.

    Raises:
        DataError: a tag with blanks, which would shift the columns.
    """
    if not tag or tag.split() != [tag]:
        raise DataError(
            f"the run's tag is {tag!r}; give one word, such as {'_'.join(tag.split()) or 'grpo'!r}"
        )
    items = benchmark.rows.set_index("pair_id")["item_id"]
    score = judged["predicted"].map({label: level + 1 for label, level in GAIN.items()} | {UNPARSED: 0})
    rows = judged.assign(item_id=judged["pair_id"].map(items), score=score)
    rows = rows.sort_values(["query_id", "score", "item_id"], ascending=[True, False, True])
    rows["rank"] = rows.groupby("query_id").cumcount() + 1
    names = rows["query_id"].map(_word), rows["item_id"].map(_word)
    keys = zip(*names, rows["rank"], rows["score"], strict=True)
    return "".join(f"{query} Q0 {item} {rank} {score} {tag}\n" for query, item, rank, score in keys)


def _word(name: str) -> str:
    """An id as one word: a blank would shift the columns, a line break would make a line."""
    return re.sub(r"\s", lambda blank: quote(blank[0]), name)


def write_exports(
    folder: Path,
    benchmark: Benchmark,
    judged: pd.DataFrame,
    table: pd.DataFrame,
    prompts: pd.Series,
    system: str,
) -> list[Path]:
    """Write everything of this module for one system; returns the paths.

    Args:
        folder: gets qrels.txt, <system>.run, <system>.json, and the task's two files.
        benchmark: the pairs.
        judged: the system's answers, from :meth:`Benchmark.judged`.
        table: its scores, from :func:`lore_lib.rair.metrics.score_table`.
        prompts: ``pair_id`` -> the user's turn.
        system: its name, one word.
    """
    texts = {
        "qrels.txt": trec_qrels(benchmark),
        f"{system}.run": trec_run(judged, benchmark, system),
        f"{system}.json": harness_results(table, benchmark, system),
    }
    written = [atomic_write_text(folder / name, text) for name, text in texts.items()]
    return [*written, write_task(benchmark, prompts, folder)]


def task_name(benchmark: Benchmark) -> str:
    """Name of the harness task, such as "rair_mini_apparel_home"."""
    return benchmark.name.replace("/", "_").replace("-", "_")


def harness_results(table: pd.DataFrame, benchmark: Benchmark, model: str) -> str:
    """Scores as lm-evaluation-harness writes its results file: one task per subset, and one for all.

    The standard error is a quarter of the width of the 95 % interval over queries, near enough for its
    tables.

    Args:
        table: from :func:`lore_lib.rair.metrics.score_table`.
        benchmark: what was judged.
        model: the system's name.
    """
    results: dict[str, dict[str, Any]] = {}
    samples: dict[str, dict[str, int]] = {}
    for subset, part in table.groupby("subset", sort=False):
        task = task_name(benchmark) + ("" if subset == "all" else f"_{subset}")
        scores: dict[str, Any] = {"alias": task}
        ends = zip(part["metric"], part["value"], part["low"], part["high"], strict=True)
        for metric, value, low, high in ends:
            scores[f"{metric},none"] = float(value)
            known = math.isfinite(high - low)  # the interval over one query is not
            scores[f"{metric}_stderr,none"] = float(high - low) / 4 if known else "N/A"
        results[task] = scores
        count = int(part["n"].iloc[0])
        samples[task] = {"original": count, "effective": count}
    names = list(table["metric"].unique())
    whole = {
        "results": results,
        "versions": dict.fromkeys(results, benchmark.reference),
        "n-shot": dict.fromkeys(results, 0),
        "higher_is_better": {task: dict.fromkeys(names, True) for task in results},
        "n-samples": samples,
        "config": {"model": model},
    }
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)


def write_task(benchmark: Benchmark, prompts: pd.Series, folder: Path) -> Path:
    """Write a task that lm-evaluation-harness loads with a local file; returns its YAML.

    ``lm_eval --model ... --tasks <name> --include_path <folder>``. It asks with the kit's prompts, reads the
    label after ``</think>`` (or in an answer without reasoning) and scores exact match, which is acc@4. Take
    the logged samples to ``lore score`` for the other scores and the intervals.

    Args:
        benchmark: the pairs.
        prompts: ``pair_id`` -> the user's turn.
        folder: gets <name>.yaml and <name>.jsonl; the YAML holds the absolute path of the latter.
    """
    name = task_name(benchmark)
    rows = [
        {
            "pair_id": row["pair_id"],
            "subset": row["subset"],
            "prompt": prompts[row["pair_id"]],
            "label": row["label"],
            "answer": render_answer(row["label"], row["mismatch"]),
            "benchmark": benchmark.reference,
        }
        for row in benchmark.rows.to_dict("records")
    ]
    data = write_jsonl(folder / f"{name}.jsonl", rows)
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{label}}",
        "target_delimiter": "\n",
        "generation_kwargs": {
            "do_sample": False,
            "temperature": 0.0,
            "max_gen_toks": 1024,
            "until": ["<|im_end|>"],
        },
        "filter_list": [
            {
                "name": "label",
                "filter": [
                    {"function": "regex", "regex_pattern": LABEL_PATTERN, "fallback": "unparsable"},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "num_fewshot": 0,
        "metadata": {"version": benchmark.version, "benchmark": benchmark.reference},
    }
    return atomic_write_text(
        folder / f"{name}.yaml", yaml.safe_dump(task, sort_keys=False, allow_unicode=True)
    )


LABEL_PATTERN = (
    r"^(?:\s*<think>(?:(?!</?think>)[\s\S])*</think>)?\s*\[(L[1-4])(?:(?<=L2)-[A-Za-z/ ]+ Mismatch)?\]\s*$"
)
"""The label of a well-formed completion: what :func:`lore_lib.completion.parse` reads, but for the
mismatch's name."""
