"""The command-line arguments that all trainings of the demo world's models have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Argument(help="folder of the training; one that was begun goes on")]
Seed = Annotated[int, typer.Option(help="world to learn from, first weights, order")]
Hours = Annotated[float, typer.Option(help="how long to train, after drawing")]
Steps = Annotated[int | None, typer.Option(help="how many steps, rather than hours")]
SceneCount = Annotated[int, typer.Option(help="how many scenes to draw and learn from")]
Threads = Annotated[int, typer.Option(help="threads of the model; their number decides last bits")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto")]
Cache = Annotated[Path | None, typer.Option(help="where drawn scenes are kept; OUT/scenes if not given")]
Workers = Annotated[int, typer.Option(help="processes that draw; nothing depends on it")]
