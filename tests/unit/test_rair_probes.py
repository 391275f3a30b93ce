"""What drops where, and accuracy by length."""

import numpy as np
import pandas as pd
import pytest

from lore_lib.errors import DataError
from lore_lib.rair.probes import diagonal_table, drop_table, length_table, wide_drops


def pairs(right: list[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "pair_id": [f"p{n}" for n in range(8)],
            "query_id": [f"q{n // 2}" for n in range(8)],
            "kind": ["visual"] * 4 + ["boundary"] * 4,
            "right": np.array(right, bool),
        }
    )


def test_a_drop_is_the_difference_on_the_same_pairs() -> None:
    whole, less = pairs([1, 1, 1, 1, 1, 1, 0, 1]), pairs([0, 1, 0, 0, 1, 1, 0, 1])
    table = drop_table(
        whole, {"vision": less.iloc[::-1]}, ["visual", "knowledge", "boundary"], 200, np.random.default_rng(0)
    )
    assert table[["removed", "group", "drop", "n"]].to_numpy().tolist() == [
        ["vision", "visual", 0.75, 4],
        ["vision", "boundary", 0.0, 4],
    ]
    assert (table["low"] <= table["drop"]).all()
    wide = wide_drops(table)
    assert wide.columns.tolist() == ["visual (n=4)", "boundary (n=4)"]
    assert wide.loc["vision", "visual (n=4)"].startswith("+0.75 [")
    assert wide.loc["vision", "boundary (n=4)"] == "+0.00 [+0.00, +0.00]"


def test_a_loss_is_diagonal_where_it_is_larger_on_the_pairs_that_need_it() -> None:
    """By hand: without vision 3 of 4 visual pairs are lost and 1 of 4 others, without rules 2 of 4 each."""
    many = pd.concat([pairs([1] * 8)] * 20)
    copy = [f"-{at // 8}" for at in range(len(many))]
    many = many.assign(pair_id=many["pair_id"] + copy, query_id=many["query_id"] + copy)
    blind = many.assign(right=[0, 0, 0, 1, 1, 1, 1, 0] * 20)
    lawless = many.assign(right=[0, 1, 0, 1, 0, 1, 0, 1] * 20)
    turned = many.assign(right=[1, 1, 1, 1, 0, 0, 0, 0] * 20)
    needs = {"vision": "visual", "rules": "boundary", "knowledge": "knowledge", "sight": "visual"}
    less = {"vision": blind, "rules": lawless.iloc[::-1], "knowledge": blind, "sight": turned}
    table = diagonal_table(many, less, needs, 300, np.random.default_rng(0)).set_index("removed")
    assert table.index.tolist() == ["vision", "rules", "sight"], "nothing here needs knowledge"
    assert table.loc["vision", ["own", "others", "lead"]].tolist() == [0.75, 0.25, 0.5]
    assert table["verdict"].tolist() == ["diagonal", "cannot tell", "not"]
    assert table.loc["rules", "lead"] == 0
    assert (table["low"] <= table["lead"]).all()
    assert (table["lead"] <= table["high"]).all()
    assert table["n_own"].tolist() == [80, 80, 80]


def test_other_pairs_are_refused() -> None:
    whole = pairs([1] * 8)
    for less in (whole.iloc[:7], pd.concat([whole, whole.head(1)]), whole.assign(pair_id="x")):
        with pytest.raises(DataError, match=r"without vision: .* judge the same pairs"):
            drop_table(whole, {"vision": less}, ["visual"], 10, np.random.default_rng(0))


def test_accuracy_by_length_within_each_group() -> None:
    judged = pairs([1, 1, 0, 0, 1, 0, 1, 0]).assign(tokens=[10, 11, 30, 31, 5, 5, 5, 5])
    table = length_table(judged, "kind", 100, np.random.default_rng(0), parts=2).set_index(
        ["group", "length"]
    )
    assert table.loc[("visual", "1 of 2"), ["tokens", "value", "n"]].tolist() == [10.5, 1.0, 2]
    assert table.loc[("visual", "2 of 2"), ["tokens", "value", "n"]].tolist() == [30.5, 0.0, 2]
    assert table.loc[("visual", "1 of 2"), "correlation"] == pytest.approx(-1, abs=0.01)
    assert table.loc[("boundary", "1 of 2"), "n"] == 4
    assert ("boundary", "2 of 2") not in table.index
    assert np.isnan(table.loc[("boundary", "1 of 2"), "correlation"])
    assert table["n"].sum() == len(judged)
