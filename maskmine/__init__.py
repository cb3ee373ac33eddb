"""maskmine: mask–noun pairs from captioned images, and CLIP tuned on them.

The five folders beside this one are its subpackages: in a checkout by symbolic links, which `setup.py` makes, in a
wheel as folders. So the code says `maskmine.mining`, and nothing but `maskmine` is installed.

From Python:

    import maskmine

    run = maskmine.mine("coco", settings={"out": "runs/coco"}, limit=1000)
    for pair in run.pairs():
        pair.noun, pair.image, pair.mask

What `__all__` names is public and keeps its meaning within a version; all else may change. Nothing heavy is imported
before it is used.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskmine.pipelines.api import MinedPair, Run, append, mine, mix, open_run, push, segmenter, tune
    from maskmine.schemas.errors import IncompleteError, InputError, OtherPlanError

__all__ = [
    "IncompleteError",
    "InputError",
    "MinedPair",
    "OtherPlanError",
    "Run",
    "__version__",
    "append",
    "mine",
    "mix",
    "open_run",
    "push",
    "segmenter",
    "tune",
]

# Threads of a model that wait for each other spin, by default, and take the cores from those that they wait for as soon
# as anything else runs. OpenMP reads this when it is loaded, with torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    __version__ = version("maskmine")
except PackageNotFoundError:  # run from a folder that was not installed
    __version__ = "0+unknown"

_ERRORS = {"IncompleteError", "InputError", "OtherPlanError"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module `maskmine` has no attribute `{name}`")
    return getattr(import_module("maskmine.schemas.errors" if name in _ERRORS else "maskmine.pipelines.api"), name)


def __dir__() -> list[str]:
    return __all__
