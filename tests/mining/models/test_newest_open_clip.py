"""The newest open_clip, where a newer one is published than is installed: its CLIPs are still embedded and tuned alike.

Mask prompts walk through the inner parts of its towers, which a release may change.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TESTS = ("test_clip.py", "test_mask_prompts.py", "test_embeddings.py")


def _newest() -> str:
    """The newest release on the index that pip asks. Skips where it does not answer."""
    asked = [sys.executable, "-m", "pip", "index", "versions", "open_clip_torch", "--retries", "0", "--timeout", "5"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    found = re.search(r"open_clip_torch \(([^)]+)\)", answer.stdout)
    if found is None:
        pytest.skip("the package index does not answer")
    return found[1]


def test_clip_works_with_the_newest_release_of_open_clip(tmp_path: Path) -> None:
    installed, newest = importlib.metadata.version("open_clip_torch"), _newest()
    if newest == installed:
        pytest.skip(f"open_clip {installed}, which is installed, is the newest")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    subprocess.run([*pip, f"open_clip_torch=={newest}"], check=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    tests = [str(ROOT / "tests" / "mining" / name) for name in TESTS]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"open_clip {newest}:\n{ran.stdout[-4000:]}"
