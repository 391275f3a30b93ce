"""One function, one figure: each takes rows a run left behind, returns a matplotlib Figure and saves nothing.

Figures are built without pyplot's state, so they need no display and leave nothing open. Titles come from
the caller and say what is seen. Systems have the Okabe-Ito colours, told apart with any colour vision, and
lines differ in dash or marker as well; ordered groups (labels, difficulty) run from dark to light.
"""

import io
from collections.abc import Mapping
from textwrap import fill
from typing import Literal

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import figure as mpl
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from lore_lib.sampling.strata import STRATA
from lore_lib.vertical.schema import LABELS

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito 2008
GREY = "#767676"  # chance lines and what is not a system
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FREQUENCY_COLOURS = {"head": PALETTE[1], "torso": PALETTE[4], "tail": PALETTE[0]}
SIZE = (7.0, 4.0)  # inches: the width of a notebook
TITLE_CHARACTERS = 85  # per line


class Figure(mpl.Figure):
    """A matplotlib figure that a notebook shows whatever backend is set, and in which a "$" is a dollar."""

    def draw(self, renderer: RendererBase) -> None:
        """Names come from data, and would break or change as formulas; numbers of log axes are formulas."""
        for axes in self.axes:  # ticks get their words only when somebody asks for them
            axes.get_xticklabels()
            axes.get_yticklabels()
        for text in self.findobj(Text):
            told = text.get_text()
            if "$" in told and not told.startswith(r"$\mathdefault{"):
                text.set_parse_math(False)
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
        return buffer.getvalue()


def effects_figure(table: pd.DataFrame, title: str) -> Figure:
    """Systems side by side in every estimate, each with its interval and its chance line.

    Args:
        table: system, metric (such as pass@1, vote, pass@8; in the order to show), value, low, high, chance
            (NaN for none).
        title: what is seen.
    """
    figure, axes = _canvas(title)
    metrics, systems = list(dict.fromkeys(table["metric"])), list(dict.fromkeys(table["system"]))
    offsets = _offsets(len(systems))
    for index, system in enumerate(systems):
        rows = table[table["system"] == system].set_index("metric").reindex(metrics)
        axes.errorbar(
            np.arange(len(metrics)) + offsets[index],
            rows["value"],
            yerr=_arms(rows),
            fmt=MARKERS[index % len(MARKERS)],
            color=PALETTE[index % len(PALETTE)],
            capsize=3,
            label=system,
        )
    chances = table.groupby("metric")["chance"].first()
    for place, metric in enumerate(metrics):
        if np.isfinite(chances[metric]):
            axes.hlines(chances[metric], place - 0.45, place + 0.45, colors=GREY, linestyles="dashed")
    axes.plot([], [], color=GREY, linestyle="dashed", label="uniform guessing")
    axes.set_xticks(range(len(metrics)), metrics)
    axes.set_xlim(-0.5, len(metrics) - 0.5)
    _share_axis(axes, "share of pairs, 95 % interval")
    axes.set_ylim(bottom=-0.02)  # a marker at 0 is seen whole
    return _legend_right(figure, axes)


def difference_figure(table: pd.DataFrame, title: str) -> Figure:
    """Paired differences with their intervals (a forest plot), one panel per metric, one row per comparison.

    A filled marker has its interval off 0, a hollow one cannot be told from 0.

    Args:
        table: difference (such as "naive - direct"), metric, value, low, high (shares of pairs; NaN low and
            high for no interval).
        title: what is seen.
    """
    metrics, names = (list(dict.fromkeys(table[column])) for column in ("metric", "difference"))
    figure = Figure(figsize=(SIZE[0] * 1.2, 0.45 * len(names) + 1.6), layout="constrained")
    grid = figure.subplots(1, len(metrics), squeeze=False, sharey=True, sharex=True).ravel()
    for axes, metric in zip(grid, metrics, strict=True):
        rows = table[table["metric"] == metric].set_index("difference").reindex(names)
        apart = (rows["low"] > 0) | (rows["high"] < 0)
        for place, name in enumerate(names):
            row = rows.loc[[name]]
            axes.errorbar(
                row["value"],
                [place],
                xerr=_arms(row),
                fmt="o",
                color=PALETTE[0],
                markerfacecolor=PALETTE[0] if apart[name] else "white",
                capsize=3,
            )
        axes.axvline(0, color=GREY, linestyle="dashed", linewidth=1)
        axes.set_title(metric, fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_points))
        _tidy(axes, "x")
    grid[0].set_yticks(range(len(names)), names)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("difference in percentage points, 95 % interval (hollow: spans 0)", fontsize=9)
    figure.suptitle(fill(title, TITLE_CHARACTERS), fontsize=11, x=0.01, horizontalalignment="left")
    return figure


