"""Every figure draws, keeps its words inside its frame, and leaves its rows and pyplot alone."""

import inspect
import io
from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from lore_lib.sampling.strata import STRATA
from lore_lib.viz import figures

TITLE = "progressive reasoning is right more often at the first try, and about as often within eight tries"
SYSTEMS = ["direct", "naive CoT", "progressive CoT", "progressive CoT + GRPO"]


def interval(value: float, nan: bool = False) -> dict[str, float]:
    gap = float("nan") if nan else 0.03
    return {"value": value, "low": value - gap, "high": value + gap}


def training_rows(seeds: int) -> pd.DataFrame:
    panels = {
        "reward": ["outcome", "format"],
        "entropy (nats)": ["entropy"],
        "dev probe": ["pass@1", "pass@8"],
    }
    return pd.DataFrame(
        [
            {
                "rollout": rollout,
                "seed": seed,
                "quantity": panel.partition(":")[0],
                "panel": panel,
                "series": name,
                "value": 0.5 + 0.01 * rollout + 0.1 * seed,
            }
            for seed in range(seeds)
            for rollout in range(0, 30, 5)
            for panel, names in panels.items()
            for name in names
        ]
    )


EFFECTS = pd.DataFrame(
    [
        {"system": system, "metric": metric, "chance": chance, **interval(0.4 + 0.1 * place, nan=place == 0)}
        for place, system in enumerate(SYSTEMS)
        for metric, chance in (("pass@1", 0.25), ("vote", float("nan")), ("pass@8", 0.9))
    ]
)
DIFFICULTY = pd.DataFrame(
    [{"system": n, "stratum": s, "pairs": 10 + i} for n in SYSTEMS for i, s in enumerate(STRATA)]
)
SUBSETS = pd.DataFrame(
    [{"subset": s, "system": n, **interval(0.6)} for s in ("general", "hard", "visual") for n in SYSTEMS]
)
LOSSES = pd.DataFrame(
    [{"arm": arm, "step": step, "loss": 3 / (1 + step)} for arm in SYSTEMS[:3] for step in range(20)]
)
FUNNEL = pd.DataFrame({"step": ["drawn", "parsed", "label agrees with gold"], "kept": [3000, 2900, 0]})
POLICIES = pd.DataFrame(
    [
        {"policy": policy, "money_per_million": money, "p95_ms": 40 * money, **interval(0.7 + money / 400)}
        for policy, spent in (("all student", (1.0,)), ("stratified", (5.0, 20.0, 60.0)))
        for money in spent
    ]
)
KNOBS = pd.DataFrame(
    [
        {"knob": knob, "setting": setting, "metric": metric, **interval(0.4 + setting / 5)}
        for knob in ("Zipf exponent", "drift per day")
        for metric in ("from cache", "macro-F1")
        for setting in (0.5, 1.0, 1.5)
    ]
)
ANSWERED = pd.DataFrame(
    {
        "stratum": ["head", "torso", "tail", "all"],
        "share": [0.5, 0.2, 0.3, 1.0],
        "from_cache": [0.9, 0.0, 0.0, 0.45],
        "from_student": [0.1, 1.0, 0.2, 0.31],
        "from_llm": [0.0, 0.0, 0.8, 0.24],
        "fallback": [0.0, 0.0, 0.2, 0.06],
    }
)
RELIABILITY = pd.DataFrame({"pairs": [3, 40, 9], "confidence": [0.3, 0.6, 0.9], "accuracy": [0.2, 0.7, 0.8]})
GAINS = pd.DataFrame(
    [
        {"part": part, "metric": metric, **interval(gain)}
        for part, gain in (("head", 0.04), ("torso", 0.0), ("tail", -0.01))
        for metric in ("acc@2", "item GoodRate")
    ]
)
DIFFERENCES = pd.DataFrame(
    [
        {"difference": name, "metric": metric, **interval(value, nan=name == "?")}
        for metric in ("pass@1", "pass@8")
        for name, value in (("a - b", 0.05), ("b - c", -0.05), ("c - d", 0.0), ("?", 0.2))
    ]
)
LADDER = pd.DataFrame(
    [
        {"system": rung, "pairs": pairs, "n": n, **interval(0.3 + 0.1 * place, nan=pairs == "visual")}
        for pairs, n in (("all", 240), ("visual", 40))
        for place, rung in enumerate(("title, price (short)", "+ cpv", "+ shop, selling_points (full)"))
    ]
)
PAST = pd.Series(1000 // np.arange(1, 101), index=[f"q{i}" for i in range(100)])
SPANS = pd.Series(["head"] * 5 + ["torso"] * 20 + ["tail"] * 75, index=PAST.index)
LABELS = pd.DataFrame(
    [{"group": g, "label": name, "pairs": 100} for g in ("train", "test") for name in ("L1", "L3", "L4")]
)
TIMES = {"all LLM": np.geomspace(50, 5000, 200), "all student": np.geomspace(1, 9, 200)}
DROPS = pd.DataFrame(
    [
        {"removed": removed, "group": group, "n": 29 + 10 * at, **interval(0.2 * (at == row) - 0.02)}
        for row, removed in enumerate(("knowledge", "vision", "rules"))
        for at, group in enumerate(("knowledge", "visual", "boundary", "plain"))
    ]
).rename(columns={"value": "drop"})
CONFUSION = np.array([[8, 1, 0, 0, 1], [2, 7, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 3, 7, 0]])

DRAWN: dict[str, Callable[[], Figure]] = {
    "effects_figure": lambda: figures.effects_figure(EFFECTS, TITLE),
    "difference_figure": lambda: figures.difference_figure(DIFFERENCES, TITLE),
    "ladder_figure": lambda: figures.ladder_figure(
        LADDER, TITLE, {"uniform guessing": 0.25, "majority label": 0.3}
    ),
    "strata_bars": lambda: figures.strata_bars(DIFFICULTY, TITLE),
    "subset_bars": lambda: figures.subset_bars(SUBSETS, TITLE, "macro-F1"),
    "training_curves": lambda: figures.training_curves(training_rows(3).assign(chance=0.25), TITLE),
    "loss_curves": lambda: figures.loss_curves(LOSSES, TITLE),
    "funnel_bars": lambda: figures.funnel_bars(FUNNEL, TITLE),
    "confusion_heatmap": lambda: figures.confusion_heatmap(CONFUSION, TITLE),
    "drop_heatmap": lambda: figures.drop_heatmap(DROPS, TITLE),
    "latency_cdf": lambda: figures.latency_cdf(TIMES, TITLE),
    "tradeoff_figure": lambda: figures.tradeoff_figure(POLICIES, TITLE, "macro-F1", 1000),
    "sensitivity_figure": lambda: figures.sensitivity_figure(KNOBS, TITLE),
    "serving_card": lambda: figures.serving_card(ANSWERED, np.geomspace(0.01, 3000, 101), TITLE, 1000),
    "reliability_figure": lambda: figures.reliability_figure({"student": RELIABILITY}, TITLE),
    "gains_figure": lambda: figures.gains_figure(GAINS, TITLE),
    "frequency_figure": lambda: figures.frequency_figure(PAST, SPANS, TITLE),
    "label_counts": lambda: figures.label_counts(LABELS, TITLE),
    "token_lengths": lambda: figures.token_lengths(
        {"short": [5, 6, 9], "mid": [9, 12, 14]}, TITLE, budget_tokens=12
    ),
}


def test_every_public_figure_is_drawn_here() -> None:
    public = {
        name
        for name, value in inspect.getmembers(figures, inspect.isfunction)
        if value.__module__ == figures.__name__ and not name.startswith("_")
    }
    assert public == set(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_figure_draws_with_its_words_inside_and_its_legend_off_the_data(name: str) -> None:
    figure = DRAWN[name]()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi="figure")
    assert image.getvalue().startswith(b"\x89PNG")
    assert plt.get_fignums() == []
    assert figure.get_figwidth() <= 9.5
    frame = figure.bbox
    title = figure.get_suptitle()
    assert title.replace("\n", " ").startswith(TITLE)
    for axes in figure.axes:
        legend = axes.get_legend()
        boxes = [axes.get_tightbbox()] + ([legend.get_window_extent()] if legend else [])
        for box in boxes:
            assert box is not None
            assert frame.x0 - 2 <= box.x0
            assert box.x1 <= frame.x1 + 2
        if legend:
            assert legend.get_window_extent().x0 >= axes.bbox.x1
        assert axes.get_ylabel() or axes.get_xlabel() or axes.get_title()


@pytest.mark.parametrize("seeds", [1, 3])
def test_training_curves_say_what_the_band_is(seeds: int) -> None:
    figure = figures.training_curves(training_rows(seeds), "reward rises")
    assert ("3 seeds" in figure.get_suptitle()) == (seeds == 3)
    assert [axes.get_title() for axes in figure.axes] == ["reward", "entropy (nats)", "dev probe"]
    line = figure.axes[0].get_lines()[0]
    assert line.get_ydata() == pytest.approx(0.5 + 0.01 * np.arange(0, 30, 5) + 0.05 * (seeds - 1))
    assert figure.legends == []


def test_chance_lines_stand_where_guessing_shows_something() -> None:
    rows = training_rows(2)
    rows["chance"] = rows.series.map({"pass@1": 0.25, "pass@8": 0.9})
    reward, entropy, dev = figures.training_curves(rows, TITLE).axes
    assert (len(reward.get_lines()), len(entropy.get_lines())) == (2, 1)
    flat = [line for line in dev.get_lines() if np.ptp(line.get_ydata()) == 0]
    assert [(line.get_ydata()[0], line.get_label()) for line in flat] == [
        (0.25, "guessing, pass@1"),
        (0.9, "guessing, pass@8"),
    ]
    one = rows[rows.series == "pass@8"]
    ways = pd.concat(
        one.assign(series=name, panel=panel) for name in ("a", "b") for panel in ("early", "late")
    )
    (legend,) = figures.training_curves(ways, "two ways").legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "uniform guessing"]


