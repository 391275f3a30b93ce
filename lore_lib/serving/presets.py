"""Published accounts of served traffic, as settings of the simulator: what was published, what we assume."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from lore_lib.artifacts import project_root
from lore_lib.config import ServingConfig
from lore_lib.errors import DataError, nearest
from lore_lib.rng import generator
from lore_lib.serving.latency import TimesFile
from lore_lib.serving.population import doubles
from lore_lib.serving.simulate import Pace, simulate
from lore_lib.serving.tally import Tally
from lore_lib.serving.traffic import ZipfMandelbrot

FOLDER = "data/serving"


class Preset(BaseModel):
    """An account: its source and numbers, our assumptions, and the settings that follow."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    source: str
    published: dict[str, float]
    assumed: str
    policy: str
    zipf_exponent: float
    zipf_shift: float
    per_second: float
    serving: dict[str, Any]
    times: TimesFile

    def config(self, **settings: Any) -> ServingConfig:
        """Its settings, some of them changed."""
        return ServingConfig.model_validate({**self.serving, **settings})

    def run(self, seed: int, **settings: Any) -> Tally:
        """Simulate it. One pair per query, always answered right: the account says nothing of quality."""
        config, times = self.config(**settings), self.times.times()
        right = {"item_id": "any", "label": "L4", "llm_label": "L4", "student_label": "L4"}
        judged = pd.DataFrame([{"query_id": "any", **right}])
        shares = ZipfMandelbrot(self.zipf_exponent, self.zipf_shift).shares(config.queries)
        population = doubles(judged, config.queries, generator(seed, "doubles"))
        at = Pace(self.per_second, config.requests / config.days / self.per_second)
        return simulate(population, shares, self.policy, config, times, seed, at)

    def account(self, seed: int, requests: int, llm_ms: Sequence[float]) -> pd.DataFrame:
        """What follows from it, one row per latency of the LLM, the other settings alike.

        Args:
            seed: of the traffic.
            requests: at most so many; its own number where that is less.
            llm_ms: mean milliseconds of the LLM.
        """
        config, none = self.config(), np.random.default_rng(0)  # no bootstrap, so nothing is drawn
        size, mean_ms = min(config.requests, requests), self.times.times().llm_ms.mean()
        rows = {}
        for ms in llm_ms:
            tally = self.run(seed, requests=size, llm_slowdown=float(ms / mean_ms))
            rows[ms] = tally.summary(config, 0, none).iloc[-1]
        return pd.DataFrame(rows).T.drop(columns="stratum").astype(float).rename_axis("llm_ms")


def read_preset(name: str) -> Preset:
    """Read data/serving/<name>.json.

    Raises:
        DataError: no such preset, or it is not one.
    """
    files = {path.stem: path for path in sorted((project_root() / FOLDER).glob("*.json"))}
    if name not in files:
        raise DataError(f"no preset {name!r} in {FOLDER}; {nearest(name, files)}")
    return _read(files[name])


def _read(path: Path) -> Preset:
    try:
        return Preset.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path.name}: {place}: {first['msg']}; compare with instacart-2025.json.") from error