def ladder_figure(table: pd.DataFrame, title: str, references: Mapping[str, float]) -> Figure:
    """pass@1 by rung of a ladder of prompts, top to bottom, one series per group of pairs.

    Args:
        table: system (the rung), pairs (the group), value, low, high, n (pairs).
        title: what is seen.
        references: name -> score of a judge that needs no model, drawn as a line.
    """
    figure, axes = _canvas(title, grid="x")
    systems = list(dict.fromkeys(table["system"]))
    groups = list(table.groupby("pairs", sort=False))
    for index, (offset, (group, rows)) in enumerate(zip(_offsets(len(groups)), groups, strict=True)):
        axes.errorbar(
            rows["value"],
            [systems.index(system) + offset for system in rows["system"]],
            xerr=_arms(rows),
            fmt=MARKERS[index % len(MARKERS)],
            color=PALETTE[index % len(PALETTE)],
            capsize=3,
            label=f"{group} pairs (n={rows['n'].max():,})",
        )
    for index, (name, score) in enumerate(references.items()):
        axes.axvline(score, color=GREY, linestyle=_dash(index + 1), label=f"{name} ({score:.2f})")
    axes.set_yticks(range(len(systems)), systems)
    axes.set_ylim(len(systems) - 0.5, -0.5)
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("pass@1, 95 % interval over queries")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def strata_bars(counts: pd.DataFrame, title: str) -> Figure:
    """Difficulty strata of each system as shares of its pairs.

    Args:
        counts: system, stratum, pairs.
        title: what is seen.
    """
    table = counts.pivot_table(
        index="system", columns="stratum", values="pairs", fill_value=0, sort=False, observed=False
    )
    return _stacked(table.reindex(columns=list(STRATA), fill_value=0), title)


