"""What a run hands to the service: one folder, checked as it is opened."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from lore_lib.artifacts import (
    MANIFEST,
    Manifest,
    atomic_write_json,
    outputs_root,
    read_manifest,
    read_parquet,
    verify_files,
    write_parquet,
)
from lore_lib.completion import parse
from lore_lib.config import Config, load_config
from lore_lib.endpoint import Answer, Endpoint, Limits
from lore_lib.errors import ArtifactError, ConfigError, EngineError
from lore_lib.features.packing import Packer, token_counter
from lore_lib.features.template import load_template
from lore_lib.serving.catalogue import Catalogue
from lore_lib.serving.export import OnnxStudent, load_onnx_student
from lore_lib.serving.local_llm import LocalLlm
from lore_lib.serving.service import Labels, Prompts, QueryCounter, Service
from lore_lib.serving.stores import StoreDown, open_store

SERVING, FEATURES = "07_serving", "01_features"
FOLDER, CARD, STUDENT = "service", "service.json", "student"
COUNTS, SCORES = "counts.parquet", "scores.parquet"
SCORE_COLUMNS = ["query", "item_id", "version", "label", "scored_at"]


class _Card(BaseModel):
    """The card of a bundle; written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    llm_stage: str  # stage and folder of the LLM's weights, below the run
    llm: str
    judge: str  # who made the scores: changes with the weights and with what they are shown


@dataclass(frozen=True)
class Bundle:
    """A run, as the service needs it.

    Attributes:
        config: of the run, with the settings of the service.
        folder: of the run.
        catalogue: its items.
        counts: requests by query, of the past.
        scores: made offline; `SCORE_COLUMNS`.
        student: exported.
        judge: who made the scores.
        llm: folder of the LLM's weights.
    """

    config: Config
    folder: Path
    catalogue: Catalogue
    counts: dict[str, float]
    scores: pd.DataFrame
    student: OnnxStudent
    judge: str
    llm: Path


def write_bundle(config: Config, counts: pd.DataFrame, scores: pd.DataFrame, llm: Path) -> Path:
    """Write what `read_bundle` reads, but for the student, which is exported to service/student before.

    Args:
        config: of the run.
        counts: query, count of past requests.
        scores: query, item_id, label, made offline by the LLM. They are dated by the end of the LLM's own
            training, the oldest they can be: an age that is told too high serves nothing stale.
        llm: folder of the LLM's weights, in a stage of the run.
    """
    run = outputs_root() / config.run
    stage, *inside = llm.resolve().relative_to(run.resolve()).parts
    folder = run / SERVING / FOLDER
    trained_at = (run / stage / MANIFEST).stat().st_mtime
    dated = scores.assign(version=catalogue_of(run).versions(scores["item_id"]), scored_at=trained_at)
    write_parquet(counts[["query", "count"]], folder / COUNTS)
    write_parquet(dated[SCORE_COLUMNS], folder / SCORES)
    prompt = f"{config.features.template} {config.features.budget}"
    judge = f"{read_manifest(run / stage).results_sha256()[:16]} {'/'.join(inside)} {prompt}"
    card = _Card(llm_stage=stage, llm="/".join(inside), judge=judge)
    return atomic_write_json(folder / CARD, card.model_dump(mode="json"))


def open_bundle(run: str, overrides: dict[str, Any] | None = None) -> Bundle:
    """Read a finished run, and check every file of the stages behind the service.

    Args:
        run: folder name under outputs.
        overrides: settings of the section `service`, such as {"service.llm": "none"}, and "model.device".

    Raises:
        ArtifactError: a stage has not run, was interrupted, or a file of it was altered.
        ConfigError: an unknown setting, settings that contradict, or one that only a new run may change.
    """
    settled = [name for name in overrides or {} if not name.startswith(("service.", "model.device"))]
    if settled:
        raise ConfigError(
            f"{settled[0]} was settled when the run was made; a service takes service.* and model.device"
        )
    served = _checked(outputs_root() / run, SERVING)
    made = {
        f"{section}.{name}": value
        for section, values in served.config.items()
        for name, value in values.items()
    }
    return read_bundle(
        load_config(served.profile, served.vertical, run, served.seed, made | (overrides or {}))
    )


def read_bundle(config: Config) -> Bundle:
    """What the serving stage of a run has written, whether or not that stage is finished.

    Args:
        config: of the run, with the settings of the service.

    Raises:
        ArtifactError: the stages before it, or its own files of the service, are missing or altered.
    """
    folder = outputs_root() / config.run
    path = folder / SERVING / FOLDER / CARD
    try:
        card = _Card.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise ArtifactError(f"{path} is not the card of a service. {_again(folder, SERVING)}") from error
    for stage in (FEATURES, card.llm_stage):
        _checked(folder, stage)
    counts = read_parquet(path.with_name(COUNTS))
    return Bundle(
        config=config,
        folder=folder,
        catalogue=catalogue_of(folder),
        counts=dict(zip(counts["query"], counts["count"].astype(float), strict=True)),
        scores=read_parquet(path.with_name(SCORES)),
        student=load_onnx_student(path.parent / STUDENT, config.service.student_threads),
        judge=card.judge,
        llm=folder / card.llm_stage / card.llm,
    )


