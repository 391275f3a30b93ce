"""The same service on several machines: replicas behind Ray Serve's proxy; needs the extra ``ray``.

    serve run deploy/ray_serve.yaml

Each replica is a process with its own student, LLM and counts of queries; they share the store of scores if
`service.store` names a Redis or Valkey server.
"""

from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from lore_lib.config import parse_setting
from lore_lib.serving.app import build_app
from lore_lib.serving.bundle import open_bundle, start_service


def app(args: dict[str, Any]) -> Application:
    """What `import_path` of a Ray Serve config names.

    Args:
        args: run (folder name under outputs), and settings (such as "service.llm=none").
    """
    run, settings = str(args["run"]), dict(parse_setting(text) for text in args.get("settings", ()))
    limits = open_bundle(run, settings).config.service

    @serve.deployment(name="relevance")
    @serve.ingress(_made_in_the_replica(run, settings))
    class Relevance:
        """One replica."""

    deployment: Any = Relevance
    application: Application = deployment.options(max_ongoing_requests=limits.in_flight).bind()
    return application


def _made_in_the_replica(run: str, settings: dict[str, Any]) -> Any:
    """Ray calls this where the replica lives, so no model has to travel."""

    def make() -> FastAPI:
        bundle = open_bundle(run, settings)
        return build_app(lambda: start_service(bundle, tell=print), bundle.config.service)  # type: ignore[return-value]

    return make