def subset_bars(table: pd.DataFrame, title: str, metric: str) -> Figure:
    """One metric by subset and system, with intervals; a table without rows gives a figure that says so.

    Args:
        table: subset, system, value, low, high; with a column n, the same for all systems of a subset, it
            stands under the subset; where a value is a mean over trainings, also (seeds, more than one) the
            lowest and highest of them, which are drawn as rings.
        title: what is seen.
        metric: its name, for the axis.
    """
    figure, axes = _canvas(title)
    if table.empty:
        axes.text(0.5, 0.5, "nothing to compare in these data", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return figure
    subsets, systems = list(dict.fromkeys(table["subset"])), list(dict.fromkeys(table["system"]))
    width = 0.8 / len(systems)
    trainings = int(table["seeds"].max()) if "lowest" in table else 1
    for index, system in enumerate(systems):
        rows = table[table["system"] == system].set_index("subset").reindex(subsets)
        places = np.arange(len(subsets)) + (index - (len(systems) - 1) / 2) * width
        for end in ("lowest", "highest") if trainings > 1 else ():
            axes.plot(places, rows[end], "o", markersize=3, color="black", markerfacecolor="white", zorder=3)
        axes.bar(
            places,
            rows["value"],
            width * 0.92,
            yerr=_arms(rows),
            color=PALETTE[index % len(PALETTE)],
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": GREY},
            label=system,
        )
    names = subsets
    if "n" in table and (table.groupby("subset")["n"].nunique() == 1).all() and "n=" not in "".join(subsets):
        sizes = dict(zip(table["subset"], table["n"], strict=True))
        names = [f"{name}\nn={sizes[name]:,}" for name in subsets]
    axes.set_xticks(range(len(subsets)), names)
    _share_axis(axes, f"{metric}, 95 % interval")
    if trainings > 1:
        axes.set_ylabel(f"{metric}, mean of {trainings} trainings\n(rings: lowest, highest; whiskers: 95 %)")
    return _legend_right(figure, axes)


def training_curves(rows: pd.DataFrame, title: str) -> Figure:
    """What GRPO logs, one panel per quantity: the mean over seeds and the band from lowest to highest seed.

    Args:
        rows: long form: rollout, seed, quantity, panel, series, value, as `health_rows` and `variant_rows` of
            `training.grpo_rows` give them. Panels and series appear in the order given; panels of one
            quantity have one scale; series that all share get one legend. With a column chance, what uniform
            guessing would show (NaN where it shows nothing), it is drawn as a line.
        title: what is seen.
    """
    panels = list(dict.fromkeys(rows["panel"]))
    columns = 2 if len(panels) > 1 else 1
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(SIZE[0] * 1.3, (2.4 if lines < 5 else 1.9) * lines + 0.5), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    for _, alike in rows.groupby("quantity"):
        first, *others = (grid[panels.index(panel)] for panel in alike["panel"].unique())
        for axes in others:
            axes.sharey(first)
    shared = len(panels) > 1 and rows.groupby("panel")["series"].nunique().eq(rows["series"].nunique()).all()
    for axes, panel in zip(grid, panels, strict=False):
        part = rows[rows["panel"] == panel]
        spread = part.groupby(["series", "rollout"], sort=False)["value"].agg(
            value="mean", low="min", high="max"
        )
        ordered = spread.reset_index().sort_values("rollout", kind="stable")
        _bands(axes, ordered, "rollout", "series", marker=False)
        if "chance" in part:
            _chance_lines(axes, part)
        axes.set_title(panel, fontsize=10)
        _tidy(axes, "y")
        if part["series"].nunique() > 1 and not shared:
            axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    if shared and rows["series"].nunique() > 1:
        drawn = [axes.get_legend_handles_labels() for axes in grid[: len(panels)]]
        lines_of = {name: line for found in drawn for line, name in zip(*found, strict=True)}
        figure.legend(
            lines_of.values(), lines_of.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
        )
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel("rollout")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelbottom=True)
    seeds = rows["seed"].nunique()
    band = f" (band: lowest to highest of {seeds} seeds)" if seeds > 1 else ""
    figure.suptitle(fill(title + band, TITLE_CHARACTERS), fontsize=11, x=0.01, horizontalalignment="left")
    return figure


def _chance_lines(axes: Axes, rows: pd.DataFrame) -> None:
    chances = rows.dropna(subset="chance").groupby("chance", sort=False)["series"].first()
    for index, (chance, series) in enumerate(zip(chances.index, chances, strict=True), start=1):
        name = f"guessing, {series}" if len(chances) > 1 else "uniform guessing"
        axes.axhline(float(chance), color=GREY, linestyle=_dash(index), linewidth=1, label=name)


