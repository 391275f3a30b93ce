"""The official RAIR rows, streamed through the same systems and scores; a block in memory at a time.

**A leak to know of.** ``rule_list``, the rules that the annotators applied, mostly ends with the level they
come to ("... 判定为L4"). With it in the prompt a model may read the answer off. It stays out unless asked
for, and what is then measured is another task: :func:`names_its_label` says how often the text gives the
level away.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lore_lib.config import FeaturesConfig
from lore_lib.errors import DataError
from lore_lib.rair.metrics import align
from lore_lib.rair.systems import System, answer_all, asked_pairs
from lore_lib.vertical.adapters.rair import SUBSETS, read_batches
from lore_lib.vertical.adapters.rows import ReadReport
from lore_lib.vertical.contract import Tables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REFERENCE = "chenJi/RAIR"
"""What answers are for. The data carry no version: note when and which copy you fetched."""

_LEVEL = re.compile(r"L[1-4]")


def official_blocks(
    folder: Path | None,
    features: FeaturesConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    subsets: Collection[str] = tuple(SUBSETS),
    block_pairs: int = 2000,
    with_rules: bool = False,
    report: ReadReport | None = None,
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """What systems are asked and the gold labels, block by block.

    The picture's line is ``vqa_result``, what a model saw in it; pictures themselves are not read.

    Args:
        folder: a local copy, or None to stream from the hub; see
            :func:`lore_lib.vertical.adapters.rair.read_batches`.
        features: template ("zh" for these rows) and budget of the prompts.
        tokenizer: counts the tokens of the budget.
        subsets: of the data set's configs.
        block_pairs: pairs of a block.
        with_rules: put each pair's ``rule_list`` into its prompt, levels and all.
        report: counts what was odd about the rows.

    Yields:
        Frames of ``systems.ASKED_COLUMNS``, and of pair_id, query_id, label, subset, names_label.

    Raises:
        DataError: as ``read_batches``.
    """
    for tables in read_batches(folder, subsets, block_pairs, pictures=False, report=report):
        pairs, seen = tables["pairs"], tables["items"].set_index("item_id")["vqa_result"]
        asked = asked_pairs(tables, seen, features, tokenizer)
        if with_rules:
            shown = _with_rules(tables, seen, features, tokenizer)
            asked = asked.assign(prompt=shown["prompt"], instruction=shown["instruction"])
        gold = pairs[["pair_id", "query_id", "label", "subset"]]
        yield asked, gold.assign(names_label=names_its_label(pairs))


def names_its_label(pairs: pd.DataFrame) -> list[bool]:
    """Whether the one level that a pair's ``rule_list`` names is the gold label: it gives the answer away."""
    levels = [set(_LEVEL.findall(text)) for text in pairs["rule_list"]]
    return [named == {label} for named, label in zip(levels, pairs["label"], strict=True)]


def _with_rules(
    tables: Tables, seen: pd.Series, features: FeaturesConfig, tokenizer: PreTrainedTokenizerBase | None
) -> pd.DataFrame:
    """Prompts with the rules of each pair; rules belong to queries elsewhere, so each pair gets its own
    query."""
    pairs = tables["pairs"]
    queries = pairs.merge(tables["queries"].drop(columns="split"), on="query_id")
    own = {
        **tables,
        "pairs": pairs.assign(query_id=pairs["pair_id"]),
        "queries": queries.assign(query_id=queries["pair_id"]),
    }
    rules = {
        pair_id: [line.strip() for line in text.splitlines() if line.strip()]
        for pair_id, text in zip(pairs["pair_id"], pairs["rule_list"], strict=True)
    }
    return asked_pairs(own, seen, features, tokenizer, rules)


def judge_official(
    systems: Sequence[System],
    blocks: Iterator[tuple[pd.DataFrame, pd.DataFrame]],
    out: Path,
    workers: int = 1,
    limit: int = 0,
) -> dict[str, pd.DataFrame]:
    """Every system's answers beside the gold labels, as :func:`lore_lib.rair.metrics.align` puts them.

    A killed evaluation goes on at the block it was in. Of a block only labels stay in memory.

    Args:
        systems: of different names.
        blocks: from :func:`official_blocks`.
        out: keeps the answers, one folder per block.
        workers: processes at once.
        limit: stop after the block that reaches so many pairs; 0 reads all.

    Raises:
        DataError: no rows, or as :func:`lore_lib.rair.systems.answer_all`.
    """
    judged: dict[str, list[pd.DataFrame]] = {system.name: [] for system in systems}
    read = 0
    for number, (asked, gold) in enumerate(blocks):
        answers = answer_all(systems, asked, out / f"block-{number:05d}", REFERENCE, workers, len(asked))
        for name, part in answers.groupby("system", sort=False):
            judged[str(name)].append(align(part[["pair_id", "label"]], gold))
        read += len(asked)
        if limit and read >= limit:
            break
    if not read:
        raise DataError("no rows to judge; check the folder and its subsets")
    return {name: pd.concat(parts, ignore_index=True) for name, parts in judged.items()}
