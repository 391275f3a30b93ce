"""A stage is one notebook and one folder, outputs/<run>/<stage>/, whose manifest is written last."""

import hashlib
import html
import importlib.metadata
import json
import math
import os
import platform
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd
import psutil

import lore_lib
from lore_lib.artifacts import (
    MANIFEST,
    PART_SUFFIX,
    FileEntry,
    Manifest,
    Metric,
    atomic_write,
    atomic_write_json,
    explain_disk,
    file_sha256,
    make_folder,
    outputs_root,
    project_root,
    read_json,
    read_manifest,
    read_parquet,
    verify_files,
    write_jsonl,
    write_parquet,
)
from lore_lib.config import MOCKS, Config, config_hash, load_config, require_built
from lore_lib.device import resolve_device
from lore_lib.errors import ArtifactError, ConfigError, DataError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXECUTED = "executed.ipynb"
LOG = "run.log"
_IDENTITY = "run.json"  # which profile, vertical and seed a run folder belongs to
_TOKEN = ".resume"  # what the files of a stage folder were made from
_NOT_RESULTS = {MANIFEST, EXECUTED, LOG, _TOKEN}
_DECISIVE = (  # installed packages that can change a number
    *("torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "vllm"),
    *("numpy", "pandas", "scipy", "scikit-learn", "pyarrow"),
)


@dataclass(frozen=True)
class StageSpec:
    """What a stage shows, reads, promises and costs."""

    name: str  # of the notebook and of the folder
    shows: str  # one line for the report
    needs: tuple[str, ...]  # stages it may read from
    sections: tuple[str, ...]  # config sections it depends on
    promises: tuple[str, ...]  # files without which it has not done its work
    headlines: tuple[str, ...]  # estimators that a summary shows, one column each; pass@k for a run's own k
    minutes: MappingProxyType[str, float]  # expected, by profile

    def headlines_of(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """The headlines of a run, from the config of its manifest: pass@k becomes pass@8 where k is 8."""
        k = config.get("sampling", {}).get("k", "k")
        return tuple(name.replace("pass@k", f"pass@{k}") for name in self.headlines)


def _spec(
    name: str,
    shows: str,
    *,
    needs: tuple[str, ...] = (),
    sections: tuple[str, ...] = (),
    promises: tuple[str, ...] = (),
    headlines: tuple[str, ...] = (),
    minutes: tuple[float, float, float, float],
) -> StageSpec:
    by_profile = MappingProxyType(dict(zip(("smoke", "demo", "small", "paper"), minutes, strict=True)))
    return StageSpec(name, shows, needs, (*sections, "runtime"), promises, headlines, by_profile)


_BASE = ("model", "world", "features")
_SPECS = (
    _spec(
        "00_start_here",
        "The environment, and the whole idea on a handful of pairs",
        sections=_BASE,
        minutes=(0.1, 0.1, 1, 2),
    ),
    _spec(
        "01_features",
        "Queries and items become prompts under a token budget; which of their lines make a better judge",
        sections=_BASE,
        promises=tuple(
            f"{t}.parquet" for t in ("items", "queries", "pairs", "clicks", "captions", "prompts", "ablation")
        ),
        headlines=("read perfectly, all pairs", "pass@1, all pairs"),
        minutes=(0.3, 2.2, 20, 120),
    ),
    _spec(
        "02_cot_synthesis",
        "Knowledge, vision and rules enter the chain of thought; a funnel keeps what is sound",
        needs=("01_features",),
        sections=(*_BASE, "cot", "sft", "sampling"),
        promises=("recall.parquet", "teacher.parquet", "students.parquet"),
        headlines=("teacher accuracy", "pass@1, dev pairs"),
        minutes=(0.7, 3, 60, 1200),
    ),
    _spec(
        "03_sft",
        "Direct labels, naive chains and progressive chains, each taught to the same student",
        needs=("01_features", "02_cot_synthesis"),
        sections=(*_BASE, "cot", "sft", "sampling"),
        promises=("losses.parquet", "glimpses.parquet"),
        minutes=(1.7, 3.4, 60, 600),
    ),
    _spec(
        "04_pass_at_8",
        "How often one sample is right, and how often any of eight is",
        needs=("01_features", "02_cot_synthesis", "03_sft"),
        sections=(*_BASE, "cot", "sft", "sampling"),
        promises=("samples.parquet", "effects.parquet", "differences.parquet", "pool-samples.parquet"),
        headlines=("pass@1", "vote", "pass@k", "parse rate"),
        minutes=(0.6, 2, 30, 120),
    ),
    _spec(
        "05_grpo",
        "KL-free GRPO with clip-higher: can one try become as good as eight?",
        needs=("01_features", "02_cot_synthesis", "03_sft", "04_pass_at_8"),
        sections=(*_BASE, "cot", "sft", "sampling", "grpo"),
        promises=tuple(
            f"{t}.parquet"
            for t in ("pool", "history", "probes", "variants", "samples", "effects", "differences")
        ),
        headlines=("pass@1", "pass@k", "pass@1 gain", "pass@k gain"),
        minutes=(0.6, 7.5, 120, 1200),
    ),
    _spec(
        "06_rair",
        "General, long-tail hard and visual salience: every system beside trivial baselines",
        needs=("01_features", "02_cot_synthesis", "03_sft", "04_pass_at_8", "05_grpo"),
        sections=(*_BASE, "cot", "sft", "sampling", "grpo", "rair"),
        promises=(
            "benchmark.jsonl",
            *(f"{table}.parquet" for table in ("predictions", "scores", "comparisons", "served")),
        ),
        headlines=("acc@2", "acc@4", "macro-F1"),
        minutes=(0.4, 1, 30, 120),
    ),
    _spec(
        "07_serving",
        "Head from a cache, torso by a student, tail by the model: quality, delay and cost",
        needs=("01_features", "02_cot_synthesis", "03_sft", "04_pass_at_8", "05_grpo", "06_rair"),
        sections=(*_BASE, "cot", "sft", "sampling", "grpo", "rair", "serving"),
        promises=tuple(
            f"{t}.parquet"
            for t in (
                *("judges", "students", "latencies", "evictions", "policies"),
                *("gains", "frontier", "knobs", "trouble", "check"),
            )
        ),
        headlines=("acc@2", "macro-F1", "p95 latency (ms)", "GPU-seconds per million requests"),
        minutes=(0.4, 2.5, 10, 60),
    ),
    _spec(
        "08_your_vertical",
        "The same chain over a vertical of your own",
        sections=(*_BASE, "cot"),
        promises=("vertical/vertical.yaml", "traces.parquet"),
        headlines=("teacher accuracy",),
        minutes=(0.1, 0.2, 1, 5),
    ),
    _spec(
        "09_open_questions",
        "Open ends: what drops where; captions or pixels; length; another vertical",
        needs=("01_features", "02_cot_synthesis", "03_sft", "04_pass_at_8", "05_grpo", "06_rair"),
        sections=(*_BASE, "cot", "sft", "sampling", "grpo", "rair"),
        promises=tuple(f"{t}.parquet" for t in ("drops", "diagonal", "lengths", "transfer")),
        headlines=("acc@4", "acc@2"),
        minutes=(0.8, 3, 15, 60),
    ),
)
STAGES: MappingProxyType[str, StageSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})


def stage_spec(name: str) -> StageSpec:
    """The spec of a stage by its full name.

    Raises:
        ConfigError: unknown name; the nearest one is named.
    """
    if name not in STAGES:
        raise ConfigError(f"unknown stage {name!r}; {nearest(name, STAGES)}")
    return STAGES[name]


def notebook_path(name: str) -> Path:
    """The notebook of a stage."""
    return project_root() / "notebooks" / f"{name}.ipynb"


def code_cells(notebook: Path) -> list[tuple[str, list[str]]]:
    """Source and tags of each code cell (read as JSON: importing nbformat takes seconds).

    Raises:
        ArtifactError: the file is not a notebook.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return [
            ("".join(cell["source"]), cell["metadata"].get("tags", []))
            for cell in cells
            if cell["cell_type"] == "code"
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{notebook} is not a notebook ({error!r}); take it from the repository"
        ) from error


def run_folder(config: Config) -> Path:
    """outputs/<run>."""
    return outputs_root() / config.run


def rerun_command(config: Config, stage: str) -> str:
    """The command that makes one stage of this run."""
    return (
        f"lore run --profile {config.profile} --vertical {config.vertical} --run {config.run} "
        f"--seed {config.seed} --only {stage}"
    )


def claim_run(config: Config) -> Path:
    """Make outputs/<run>, or check that it belongs to the same profile, vertical and seed; returns it.

    Raises:
        ArtifactError: the folder belongs to another profile, vertical or seed.
    """
    require_built(config)
    folder = make_folder(run_folder(config))
    mine = {"profile": config.profile, "vertical": config.vertical, "seed": config.seed}
    path = folder / _IDENTITY
    if not path.is_file():
        atomic_write_json(path, mine)
    found = read_json(path)
    if not isinstance(found, dict):
        raise ArtifactError(
            f"{path} does not say what this run is of. Pick another folder, or delete {folder}."
        )
    if found != mine:
        differs = [
            f"{name} {found.get(name)!r} (now {mine[name]!r})"
            for name in mine
            if found.get(name) != mine[name]
        ]
        other = f"{config.profile}-{config.vertical}-{config.seed}"
        raise ArtifactError(
            f"{folder} was made with {', '.join(differs)}; one run folder holds one of each. "
            f"Pick another folder, such as RUN={other}."
        )
    return folder


def versions() -> dict[str, str]:
    """Python, this kit, and the installed packages that can change a number."""
    found = {"python": platform.python_version(), "lore-kit": lore_lib.__version__}
    for name in _DECISIVE:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _source_hash(without: tuple[str, ...]) -> str:
    root = Path(lore_lib.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
        name = path.relative_to(root).as_posix()
        if not name.startswith(without):
            digest.update(f"{name}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()


def _notebook_hash(path: Path) -> str:
    """Hash of the code a notebook runs; prose, outputs and the parameters' defaults do not count."""
    if not path.is_file():
        return ""
    code = [source for source, tags in code_cells(path) if "parameters" not in tags]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def _inputs(spec: StageSpec, config: Config) -> dict[str, str]:
    made: dict[str, str] = {}
    for name in spec.needs:
        with suppress(ArtifactError):  # not run yet, or not whole: whoever reads it says so
            made[name] = read_manifest(run_folder(config) / name).results_sha256()
    return made


def _data(spec: StageSpec, config: Config) -> dict[str, str]:
    """Fingerprints of the files a stage reads that no stage made: rules, vertical, local models."""
    root = project_root()
    folders = [
        root / "data" / "rules",
        root / "data" / "verticals" / config.vertical,
        root / config.model.base,
    ]
    if "rair" in spec.sections:
        folders.append(root / "data" / "benchmarks")
    if "serving" in spec.sections:
        folders.append(root / config.serving.student_base)
    files = sorted({path for folder in folders for path in folder.rglob("*") if path.is_file()})
    return {os.path.relpath(path, root): _fingerprint(path) for path in files}


def _fingerprint(path: Path) -> str:
    """Sha256 of a file; size and time of one too large to read at every start."""
    facts = path.stat()
    return file_sha256(path) if facts.st_size < 2**26 else f"{facts.st_size} {facts.st_mtime_ns}"


def resume_token(spec: StageSpec, config: Config) -> str:
    """Hash of all that the files of a stage are made from: config, inputs, data, library, versions.

    Files of a stage folder are kept for resuming while it stays the same. Drawing code does not count.
    """
    parts = [config_hash(config, spec.sections), _inputs(spec, config), _data(spec, config), versions()]
    parts.append(_source_hash(("cli.py", "run/", "viz/")))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stage_key(spec: StageSpec, config: Config) -> str:
    """Hash of all that a finished stage depends on: its resume token, drawing code and notebook code."""
    parts = [
        resume_token(spec, config),
        _source_hash(("cli.py", "run/")),
        _notebook_hash(notebook_path(spec.name)),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def tree_rss_mib(pid: int) -> float:
    """Resident memory in MiB of a process and all its descendants; 0 once it is gone."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    total = 0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


class _MemoryWatch(threading.Thread):
    """Samples the memory of this process and its children twice a second, so workers are counted too."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib = tree_rss_mib(os.getpid())
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.5):
            self.peak_mib = max(self.peak_mib, tree_rss_mib(os.getpid()))

    def stop(self) -> float:
        self._stopped.set()
        self.peak_mib = max(self.peak_mib, tree_rss_mib(os.getpid()))
        return self.peak_mib


@dataclass(frozen=True)
class Card:
    """Rows of (name, value) that a notebook shows as a small table."""

    title: str
    rows: tuple[tuple[str, str], ...]

    def _repr_html_(self) -> str:
        cells = "".join(
            f'<tr><th style="text-align:left">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(value)}</td></tr>'
            for name, value in self.rows
        )
        return f"<table><caption>{html.escape(self.title)}</caption>{cells}</table>"

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        return "\n".join([self.title, *(f"  {name:<{width}}  {value}" for name, value in self.rows)])


@dataclass
class Stage:
    """An open stage: read what earlier stages wrote, write files, then `finish`."""

    spec: StageSpec
    config: Config
    folder: Path
    key: str
    _inputs: dict[str, str] = field(default_factory=dict)
    _engines: dict[str, str] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _metrics: dict[str, Metric] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _memory: _MemoryWatch = field(default_factory=_MemoryWatch)

    def path(self, *parts: str) -> Path:
        """A path inside the stage's folder; its parent folders are made."""
        target = self.folder.joinpath(*parts)
        make_folder(target.parent)
        return target

    def require(self, stage_name: str) -> Path:
        """The folder of an earlier stage, once its manifest and every file of it are checked.

        Raises:
            ConfigError: this stage does not list that stage among its needs.
            ArtifactError: not run, interrupted, of another schema version, run or setting, or damaged;
                the message ends with the command that makes it.
        """
        if stage_name not in self.spec.needs:
            raise ConfigError(
                f"{self.spec.name} reads {stage_spec(stage_name).name} without listing it; "
                "add it to `needs` of this stage in lore_lib/run/stage.py"
            )
        folder = run_folder(self.config) / stage_name
        if stage_name not in self._inputs:
            try:
                manifest = check_input(folder, self.spec, self.config)
            except ArtifactError as error:
                raise ArtifactError(f"{error} Run: {rerun_command(self.config, stage_name)}") from error
            self._inputs[stage_name] = manifest.results_sha256()
        return folder

    def write_table(self, name: str, frame: pd.DataFrame) -> Path:
        """Write <name>.parquet."""
        return write_parquet(frame, self.path(f"{name}.parquet"))

    def read_table(self, stage_name: str, name: str) -> pd.DataFrame:
        """Read <name>.parquet of an earlier stage (checked by `require`) or of this one."""
        folder = self.folder if stage_name == self.spec.name else self.require(stage_name)
        return read_parquet(folder / f"{name}.parquet")

    def write_rows(self, name: str, rows: list[dict[str, Any]]) -> Path:
        """Write <name>.jsonl, one object per row."""
        return write_jsonl(self.path(f"{name}.jsonl"), rows)

    def save_figure(self, fig: "Figure", name: str, caption: str = "") -> Path:
        """Write figures/<name>.png at 120 dpi; the caption travels inside the file."""
        text = {"Description": caption} if caption else {}
        return atomic_write(
            self.path("figures", f"{name}.png"),
            lambda part: fig.savefig(part, format="png", dpi=120, bbox_inches="tight", metadata=text),
        )

    def metric(
        self,
        name: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
        *,
        n: int,
        seeds: tuple[int, ...] = (),
        note: str = "",
    ) -> Metric:
        """Record one headline number, named "<estimator> | <system>"; recording it again replaces it.

        Args:
            value: the estimate; leave out a metric that is undefined.
            low: lower end of its 95 % interval; NaN is recorded as unknown (a bootstrap over one query).
            high: upper end.
            n: how many units the estimate is a mean over.
            seeds: training or sampling seeds it is averaged over; () means the run's own seed.

        Raises:
            DataError: the value is not a finite number, or an end of its interval is infinite.
        """
        ends = [None if end is None or math.isnan(end) else float(end) for end in (low, high)]
        if not all(math.isfinite(number) for number in (value, *ends) if number is not None):
            raise DataError(
                f"metric {name!r} is {value} [{low}, {high}]; it must be finite: leave out what is undefined"
            )
        self._metrics[name] = Metric(
            name=name,
            value=float(value),
            low=ends[0],
            high=ends[1],
            n=int(n),
            seeds=tuple(int(seed) for seed in seeds) or (self.config.seed,),
            note=note,
        )
        return self._metrics[name]

    def count(self, name: str, value: int) -> None:
        """Record how many of something there were."""
        self._counts[name] = int(value)

    def engine(self, role: str, name: str) -> None:
        """Stamp which engine played a role, such as ("teacher", "symbolic")."""
        self._engines[role] = name

    def show(self) -> Card:
        """The resolved settings of the sections this stage reads, where it writes, and how long it takes."""
        config, rows = self.config, []
        origin = f"profile {config.profile}, vertical {config.vertical}, seed {config.seed}"
        rows.append(("run", f"{config.run} ({origin})"))
        rows.append(("writes", str(self.folder)))
        rows.append(("expected", f"about {self.spec.minutes[config.profile]:g} min"))
        rows.append(("device", resolve_device(config.model.device)))
        rows += [("mock", notice) for notice in mock_notices(_mockable(config, self.spec.sections))]
        for section in self.spec.sections:
            values = config.section(section).items()
            rows.append((section, ", ".join(f"{name}={value}" for name, value in values)))
        return Card(self.spec.name, tuple(rows))

    def finish(self) -> Manifest:
        """Check what the stage promised, fingerprint its files, and write the manifest last.

        Raises:
            ArtifactError: a promised file is missing.
        """
        absent = [name for name in self.spec.promises if not (self.folder / name).is_file()]
        if absent:
            raise ArtifactError(f"{self.spec.name} promised {', '.join(absent)}, absent from {self.folder}")
        config = self.config
        manifest = Manifest(
            stage=self.spec.name,
            profile=config.profile,
            vertical=config.vertical,
            run=config.run,
            seed=config.seed,
            config={name: config.section(name) for name in self.spec.sections},
            config_hash=config_hash(config, self.spec.sections),
            inputs=self._inputs,
            files=self._fingerprints(),
            engines=_mockable(config, self.spec.sections) | self._engines,
            versions=versions(),
            counts=self._counts,
            metrics=list(self._metrics.values()),
            seconds=round(time.monotonic() - self._started, 2),
            peak_memory_mib=round(self._memory.stop(), 1),
            key=self.key,
        )
        manifest.write(self.folder)
        return manifest

    def _fingerprints(self) -> dict[str, FileEntry]:
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name not in _NOT_RESULTS and not name.endswith(PART_SUFFIX):
                found[name] = FileEntry(sha256=file_sha256(path), bytes=path.stat().st_size)
        return found


def open_stage(
    name: str,
    profile: str = "demo",
    vertical: str = "apparel_home",
    run: str = "",
    seed: int = 17,
    overrides: dict[str, Any] | None = None,
) -> Stage:
    """Open a stage for writing; the first library call of every notebook.

    The old manifest goes first, so a half-run folder is never mistaken for a whole one. Other files stay, for
    long steps to resume from, unless the config, the inputs or the library they came from have changed.

    Raises:
        ConfigError: unknown stage, profile or setting, or settings that contradict.
        ArtifactError: outputs/<run> is of another profile, vertical or seed, or cannot be written.
    """
    spec = stage_spec(name)
    config = load_config(profile, vertical, run, seed, overrides)
    folder = make_folder(claim_run(config) / name)
    token = resume_token(spec, config)
    with explain_disk(folder):
        (folder / MANIFEST).unlink(missing_ok=True)
        if _stale(folder, token):
            _clear(folder)
        for part in folder.rglob(f"*{PART_SUFFIX}"):
            if part.is_file():  # a folder is a model that a training was saving: it goes on from there
                part.unlink(missing_ok=True)
    atomic_write_json(folder / _TOKEN, token)
    stage = Stage(spec, config, folder, stage_key(spec, config))
    stage._memory.start()
    return stage


def check_input(folder: Path, reader: StageSpec, config: Config) -> Manifest:
    """The manifest in `folder`, if it is whole and was made for this run and these settings.

    Raises:
        ArtifactError: with what differs.
    """
    manifest = read_manifest(folder)
    for name in ("profile", "vertical", "seed"):
        found, wanted = getattr(manifest, name), getattr(config, name)
        if found != wanted:
            raise ArtifactError(f"{folder} is of {name} {found!r}, this run is of {wanted!r}.")
    differs = []
    for section in set(manifest.config) & set(reader.sections) - {"runtime"}:
        now = config.section(section)
        differs += [
            f"{section}.{name}={old} (now {now.get(name)})"
            for name, old in manifest.config[section].items()
            if now.get(name) != old
        ]
    if differs:
        raise ArtifactError(
            f"{folder} was made with {', '.join(sorted(differs))}; keep that, or make it again."
        )
    verify_files(folder, manifest)
    return manifest


def finished(spec: StageSpec, config: Config) -> Manifest | None:
    """The manifest of a stage that need not run again: same key, every file as it was written; else None."""
    folder = run_folder(config) / spec.name
    try:
        manifest = read_manifest(folder)
        verify_files(folder, manifest)
    except ArtifactError:
        return None
    promised = all(name in manifest.files for name in spec.promises)
    return manifest if promised and manifest.key == stage_key(spec, config) else None


def mock_notices(engines: dict[str, str]) -> list[str]:
    """One sentence for each engine that stands in for a large model."""
    return [
        f"{role} '{name}' stands in for {MOCKS[role][name]}"
        for role, name in engines.items()
        if name in MOCKS.get(role, {})
    ]


def _mockable(config: Config, sections: tuple[str, ...]) -> dict[str, str]:
    """Engines of the config that may be mocks, among the sections a stage reads."""
    engines: dict[str, str] = {}
    if "features" in sections:
        engines["captioner"] = config.features.captioner
    if "cot" in sections:
        engines["teacher"] = config.cot.teacher
    return engines


def _stale(folder: Path, token: str) -> bool:
    path = folder / _TOKEN
    return not path.is_file() or path.read_bytes().strip() != json.dumps(token).encode()


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in _NOT_RESULTS:
            path.unlink()