def loss_curves(rows: pd.DataFrame, title: str) -> Figure:
    """Training loss over steps, one line per arm, on a log axis: most of the fall is over in a few steps.

    Args:
        rows: arm, step, loss.
        title: what is seen.
    """
    figure, axes = _canvas(title)
    for index, (arm, part) in enumerate(rows.groupby("arm", sort=False)):
        axes.plot(
            part["step"],
            part["loss"],
            color=PALETTE[index % len(PALETTE)],
            linestyle=_dash(index),
            label=str(arm),
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (nats per completion token, log scale)")
    return _legend_right(figure, axes)


def funnel_bars(table: pd.DataFrame, title: str) -> Figure:
    """How many rows are left after each filter, top to bottom.

    Args:
        table: step, kept (rows), in order.
        title: what is seen.
    """
    figure, axes = _canvas(title, grid="x")
    bars = axes.barh(table["step"], table["kept"], color=PALETTE[0])
    first = float(table["kept"].iloc[0])
    axes.bar_label(bars, [f"{kept:,} ({kept / first:.0%})" for kept in table["kept"]], padding=4, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, first * 1.22)
    axes.set_xlabel("rows kept")
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    return figure


def confusion_heatmap(matrix: ArrayLike, title: str) -> Figure:
    """Gold against predicted labels: share of the gold label's row, with counts.

    Args:
        matrix: (4, 5) counts from `rair.metrics.confusion`, the last column unparsable.
        title: what is seen.
    """
    counts = np.asarray(matrix)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    figure, axes = _canvas(title)
    text = np.array(
        [
            [f"{share:.0%}\n{count}" for share, count in zip(*row, strict=True)]
            for row in zip(shares, counts, strict=True)
        ]
    )
    sns.heatmap(
        shares,
        annot=text,
        fmt="",
        cmap="Blues",
        vmin=0,
        vmax=1,
        ax=axes,
        xticklabels=[*LABELS, "unparsable"],
        yticklabels=list(LABELS),
        cbar_kws={"label": "share of the gold label", "format": PercentFormatter(1)},
    )
    axes.tick_params(axis="y", rotation=0)
    axes.set_xlabel("predicted label")
    axes.set_ylabel("gold label")
    return figure


def drop_heatmap(table: pd.DataFrame, title: str) -> Figure:
    """What is lost where: a cell per removal and group of pairs, with its interval; bold where it excludes 0.

    Args:
        table: removed, group, drop, low, high, n in their order, as `rair.probes.drop_table` gives them.
        title: what is seen.
    """
    removed, groups = list(dict.fromkeys(table["removed"])), list(dict.fromkeys(table["group"]))
    cells = table.set_index(["removed", "group"])
    drops = cells["drop"].unstack().reindex(index=removed, columns=groups)
    figure, axes = _canvas(title)
    span = max(0.1, float(drops.abs().max().max()))
    sns.heatmap(
        drops,
        cmap="RdBu_r",
        vmin=-span,
        vmax=span,
        ax=axes,
        linewidths=1,
        cbar_kws={"label": "accuracy lost"},
        xticklabels=[f"{group}\n(n={n})" for group, n in cells["n"].groupby("group").first()[groups].items()],
    )
    for one in table.to_dict("records"):
        at = groups.index(one["group"]) + 0.5, removed.index(one["removed"]) + 0.5
        text = f"{one['drop']:+.2f}\n[{one['low']:+.2f}, {one['high']:+.2f}]"
        sure = one["low"] > 0 or one["high"] < 0
        axes.text(
            *at,
            text,
            ha="center",
            va="center",
            color="white" if abs(one["drop"]) > 0.6 * span else "black",
            size=9,
            weight="bold" if sure else "normal",
        )
    axes.tick_params(axis="y", rotation=0)
    axes.set_xlabel("pairs that need")
    axes.set_ylabel("taken away")
    return figure


def latency_cdf(latencies_ms: Mapping[str, NDArray[np.float64]], title: str) -> Figure:
    """Share of requests answered within a time, one line per policy or route.

    Args:
        latencies_ms: name -> (requests,) milliseconds.
        title: what is seen.
    """
    figure, axes = _canvas(title)
    levels = np.linspace(0, 1, 501)
    for index, (name, samples) in enumerate(latencies_ms.items()):
        axes.plot(
            np.quantile(samples, levels) / 1000,
            levels,
            color=PALETTE[index % len(PALETTE)],
            linestyle=_dash(index),
            label=name,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter("s"))  # 10 µs, 1 ms, 1 s
    axes.set_xlabel("latency (log scale)")
    _share_axis(axes, "share of requests answered")
    return _legend_right(figure, axes)


def tradeoff_figure(table: pd.DataFrame, title: str, quality: str, slo_ms: float) -> Figure:
    """Quality against money and against tail latency; up and left is better in both.

    Settings of one policy are joined by a line, in the order given. A band marks latencies over the promise.

    Args:
        table: policy, money_per_million, p95_ms, value, low, high.
        title: what is seen.
        quality: name of the quality axis.
        slo_ms: latency promised at the 95th percentile.
    """
    figure, (left, right) = _panels(title, 2, sharey=True)
    for axes, cost in ((left, "money_per_million"), (right, "p95_ms")):
        _tidy(axes, "y")
        for index, (policy, rows) in enumerate(table.groupby("policy", sort=False)):
            axes.errorbar(
                rows[cost] / (1000 if axes is right else 1),
                rows["value"],
                yerr=_arms(rows),
                fmt=MARKERS[index % len(MARKERS)],
                linestyle=_dash(index),
                linewidth=1,
                markersize=6,
                capsize=2,
                color=PALETTE[index % len(PALETTE)],
                label=policy,
            )
        axes.set_xscale("log")
    left.set_xlabel("price of a million requests (log scale)")
    left.set_ylabel(f"{quality}, 95 % interval")
    right.set_xlabel("p95 latency (log scale)")
    right.xaxis.set_major_formatter(EngFormatter("s"))
    right.axvspan(
        slo_ms / 1000,
        max(right.get_xlim()[1], slo_ms / 500),
        color=GREY,
        alpha=0.15,
        label="over the promise",
    )
    return _legend_right(figure, right)


def sensitivity_figure(table: pd.DataFrame, title: str) -> Figure:
    """How shares of the traffic and quality move with each knob, one panel per knob, bands over seeds.

    Args:
        table: knob, setting (a number), metric (a share of 1), value, low, high.
        title: what is seen.
    """
    knobs = list(dict.fromkeys(table["knob"]))
    figure, panels = _panels(title, len(knobs), sharey=True)
    for axes, knob in zip(panels, knobs, strict=True):
        _tidy(axes, "y")
        _bands(axes, table[table["knob"] == knob], "setting", "metric")
        axes.set_xlabel(knob)
    _share_axis(panels[0], "share of the requests, or score")
    return _legend_right(figure, panels[-1])


def serving_card(strata: pd.DataFrame, latency_ms: NDArray[np.float64], title: str, slo_ms: float) -> Figure:
    """One setting at a glance: who answers which part of the traffic, and how long that takes.

    Args:
        strata: stratum, share, from_cache, from_student, from_llm, fallback (shares of the stratum), as
            `serving.tally.Tally.summary` gives them.
        latency_ms: (levels,) latency quantiles at even levels from 0 to 1.
        title: what is seen.
        slo_ms: latency promised at the 95th percentile.
    """
    figure, (left, right) = _panels(title, 2, sharey=False)
    rows = strata[strata["stratum"] != "all"]
    parts = {
        "cache": rows["from_cache"],
        "student": rows["from_student"] - rows["fallback"],
        "LLM": rows["from_llm"],
        "student, as the LLM had no time": rows["fallback"],
    }
    base = np.zeros(len(rows))
    for index, (name, share) in enumerate(parts.items()):
        height = (share * rows["share"]).to_numpy(dtype=float)
        left.bar(rows["stratum"], height, bottom=base, color=PALETTE[index], label=name, width=0.6)
        base += height
    _tidy(left, "y")
    _share_axis(left, "share of the requests")
    _tidy(right, "y")
    right.plot(latency_ms / 1000, np.linspace(0, 1, len(latency_ms)), color="black", linewidth=1.5)
    right.axvline(
        slo_ms / 1000, color=PALETTE[1], linestyle="dashed", label=f"promised at 95 %: {slo_ms:g} ms"
    )
    right.axhline(0.95, color=GREY, linestyle="dotted", label="95 %")
    right.set_xscale("log")
    right.xaxis.set_major_locator(LogLocator(numticks=6))
    right.xaxis.set_major_formatter(EngFormatter("s"))
    right.set_xlabel("latency (log scale)")
    _share_axis(right, "share of the requests answered")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def gains_figure(table: pd.DataFrame, title: str) -> Figure:
    """What each part adds to the whole, in points, with intervals.

    Args:
        table: part, metric, value, low, high (1 point = 0.01).
        title: what is seen.
    """
    figure, axes = _canvas(title, grid="x")
    parts, metrics = list(dict.fromkeys(table["part"])), list(dict.fromkeys(table["metric"]))
    for index, metric in enumerate(metrics):
        rows = table[table["metric"] == metric].set_index("part").reindex(parts)
        axes.errorbar(
            rows["value"] * 100,
            np.arange(len(parts)) + _offsets(len(metrics))[index],
            xerr=_arms(rows) * 100,
            fmt=MARKERS[index % len(MARKERS)],
            color=PALETTE[index % len(PALETTE)],
            capsize=3,
            label=metric,
        )
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(parts)), parts)
    axes.invert_yaxis()
    axes.set_xlabel("points gained, 95 % interval")
    return _legend_right(figure, axes)


