"""What holds for all tests, set before anything is imported; processes that tests start inherit it.

One thread for numerical libraries: the tests' models are tiny, and threads that wait for each other cost minutes.
Hypothesis has no deadlines, for they tell how busy the machine is, and tries the same examples each time, so that a red
run tells of the change. And poison for the decoder, which acts only on pictures that are marked for it
(`tests/support/poison/sitecustomize.py`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.support.poison.full_disk import install

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as maskmine does, before torch is loaded
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [os.path.join(os.path.dirname(__file__), "support", "poison"), os.environ.get("PYTHONPATH")])
)

install()
settings.register_profile("any machine", deadline=None, derandomize=True)
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def one_tagger() -> Iterator[None]:
    """All runs of a thread share spaCy's packages, which take longer to load than the runs of the tests. A pipeline in
    a folder is loaded each time, for a test may have changed it."""
    from maskmine.mining import nouns

    load, of_thread = nouns._load_tagger, threading.local()

    def load_once(*key: Any) -> Any:
        if os.path.isdir(key[0]):
            return load(*key)
        loaded = vars(of_thread).setdefault("loaded", {})
        if key not in loaded:
            loaded[key] = load(*key)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nouns, "_load_tagger", load_once)
        yield
