"""A plan of serving with its knobs on sliders."""

import numpy as np
from IPython.display import display
from ipywidgets import FloatLogSlider, FloatSlider, IntSlider, interactive

from lore_lib.serving.study import Study
from lore_lib.viz.figures import Figure, serving_card

LEVELS = np.linspace(0, 1, 401)[1:]  # of the latency curve


def glance(study: Study, slo_ms: float, **settings: float) -> Figure:
    """Who answers and how long that takes, with some settings of the plan changed.

    Args:
        study: the plan.
        slo_ms: latency promised at the 95th percentile.
        settings: of `ServingConfig`. A torso that does not fit beside the head is cut.
    """
    if "torso_share" in settings:
        head = settings.get("head_share", study.config.head_share)
        settings["torso_share"] = min(settings["torso_share"], 1 - head)
    rows, tally = study.glance(**settings)
    end = rows.iloc[-1]
    price = f"price {end['rented_per_million']:,.1f} per million requests"
    title = f"macro-F1 {end['macro_f1']:.3f}, p95 {end['p95_ms']:,.0f} ms, {price}"
    return serving_card(rows, tally.latency_quantile(LEVELS), title, slo_ms)


def serving_explorer(study: Study) -> interactive:
    """The same figure, drawn anew from a fresh simulation at the press of a button; it needs a kernel."""
    plan = study.config
    return interactive(
        lambda **at: display(glance(study, **at)),  # type: ignore[no-untyped-call]
        {"manual": True, "manual_name": "simulate"},
        head_share=FloatLogSlider(value=max(plan.head_share, 0.001), min=-3, max=0, readout_format=".3f"),
        torso_share=FloatSlider(value=plan.torso_share, min=0, max=1, step=0.01),
        cache_pairs=IntSlider(value=plan.cache_pairs, min=0, max=4 * plan.cache_pairs + 1000),
        llm_workers=IntSlider(value=plan.llm_workers, min=1, max=8 * plan.llm_workers),
        slo_ms=FloatLogSlider(value=min(plan.slo_ms, 1e5), min=0, max=5, readout_format=".0f"),
    )
