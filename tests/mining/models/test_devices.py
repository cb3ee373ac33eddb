"""A model runs where it was told to, with the threads it was told to use."""

from __future__ import annotations

import pytest
import torch

from maskmine.mining.models.devices import fix_threads, open_device
from maskmine.schemas.errors import InputError


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_device("auto").type == "cpu"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuda:99", "this machine has"),
        ("tpus", "use auto, cpu, cuda or cuda:N"),
        ("mps", "use auto, cpu"),
        ("meta", "use auto, cpu"),
        ("cuda:-1", "use auto, cpu"),
        ("cuda:x", "use auto, cpu"),
        ("cuda:0 ", "use auto, cpu"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_device(name)


def test_the_number_of_threads_does_not_depend_on_who_started_the_worker() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        fix_threads("cpu", cpu_threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
