"""Read ahead, so that pictures are decoded while the model computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar, cast

T = TypeVar("T")
S = TypeVar("S")


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items in the same order, taken in another thread up to ``depth`` ahead.

    If ``items`` raises, so does this iterator, after the items before. The thread starts with the
    first ``next``. It has ended after the last item, after an exception, and after ``close``, which
    waits for the item in progress.
    """
    end = object()
    waiting: deque[Future[T | object]] = deque()
    thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        while True:
            while len(waiting) <= depth:
                waiting.append(thread.submit(next, items, end))
            item = waiting.popleft().result()
            if item is end:
                return
            yield cast(T, item)
    finally:
        thread.shutdown(cancel_futures=True)


def read_all(function: Callable[[S], T], items: Iterable[S], threads: int) -> list[T]:
    """``function`` of each item, in order, computed by ``threads`` threads.

    Raises:
        Exception: the first one of ``function`` in the order of the items. Items that no thread has
            begun by then are left out.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="read_all") as pool:
        return list(pool.map(function, items))
