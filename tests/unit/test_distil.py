"""Two students side by side, on a tiny model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lore_lib.config import Config, load_config
from lore_lib.serving.calibration import expected_calibration_error, temper
from lore_lib.serving.distil import GOLD, VOTES, Assessment, assess, distil, export_and_time, hard_targets
from lore_lib.serving.export import load_onnx_student
from lore_lib.serving.student import Student
from lore_lib.vertical.schema import LABELS


@pytest.fixture(scope="module")
def config(tiny_model: Path) -> Config:
    changes = {"serving.student_base": str(tiny_model), "serving.student_epochs": 6}
    return load_config("smoke", overrides=changes | {"serving.student_learning_rate": 5e-3})


@pytest.fixture(scope="module")
def pairs() -> pd.DataFrame:
    """The LLM calls red dresses L4; people call every second of these L3."""
    rng = np.random.default_rng(0)
    red = rng.random(96) < 0.5
    prompts = [f"query: red dress\ntitle: {'red' if is_red else 'blue'} dress" for is_red in red]
    table = pd.DataFrame(
        {"pair_id": [f"p{i}" for i in range(96)], "bare": prompts, "query_id": np.arange(96) // 4}
    )
    table["llm_label"] = np.where(red, "L4", "L2")
    table["label"] = np.where(red & (table.index % 2 == 0), "L3", table["llm_label"])
    return table


@pytest.fixture(scope="module")
def students(
    pairs: pd.DataFrame, config: Config, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Student]:
    votes = pairs[["pair_id"]].assign(**hard_targets(pairs["llm_label"]))
    return distil(votes, pairs, config, tmp_path_factory.mktemp("trainer"), seed=0)


@pytest.fixture(scope="module")
def assessed(students: dict[str, Student], pairs: pd.DataFrame) -> Assessment:
    return assess(students, pairs, pairs, 50, np.random.default_rng(0))


def value(assessed: Assessment, judge: str, metric: str) -> float:
    rows = assessed.table.set_index(["judge", "metric"])
    return float(rows.loc[(judge, metric), "value"])


def test_targets_by_hand() -> None:
    assert hard_targets(pd.Series(["L2", "L1"])).to_numpy().tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


def test_each_student_follows_its_own_teacher(students: dict[str, Student]) -> None:
    red = "query: red dress\ntitle: red dress"
    votes, gold = (students[name].predict_proba([red])[0] for name in (VOTES, GOLD))
    assert votes[LABELS.index("L3")] < 0.2 < gold[LABELS.index("L3")]


def test_the_table_is_what_the_parts_say(
    assessed: Assessment, students: dict[str, Student], pairs: pd.DataFrame
) -> None:
    shares = students[VOTES].predict_proba(pairs["bare"].tolist())
    said = pd.Series([LABELS[best] for best in shares.argmax(axis=1)])
    assert value(assessed, VOTES, "acc@4") == pytest.approx((said == pairs["label"]).mean())
    assert value(assessed, VOTES, "agrees with llm") == pytest.approx((said == pairs["llm_label"]).mean())
    assert value(assessed, "llm", "acc@4") == pytest.approx((pairs["llm_label"] == pairs["label"]).mean())
    gap = value(assessed, VOTES, "acc@4") - value(assessed, GOLD, "acc@4")
    assert value(assessed, f"{VOTES} - {GOLD}", "acc@4") == pytest.approx(gap)
    assert value(assessed, VOTES, "ece") == pytest.approx(expected_calibration_error(shares, pairs["label"]))
    warm = temper(shares, assessed.temperatures[VOTES])
    tempered = expected_calibration_error(warm, pairs["label"])
    assert value(assessed, VOTES, "ece, tempered") == pytest.approx(tempered)
    assert tempered < value(assessed, VOTES, "ece"), "it was fitted on these pairs"


def test_intervals_hold_their_value(assessed: Assessment) -> None:
    rows = assessed.table.dropna()
    assert len(rows) == 3 + 2 * 4 + 3
    assert ((rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"])).all()


def test_the_export_is_timed_beside_torch(
    students: dict[str, Student], pairs: pd.DataFrame, tmp_path: Path
) -> None:
    prompts = pairs["bare"].head(20).tolist()
    served, table = export_and_time(students[VOTES], tmp_path, prompts, 2.0)
    assert table.index.tolist() == ["torch", "onnx", "onnx int8"]
    assert (table[["mib", "ms", "ms_batched"]] > 0).all(axis=None)
    assert table.loc["onnx", "agrees"] == 1
    again = load_onnx_student(tmp_path / "student")
    assert again.temperature == served.temperature == 2.0
    assert again.predict_proba(prompts) == pytest.approx(served.predict_proba(prompts))