def reliability_figure(curves: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """How often a judge is right among answers of like confidence: on the diagonal, as right as it is sure.

    The size of a marker follows the number of answers in its bin.

    Args:
        curves: name -> pairs, confidence, accuracy, as `calibration.reliability` gives them.
        title: what is seen.
    """
    figure, axes = _canvas(title)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="dashed", label="as right as sure")
    most = max(curve["pairs"].max() for curve in curves.values())
    for index, (name, curve) in enumerate(curves.items()):
        colour, mark, size = (
            PALETTE[index % len(PALETTE)],
            MARKERS[index % len(MARKERS)],
            curve["pairs"] / most,
        )
        at = curve["confidence"], curve["accuracy"]
        axes.plot(*at, color=colour, marker=mark, linestyle=_dash(index), markersize=4, label=name)
        axes.scatter(*at, color=colour, marker=mark, s=20 + 180 * size, alpha=0.4)
    axes.set_xlabel("mean probability of the label given (larger mark: more answers)")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlim(0, 1.02)
    _share_axis(axes, "share of these answers that are right")
    return _legend_right(figure, axes)


def frequency_figure(past: pd.Series, strata: pd.Series, title: str) -> Figure:
    """Requests per query by rank on log axes, with the strata shaded and their share of the requests.

    Args:
        past: requests by query_id, most asked first (`serving.strata.past_counts`).
        strata: stratum by query_id, in the same order.
        title: what is seen.
    """
    figure, axes = _canvas(title)
    ranks, counts = np.arange(1, len(past) + 1), past.to_numpy(dtype=float)
    names = strata.to_numpy(dtype=str)
    for name, colour in FREQUENCY_COLOURS.items():
        inside = names == name
        if inside.any():
            share = counts[inside].sum() / counts.sum()
            label = f"{name}: {inside.sum():,} queries,\n{share:.0%} of requests"
            axes.axvspan(
                ranks[inside][0] - 0.5, ranks[inside][-1] + 0.5, color=colour, alpha=0.18, label=label
            )
    axes.plot(ranks, counts, color="black", linewidth=1.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.5, len(past) + 0.5)
    axes.set_xlabel("rank of the query (log scale)")
    axes.set_ylabel("requests in the past log (log scale)")
    return _legend_right(figure, axes)


