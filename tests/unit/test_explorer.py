"""The plan at a glance, and its sliders."""

import numpy as np
import pandas as pd
import pytest

from lore_lib.config import ServingConfig
from lore_lib.serving.latency import ServiceTimes
from lore_lib.serving.study import Study
from lore_lib.serving.traffic import ZipfMandelbrot
from lore_lib.viz.explorer import glance, serving_explorer


@pytest.fixture(scope="module")
def study() -> Study:
    pairs = pd.DataFrame(
        {"query_id": list("aabb"), "item_id": list("wxyz"), "label": ["L1", "L4", "L3", "L2"]}
    )
    judged = pairs.assign(llm_label=pairs["label"], student_label="L4")
    config = ServingConfig(requests=4000, queries=50, head_share=0.1, cache_pairs=50)
    times = ServiceTimes(np.array([0.01]), np.array([5.0]), np.array([50.0]))
    return Study(judged, ZipfMandelbrot(1.0), config, times, 0)


def test_a_glance_says_what_the_plan_is_worth(study: Study) -> None:
    card = glance(study, 800.0)
    assert card.get_suptitle().startswith("macro-F1 0.")
    bars = {bar.get_facecolor(): 0.0 for bar in card.axes[0].patches}
    for bar in card.axes[0].patches:
        bars[bar.get_facecolor()] += bar.get_height()
    assert sum(bars.values()) == pytest.approx(1)


def test_a_torso_that_does_not_fit_is_cut(study: Study) -> None:
    assert glance(study, 800.0, head_share=0.6, torso_share=0.9).axes


def test_sliders_start_at_the_plan_and_stay_within_what_is_allowed(study: Study) -> None:
    sliders = {child.description: child for child in serving_explorer(study).children[:5]}
    assert sliders["head_share"].value == pytest.approx(study.config.head_share)
    assert sliders["cache_pairs"].value == 50
    for name in ("head_share", "torso_share", "cache_pairs", "llm_workers"):
        for end in (sliders[name].min, sliders[name].max):
            log = name == "head_share"
            glance(study, 800.0, **{"torso_share": 0.0, name: 10**end if log else end})
