"""A run handed to the service: `lore serve` as a user starts it, and Ray Serve with two replicas."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
import yaml

from lore_lib.artifacts import FileEntry, Manifest, file_sha256, write_parquet
from lore_lib.config import SECTIONS, load_config
from lore_lib.errors import ArtifactError, ConfigError, EngineError
from lore_lib.run.runner import end_tree
from lore_lib.serving.bundle import build_service, llm_of, open_bundle, prompts_of, write_bundle
from lore_lib.serving.export import export_student
from lore_lib.serving.local_llm import LocalLlm
from lore_lib.serving.student import train_student
from lore_lib.vertical.schema import LABELS

RUN = "tiny"
LLM = Path("05_grpo", "runs", "seed-0", "best")


def finish(folder: Path, config: Any) -> None:
    """A manifest over the files of a stage, as the stage itself writes it."""
    files = {
        path.relative_to(folder).as_posix(): FileEntry(sha256=file_sha256(path), bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    Manifest(
        stage=folder.name, profile=config.profile, vertical=config.vertical, run=config.run, seed=config.seed,
        config={name: config.section(name) for name in SECTIONS if name != "service"},
        config_hash="", inputs={},
        files=files, engines={}, versions={}, counts={}, metrics=[], seconds=0, peak_memory_mib=0, key="",
    ).write(folder)  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(
    tmp_path_factory: pytest.TempPathFactory,
    world_tables: dict[str, pd.DataFrame],
    captions: "pd.Series[Any]",
    prompts: pd.DataFrame,
    tiny_model: Path,
) -> Path:
    """A run of one-layer models over the small world; treat it as read-only."""
    outputs = tmp_path_factory.mktemp("outputs")
    patch = pytest.MonkeyPatch()
    patch.setenv("LORE_OUTPUTS", str(outputs))
    try:
        config = load_config("smoke", run=RUN, overrides={"model.base": str(tiny_model)})
        folder = outputs / RUN
        seen = captions.rename("picture").rename_axis("item_id").reset_index()
        write_parquet(world_tables["items"].drop(columns="picture"), folder / "01_features" / "items.parquet")
        write_parquet(seen, folder / "01_features" / "captions.parquet")
        finish(folder / "01_features", config)
        shutil.copytree(tiny_model, folder / LLM)
        finish(folder / "05_grpo", config)
        rows = prompts.head(16).assign(**dict.fromkeys(LABELS, 0.25))
        student = train_student(str(tiny_model), rows, tmp_path_factory.mktemp("trainer"), epochs=1, seed=0)
        home = folder / "07_serving" / "service"
        export_student(student, home / "student", rows["prompt"].head(4).tolist())
        queries = world_tables["queries"]
        asked = prompts.head(8).merge(queries[["query_id", "query"]], on="query_id")
        counts = pd.DataFrame({"query": asked["query"].unique()}).assign(count=lambda table: 90 - table.index)
        write_bundle(config, counts, asked.assign(label="L1")[["query", "item_id", "label"]], folder / LLM)
        finish(folder / "07_serving", config)
    finally:
        patch.undo()
    return folder


@pytest.fixture
def served(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORE_OUTPUTS", str(run_folder.parent))
    return run_folder


@pytest.fixture
def copied(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(run_folder, tmp_path / RUN)
    monkeypatch.setenv("LORE_OUTPUTS", str(tmp_path))
    return tmp_path / RUN


def first_pair(folder: Path) -> dict[str, str]:
    scores = pd.read_parquet(folder / "07_serving" / "service" / "scores.parquet")
    return {"query": scores["query"].iloc[0], "item_id": scores["item_id"].iloc[0]}


def test_scores_are_as_old_as_the_model_that_gave_them(served: Path) -> None:
    scores = pd.read_parquet(served / "07_serving" / "service" / "scores.parquet")
    trained_at = (served / "05_grpo" / "manifest.json").stat().st_mtime
    assert set(scores["scored_at"]) == {trained_at}


def test_the_prompts_are_those_of_the_run(served: Path, prompts: pd.DataFrame, world_tables: Any) -> None:
    bundle = open_bundle(RUN)
    row = prompts.iloc[0]
    query = world_tables["queries"].set_index("query_id").loc[row.query_id, "query"]
    item = bundle.catalogue.find(row.item_id)
    assert item is not None
    writers = prompts_of(bundle.config)
    service = build_service(bundle, None)
    assert service._write(writers.student, query, item.fields) == row.prompt


def test_the_runs_own_llm_writes_labels_or_nothing(served: Path) -> None:
    judge = llm_of(open_bundle(RUN))
    assert judge is not None
    said = judge(["query: red dress\ntitle: dress"] * 2)
    assert len(said) == 2
    assert set(said) <= {"", *LABELS}
    assert isinstance(judge, LocalLlm)
    for process in judge._pool._processes.values():
        process.kill()
    with pytest.raises(EngineError, match="died"):
        judge(["query: red dress"])
    assert len(judge(["query: red dress"])) == 1, "another process has taken over"
    judge.close()
    assert llm_of(open_bundle(RUN, {"service.llm": "none"})) is None


class Chat(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that is down for every second prompt of a batch."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][-1]["content"]
        told = {"choices": [{"message": {"content": f"<think>\nfit\n</think>\n[L{prompt[-1]}]"}}]}
        data = json.dumps(told).encode()
        self.send_response(500 if prompt.endswith("9") else 200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


def test_an_llm_behind_an_endpoint(served: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Chat) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        settings = {"service.llm": "openai", "service.llm_model": "lore", "service.llm_url": url}
        judge = llm_of(open_bundle(RUN, settings))
        assert judge is not None
        said = judge(["3", "9", "4"])
        server.shutdown()
    assert (said[0], said[2]) == ("L3", "L4")
    assert isinstance(said[1], Exception)


@pytest.mark.parametrize(
    "name",
    [
        "01_features/items.parquet",
        f"{LLM.as_posix()}/model.safetensors",
        "07_serving/service/student/model.onnx",
    ],
)
def test_an_altered_file_is_refused_with_the_command_that_makes_it(copied: Path, name: str) -> None:
    path = copied / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=rf"altered.*lore run --run {RUN} --only {name.split('/')[0]}"):
        open_bundle(RUN)


def test_a_run_that_is_not_there_is_named(served: Path) -> None:
    with pytest.raises(ArtifactError, match="lore run --run gone --only 07_serving"):
        open_bundle("gone")


def test_settings_are_checked(served: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'llm_batch'"):
        open_bundle(RUN, {"service.llm_bach": 2})
    with pytest.raises(ConfigError, match="leaves the student no time"):
        open_bundle(RUN, {"service.llm_timeout_ms": 9000})
    with pytest.raises(ConfigError, match=r"service\.llm_model"):
        open_bundle(RUN, {"service.llm": "openai"})


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ready(url: str, process: "subprocess.Popen[str]", seconds: float) -> None:
    """Wait until the service takes requests; if it ends, show what it said."""
    until = time.monotonic() + seconds
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < until, "not ready in time"
        time.sleep(0.1)


def test_lore_serve_answers_and_ends_politely(copied: Path) -> None:
    command = [sys.executable, "-m", "lore_lib", "serve", "--run", RUN, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--set", "service.llm=none"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        _, _, url = process.stdout.readline().partition(" at ")
        url = url.partition(";")[0]
        ready(url, process, 90)
        told = httpx.post(f"{url}/v1/relevance", json=first_pair(copied), timeout=30).json()
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (told["label"], told["served_by"], told["degraded"]) == ("L1", "cache", False)
    assert process.returncode == 0, errors
    assert errors == ""
    assert "8 scores in the store" in out
    assert out.endswith("stopped\n")
    assert (copied / "service" / "scores.sqlite").is_file()


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_two_replicas_behind_ray_serve(copied: Path, root: Path, tmp_path: Path) -> None:
    """The config that ships, but for the run, the port and the address."""
    config = yaml.safe_load((root / "deploy" / "ray_serve.yaml").read_text())
    port = free_port()
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    application["args"]["run"] = RUN
    (deployment,) = application["deployments"]
    deployment["ray_actor_options"]["num_cpus"] = 0.1
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    script = Path(sys.executable).with_name("serve")
    environment = os.environ | {"PYTHONPATH": str(root), "RAY_USAGE_STATS_ENABLED": "0"}
    log = (tmp_path / "serve.log").open("w+")  # a pipe that nobody reads would fill up and stop it
    process = subprocess.Popen(
        [script, "run", path], cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
    )
    try:
        url = f"http://127.0.0.1:{port}"
        ready(url, process, 200)
        answers, until = [], time.monotonic() + 60
        while len({answer.headers["x-replica"] for answer in answers}) < 2 and time.monotonic() < until:
            answers.append(httpx.post(f"{url}/v1/relevance", json=first_pair(copied), timeout=30))
        refused = httpx.post(f"{url}/v1/relevance", json={"query": "x"}, timeout=30)
        replicas = {answer.headers["x-replica"] for answer in answers}
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):  # how long Ray takes to end is its own affair
            process.wait(60)
        end_tree(process.pid)
        log.close()
    assert {answer.json()["label"] for answer in answers} == {"L1"}
    assert len(replicas) == 2
    assert refused.status_code == 422
    assert refused.json()["error"]["reason"] == "malformed"
