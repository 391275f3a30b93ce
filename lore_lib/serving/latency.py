"""Measured service times, kept as histograms in a small JSON file with the name of the hardware."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lore_lib.artifacts import atomic_write_json
from lore_lib.errors import DataError
from lore_lib.sampling.intervals import Floats

LEVELS = 2000  # samples that stand for a histogram
BINS = 60  # of a written histogram, log-spaced


@dataclass(frozen=True)
class ServiceTimes:
    """Milliseconds per request asked alone, one array of samples per judge; each request draws one."""

    cache_ms: Floats
    student_ms: Floats
    llm_ms: Floats
    hardware: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot be a duration.

        Raises:
            DataError: an array is empty or holds something else than positive numbers.
        """
        for name, samples in self.samples().items():
            if len(samples) == 0 or not (np.isfinite(samples) & (samples > 0)).all():
                raise DataError(f"{name} holds {len(samples)} samples; measure 1 or more, all positive.")

    def samples(self) -> dict[str, Floats]:
        """The three arrays by name."""
        return {"cache_ms": self.cache_ms, "student_ms": self.student_ms, "llm_ms": self.llm_ms}


class _Histogram(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    edges_ms: list[float] = Field(min_length=2)
    counts: list[int] = Field(min_length=1)

    def draw(self, name: str) -> Floats:
        edges, counts = np.array(self.edges_ms), np.array(self.counts)
        if len(edges) != len(counts) + 1 or (np.diff(edges) <= 0).any() or edges[0] < 0:
            raise DataError(
                f"{name}: {len(edges)} edges for {len(counts)} counts; "
                "give one edge more than counts, rising from 0 or more."
            )
        if (counts < 0).any() or counts.sum() == 0:
            raise DataError(f"{name}: counts must be 0 or more and not all 0.")
        reached = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
        kept = np.concatenate([[True], counts > 0])
        levels = (np.arange(LEVELS) + 0.5) / LEVELS
        return np.asarray(np.interp(levels, reached[kept], edges[kept]))


class TimesFile(BaseModel):
    """Histograms of the three judges, as they stand in a file."""

    model_config = ConfigDict(extra="forbid")
    hardware: str = Field(min_length=1)
    source: str = ""
    cache_ms: _Histogram
    student_ms: _Histogram
    llm_ms: _Histogram

    def times(self) -> ServiceTimes:
        """Samples that stand for the histograms."""
        return ServiceTimes(
            cache_ms=self.cache_ms.draw("cache_ms"),
            student_ms=self.student_ms.draw("student_ms"),
            llm_ms=self.llm_ms.draw("llm_ms"),
            hardware=self.hardware,
        )


def write_times(times: ServiceTimes, path: Path) -> Path:
    """Keep the histograms of measured times; the file names the hardware.

    Raises:
        DataError: the times do not say on what they were measured.
    """
    if not times.hardware:
        raise DataError("service times without hardware mean nothing elsewhere; set ServiceTimes.hardware.")
    kept: dict[str, object] = {"hardware": times.hardware, "source": "measured, one request at a time"}
    for name, samples in times.samples().items():
        low, high = samples.min() * 0.999, samples.max() * 1.001
        counts, edges = np.histogram(samples, np.geomspace(low, high, BINS + 1))
        kept[name] = {"edges_ms": edges.tolist(), "counts": counts.tolist()}
    return atomic_write_json(path, kept)


def read_times(path: Path) -> ServiceTimes:
    """Read histograms as `write_times` keeps them, or written by hand from a server's own metrics.

    Raises:
        DataError: no such file, not JSON, or not histograms of the three judges.
    """
    try:
        file = TimesFile.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"no service times at {path}: {error.strerror}; see write_times.") from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path}: {place}: {first['msg']}; see the docstring of write_times.") from error
    return file.times()
