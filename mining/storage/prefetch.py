"""Work in threads, in the order of the items, a bounded number of items ahead of the consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import TypeVar

# Enough to hide the time of one read behind the use of the items before it.
_READ_AHEAD = 4

In = TypeVar("In")
Out = TypeVar("Out")


def map_in_order(
    work: Callable[[In], Out], items: Iterable[In], *, threads: int, ahead: int | None = None
) -> Generator[Out, None, None]:
    """`work(item)` in the order of the items, in threads.

    While the consumer uses a result, no more than `ahead` further items are begun or done, by default two for each
    thread. An error is raised in its place in the order; then, and when the consumer stops, the items that have not
    begun are cancelled, and no thread is left when it is closed. Without threads, items are worked on as they are
    taken.

    Threads pay where the work is done outside of Python's lock, as reading, hashing, decoding and encoding are.
    """
    if not threads:
        yield from map(work, items)
        return
    ahead = 2 * threads if ahead is None else ahead
    waiting: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def read_ahead(items: Iterator[In]) -> Iterator[In]:
    """The same items, none of them None; a thread takes the next few while one is used."""
    taken = map_in_order(lambda items: next(items, None), repeat(items), threads=1, ahead=_READ_AHEAD)
    for item in taken:
        if item is None:
            return
        yield item