def test_panels_of_one_quantity_have_one_scale() -> None:
    rows = training_rows(2)
    rows["panel"] = rows.panel.replace({"dev probe": "reward: harder"})
    rows["quantity"] = rows.panel.str.partition(":")[0]
    rows["value"] *= 1 + (rows.panel == "reward: harder")
    reward, entropy, harder = figures.training_curves(rows, TITLE).axes
    assert reward.get_ylim() == harder.get_ylim() != entropy.get_ylim()
    assert harder.get_ylim()[1] > rows.value.max()


def test_series_that_all_panels_share_have_one_legend() -> None:
    rows = training_rows(2)
    ways = pd.concat(rows.assign(series=name) for name in ("clip_higher", "on_policy"))
    figure = figures.training_curves(ways, "three ways")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["clip_higher", "on_policy"]
    assert all(axes.get_legend() is None for axes in figure.axes)


def test_effects_show_values_intervals_and_chance() -> None:
    axes = figures.effects_figure(EFFECTS, TITLE).axes[0]
    chance = [line.get_segments()[0][0][1] for line in axes.collections if len(line.get_segments()) == 1]
    assert chance == [0.25, 0.9]
    assert axes.containers[1].lines[0].get_ydata() == pytest.approx([0.5, 0.5, 0.5])


