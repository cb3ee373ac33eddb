"""What holds for all tests, set before anything is imported; processes that tests start inherit it.

One thread for numerical libraries: the tests' models are tiny, and threads that wait for each other cost minutes.
Hypothesis has no deadlines, for they tell how busy the machine is, and tries the same examples each time, so that a red
run tells of the change. And poison for the decoder, which acts only on pictures that are marked for it
(`tests/poison/sitecustomize.py`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.poison.full_disk import install

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [os.path.join(os.path.dirname(__file__), "poison"), os.environ.get("PYTHONPATH")])
)

install()
settings.register_profile("any machine", deadline=None, derandomize=True)
settings.load_profile("any machine")


@pytest.fixture(scope="module")
def one_tagger() -> Iterator[None]:
    """The runs of a file share spaCy's pipeline, which takes longer to load than they do."""
    from mining import nouns

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nouns, "_load_tagger", functools.cache(nouns._load_tagger))
        yield
