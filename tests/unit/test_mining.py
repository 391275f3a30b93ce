"""Hard samples carry the way in which they go wrong."""

import pandas as pd

from lore_lib.sampling.mining import WAYS, hard_samples
from lore_lib.sampling.pass_at_k import summarise

DRAWN = {  # gold is L2
    "solved": ["L2"] * 8,
    "medium": ["L2"] * 4 + ["L1"] * 4,
    "one wrong label": ["L4"] * 7 + ["L1"],
    "three quarters": ["L4"] * 6 + ["L2"] * 2,
    "below": ["L4"] * 5 + ["L1"] * 2 + ["L2"],
    "unread": [""] * 4 + ["L4"] * 4,
    "all unread": [""] * 8,
}


def test_each_hard_pair_is_listed_hardest_first_with_its_way() -> None:
    rows = [
        (name, "q", i, label, "ok" if label else "no_label", 3)
        for name, labels in DRAWN.items()
        for i, label in enumerate(labels)
    ]
    samples = pd.DataFrame(rows, columns=["pair_id", "query_id", "sample", "label", "parse_kind", "tokens"])
    gold = pd.DataFrame({"pair_id": list(DRAWN), "query_id": "q", "label": "L2"})
    found = hard_samples(summarise(samples, gold, 8), samples, gold)
    assert found.pair_id.tolist() == ["one wrong label", "unread", "all unread", "below", "three quarters"]
    assert found.way.tolist() == ["systematic", "unreadable", "unreadable", "scattered", "systematic"]
    assert set(found.way) == set(WAYS)
    assert found.wrong.tolist() == ["L4", "L4", "", "L4", "L4"]
    assert found.wrong_share.tolist() == [7 / 8, 0.5, 0, 5 / 8, 6 / 8]
    assert found.unread_share.tolist() == [0, 0.5, 1, 0, 0]
    assert found.stratum.tolist() == ["unsolved"] * 3 + ["hard"] * 2
