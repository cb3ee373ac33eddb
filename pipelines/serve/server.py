"""`maskmine serve`: a local web page on which users name classes and get the map of an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from maskmine.pipelines.serve.service import Serving
from maskmine.pipelines.web.server import run_server


def serve(settings: Serving, *, host: str, port: int, say: Callable[[str], None]) -> NoReturn:
    """Load the models and serve until an interrupt; raises as `run_server` and `Serving.open`."""

    def open_app(hosts: tuple[str, ...] | None, stopping: Callable[[], bool]) -> Any:
        from maskmine.pipelines.serve.app import make_app

        say("loading the models …")
        return make_app(settings.open(), hosts=hosts, stopping=stopping)

    run_server(open_app, host=host, port=port, say=say, command="serve")