def test_the_ladder_shows_values_pairs_and_what_needs_no_model() -> None:
    figure = figures.ladder_figure(LADDER, TITLE, {"majority label": 0.3})
    (axes,) = figure.axes
    assert [list(bars.lines[0].get_xdata()) for bars in axes.containers] == [
        pytest.approx([0.3, 0.4, 0.5])
    ] * 2
    assert [label.get_text() for label in axes.get_yticklabels()] == list(dict.fromkeys(LADDER.system))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(legend) == {"all pairs (n=240)", "visual pairs (n=40)", "majority label (0.30)"}


def test_tradeoff_shows_money_and_latency_of_each_setting() -> None:
    left, right = figures.tradeoff_figure(POLICIES, TITLE, "macro-F1", 1000).axes
    assert left.containers[1].lines[0].get_xdata() == pytest.approx([5, 20, 60])
    assert right.containers[1].lines[0].get_xdata() == pytest.approx([0.2, 0.8, 2.4])  # seconds
    assert left.get_xscale() == right.get_xscale() == "log"


def test_serving_card_bars_add_up_to_the_traffic() -> None:
    left, right = figures.serving_card(ANSWERED, np.geomspace(0.01, 3000, 101), TITLE, 1000).axes
    assert sum(bar.get_height() for bar in left.patches) == pytest.approx(1)
    assert right.get_lines()[0].get_xdata()[-1] == pytest.approx(3)