def label_counts(table: pd.DataFrame, title: str) -> Figure:
    """Label mix of each group as shares, with the number of pairs beside each bar.

    Args:
        table: group, label, pairs.
        title: what is seen.
    """
    wide = table.pivot_table(
        index="group", columns="label", values="pairs", fill_value=0, sort=False, observed=False
    )
    return _stacked(wide.reindex(columns=list(LABELS), fill_value=0), title)


def token_lengths(lengths: Mapping[str, ArrayLike], title: str, budget_tokens: int | None = None) -> Figure:
    """Distribution of token counts, one box per group: quartiles, whiskers at the 5th and 95th percentile.

    Args:
        lengths: name -> token counts.
        title: what is seen.
        budget_tokens: a limit to mark.
    """
    figure, axes = _canvas(title, grid="x")
    boxes = axes.boxplot(
        [np.asarray(values) for values in lengths.values()],
        orientation="horizontal",
        tick_labels=list(lengths),
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        medianprops={"color": "black"},
    )
    for box in boxes["boxes"]:
        box.set_facecolor(PALETTE[5])
    axes.invert_yaxis()
    axes.set_xlabel("tokens (box: quartiles, whiskers: 5 % and 95 %)")
    if budget_tokens is not None:
        axes.axvline(budget_tokens, color=PALETTE[1], linestyle="dashed", label=f"limit {budget_tokens}")
        return _legend_right(figure, axes)
    return figure


