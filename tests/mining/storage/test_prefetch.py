from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskmine.mining.storage.prefetch import map_in_order, read_ahead


@given(st.lists(st.integers(), max_size=20), st.integers(0, 4), st.none() | st.integers(0, 5))
def test_results_come_in_the_order_of_the_items(items: list[int], threads: int, ahead: int | None) -> None:
    assert list(map_in_order(str, items, threads=threads, ahead=ahead)) == [str(item) for item in items]


def test_no_more_items_are_taken_than_those_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            taken.append(item)
            yield item

    results = map_in_order(lambda item: item, items(), threads=2, ahead=3)
    assert next(results) == 0
    assert taken == [0, 1, 2, 3]
    assert next(results) == 1
    assert taken == [0, 1, 2, 3, 4]
    results.close()  # type: ignore[attr-defined]


def test_the_next_item_is_worked_on_while_one_is_used() -> None:
    begun = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            begun.set()
        return item

    results = map_in_order(work, range(2), threads=1, ahead=1)
    next(results)
    assert begun.wait(timeout=10)


def test_an_error_is_raised_in_its_place_and_items_that_have_not_begun_are_cancelled() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.02)
        if item == 1:
            raise ValueError("item 1")
        return item

    results = map_in_order(work, range(100), threads=1, ahead=20)
    assert next(results) == 0
    with pytest.raises(ValueError, match="item 1"):
        next(results)
    assert len(begun) < 10


def test_items_that_have_not_begun_are_cancelled_when_the_consumer_stops() -> None:
    begun: list[int] = []
    release = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item:
            release.wait(timeout=10)
        return item

    results = map_in_order(work, range(50), threads=1, ahead=20)
    assert next(results) == 0
    threading.Timer(0.05, release.set).start()
    results.close()  # type: ignore[attr-defined]
    assert len(begun) <= 2


def test_an_iterator_is_read_ahead_by_one_thread_and_keeps_its_order() -> None:
    readers = set()

    def items() -> Iterator[int]:
        for item in range(20):
            readers.add(threading.get_ident())
            yield item

    assert list(read_ahead(items())) == list(range(20))
    assert list(read_ahead(iter(()))) == []
    assert len(readers) == 1
    assert threading.get_ident() not in readers


def test_an_error_of_the_iterator_is_raised_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    read = read_ahead(items())
    assert next(read) == 1
    with pytest.raises(OSError, match="disk"):
        next(read)