def test_differences_are_filled_where_their_interval_leaves_0_out() -> None:
    figure = figures.difference_figure(DIFFERENCES, TITLE)
    assert [axes.get_title() for axes in figure.axes] == ["pass@1", "pass@8"]
    points = [container.lines[0] for container in figure.axes[0].containers]
    assert [point.get_xdata()[0] for point in points] == [0.05, -0.05, 0.0, 0.2]
    filled = [point.get_markerfacecolor() != "white" for point in points]
    assert filled == [True, True, False, False], "no interval is no evidence"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "a - b",
        "b - c",
        "c - d",
        "?",
    ]
    assert [figures._points(share, 0) for share in (-0.025, 0, 0.1)] == ["-2.5", "0", "+10"]


def test_delays_are_labelled_in_units_of_time() -> None:
    (axes,) = figures.latency_cdf(TIMES, TITLE).axes
    assert axes.get_lines()[0].get_xdata()[-1] == pytest.approx(5)  # 5,000 ms
    assert axes.xaxis.get_major_formatter()(0.001) == "1 ms"


def test_bars_over_several_trainings_show_the_lowest_and_the_highest() -> None:
    spread = SUBSETS.assign(seeds=3, lowest=SUBSETS["value"] - 0.05, highest=SUBSETS["value"] + 0.04)
    (axes,) = figures.subset_bars(spread, TITLE, "pass@1").axes
    rings = [line for line in axes.get_lines() if line.get_marker() == "o"]
    drawn = sorted(height for line in rings for height in line.get_ydata())
    assert drawn == pytest.approx(sorted([*spread["lowest"], *spread["highest"]]))
    assert "mean of 3 trainings" in axes.get_ylabel()
    (axes,) = figures.subset_bars(spread.assign(seeds=1), TITLE, "pass@1").axes
    assert not [line for line in axes.get_lines() if line.get_marker() == "o"]


def test_rows_are_not_changed() -> None:
    before = SUBSETS.copy(deep=True)
    figures.subset_bars(SUBSETS, TITLE, "acc@4")
    pd.testing.assert_frame_equal(SUBSETS, before)


def test_palette_stays_apart_for_deuteranopes() -> None:
    """Machado et al. 2009, full deuteranomaly: no two system colours come close."""
    see = np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    )
    seen = np.array([see @ to_rgb(colour) for colour in figures.PALETTE])
    gaps = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(seen), 1)]
    assert gaps.min() > 0.15


def test_bars_of_no_rows_say_so() -> None:
    empty = pd.DataFrame(columns=["subset", "system", "value", "low", "high"])
    figure = figures.subset_bars(empty, "Slang", "share")
    assert [text.get_text() for text in figure.axes[0].texts] == ["nothing to compare in these data"]


def test_a_dollar_in_a_name_is_no_formula() -> None:
    odd = r"a $b_$ \frac"
    figure = figures.label_counts(LABELS.assign(group=odd), "costs $5_$")
    png = io.BytesIO()
    figure.savefig(png, format="png", bbox_inches="tight")
    assert png.getvalue().startswith(b"\x89PNG")
    assert any(label.get_text().startswith(odd) for label in figure.axes[0].get_yticklabels())