def _canvas(title: str, grid: Literal["x", "y"] = "y") -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(fill(title, TITLE_CHARACTERS), fontsize=11, x=0.01, horizontalalignment="left")
    _tidy(axes, grid)
    return figure, axes


def _panels(title: str, count: int, sharey: bool) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(SIZE[0] * 1.35, SIZE[1]), layout="constrained")
    figure.suptitle(fill(title, TITLE_CHARACTERS), fontsize=11, x=0.01, horizontalalignment="left")
    return figure, list(figure.subplots(1, count, sharey=sharey, squeeze=False)[0])


def _tidy(axes: Axes, grid: Literal["x", "y"]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E0E0E0", linewidth=0.6)
    axes.set_axisbelow(True)


def _share_axis(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _legend_right(figure: Figure, axes: Axes) -> Figure:
    """Put the legend outside, where no data can be."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return figure


def _bands(axes: Axes, table: pd.DataFrame, x: str, group: str, marker: bool = True) -> None:
    for index, (name, part) in enumerate(table.groupby(group, sort=False)):
        colour = PALETTE[index % len(PALETTE)]
        mark = MARKERS[index % len(MARKERS)] if marker else ""
        axes.plot(part[x], part["value"], color=colour, marker=mark, linestyle=_dash(index), label=str(name))
        axes.fill_between(part[x], part["low"], part["high"], color=colour, alpha=0.18, linewidth=0)


def _stacked(table: pd.DataFrame, title: str) -> Figure:
    figure, axes = _canvas(title, grid="x")
    shares = table.div(table.sum(axis=1), axis=0)
    left = np.zeros(len(shares))
    names = [f"{name} (n={int(total):,})" for name, total in table.sum(axis=1).items()]
    for column, colour in zip(shares, sns.color_palette("cividis", len(shares.columns)), strict=True):
        width = shares[column].to_numpy(dtype=float)
        axes.barh(names, width, left=left, color=colour, edgecolor="white", label=column)
        left += width
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of pairs")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return _legend_right(figure, axes)


def _arms(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Lengths of error bars, (2, rows); none where the interval is unknown."""
    arms = np.stack([rows["value"] - rows["low"], rows["high"] - rows["value"]]).astype(float)
    return np.asarray(np.clip(np.nan_to_num(arms), 0, None))


def _offsets(count: int) -> NDArray[np.float64]:
    return np.asarray((np.arange(count) - (count - 1) / 2) * min(0.14, 0.8 / count), dtype=float)


def _dash(index: int) -> str:
    return ("solid", "dashed", "dashdot", "dotted")[index % 4]


def _points(share: float, _: int) -> str:
    return "0" if abs(share) < 5e-4 else f"{100 * share:+.3g}"


def _thousands(value: float, _: int) -> str:
    return f"{value:,.0f}"
