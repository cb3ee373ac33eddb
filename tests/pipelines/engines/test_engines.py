"""The engines pass one conformance suite; see `tests/support/conformance.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskmine.pipelines.engines.local import LocalEngine
from tests.support import conformance

pytestmark = pytest.mark.usefixtures("one_tagger")

CHECKS = [
    conformance.same_bytes_as_local,
    conformance.a_set_grows_to_the_same_bytes,
    conformance.only_missing_cells_are_made,
    conformance.poisonous_pictures_cost_themselves_alone,
    conformance.the_account_holds_whatever_fails,
    conformance.the_exit_codes_are_the_same,
    conformance.faults_reach_the_driver,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_local_engine_conforms(check: conformance.Check, tmp_path: Path) -> None:
    check(LocalEngine(), tmp_path)