def catalogue_of(run_folder: Path) -> Catalogue:
    """The items of a run, with what the captioner saw of them."""
    captions = read_parquet(run_folder / FEATURES / "captions.parquet").set_index("item_id")["picture"]
    return Catalogue(read_parquet(run_folder / FEATURES / "items.parquet"), captions)


def build_service(bundle: Bundle, llm: Labels | None) -> Service:
    """The service of a bundle; its store is opened, not yet filled.

    Args:
        bundle: from `open_bundle`.
        llm: from `llm_of`; None serves the tail by the student.
    """
    config = bundle.config
    home = f"sqlite:///{(bundle.folder / 'service' / 'scores.sqlite').resolve()}"
    return Service(
        catalogue=bundle.catalogue,
        prompts=prompts_of(config),
        counter=QueryCounter(
            bundle.counts,
            config.serving.head_share,
            config.serving.torso_share,
            config.service.window_requests,
        ),
        store=open_store(config.service.store or home, config.service.score_ttl_hours * 3600),
        judge=bundle.judge,
        student=bundle.student.predict_proba,
        llm=llm,
        limits=config.service,
        release=llm.close if isinstance(llm, LocalLlm) else None,
    )


async def start_service(bundle: Bundle, tell: Callable[[str], object]) -> Service:
    """The service of a bundle with its LLM loaded, its student warm, and its store filled.

    Args:
        bundle: from `open_bundle`.
        tell: gets a line on what was loaded, and on what does not work.
    """
    service = build_service(bundle, llm_of(bundle))
    await service.student.ask("query: warm up")
    limits = bundle.config.service
    tell(f"student {bundle.student.fingerprint}, LLM {limits.llm}, store {service.store.name}")
    oldest = time.time() - limits.score_ttl_hours * 3600
    fresh = bundle.scores[bundle.scores["scored_at"] >= oldest]
    if len(fresh) < len(bundle.scores):
        tell(
            f"{len(bundle.scores) - len(fresh)} of {len(bundle.scores)} scores are older than "
            f"service.score_ttl_hours={limits.score_ttl_hours:g}. {_again(bundle.folder, SERVING)}"
        )
    try:
        tell(f"{await service.fill(fresh)} scores in the store")
    except StoreDown as error:
        tell(f"the store does not answer ({error}): head queries go to the student until it does")
    return service


def prompts_of(config: Config) -> Prompts:
    """The prompts of notebook 01: in the run's template for the LLM, bare for the student."""
    from lore_lib.sampling.engine import load_tokenizer

    budget, template = config.features.budget, load_template(config.features.template)
    counter = token_counter(load_tokenizer(config.model.base))
    return Prompts(Packer(template, budget, count=counter), Packer(load_template("nano"), budget))


def llm_of(bundle: Bundle) -> Labels | None:
    """The LLM that `service.llm` names: the run's own in its own process, an endpoint, or none."""
    config = bundle.config
    if config.service.llm == "none":
        return None
    return _endpoint(config) if config.service.llm == "openai" else LocalLlm(str(bundle.llm), config)


def _endpoint(config: Config) -> Labels:
    service = config.service
    limits = Limits(service.llm_batch, timeout_seconds=service.llm_timeout_ms / 1000, attempts=1)
    endpoint = Endpoint(service.llm_url, "service.llm_url", limits)

    def judge(prompts: Sequence[str]) -> Sequence[str | Exception]:
        async def ask(client: httpx.AsyncClient, place: int) -> str | Exception:
            body = {
                "model": service.llm_model,
                "messages": [{"role": "user", "content": prompts[place]}],
                "temperature": 0.0,
                "max_tokens": config.sampling.max_completion_tokens,
            }
            said = await endpoint.call(client, "chat/completions", Answer, body)
            return parse(said.choices[0].message.content or "").label

        return endpoint.batch(len(prompts), ask, EngineError, lambda place, label: None)

    return judge


def _checked(folder: Path, stage: str) -> Manifest:
    try:
        manifest = read_manifest(folder / stage)
        verify_files(folder / stage, manifest)
    except ArtifactError as error:
        raise ArtifactError(f"{error} {_again(folder, stage)}") from error
    return manifest


def _again(folder: Path, stage: str) -> str:
    return f"Run: lore run --run {folder.name} --only {stage}"
