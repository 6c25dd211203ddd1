"""Items that are taken ahead: the same ones in the same order, and a thread that always ends."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from moram_dist.data.ahead import ahead, read_all

ROOT = Path(__file__).resolve().parents[2]


def threads():
    return [t for t in threading.enumerate() if t.name.startswith(("ahead", "read_all"))]


def eventually(true):
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not threads()


@pytest.mark.parametrize("depth", [0, 1, 3, 100])
def test_the_items_and_their_order_stay(depth):
    assert list(ahead(iter(range(20)), depth)) == list(range(20))
    assert list(ahead(iter([]), depth)) == []
    assert list(ahead(iter([None, False, StopIteration]), depth)) == [None, False, StopIteration]


def test_as_many_are_taken_ahead_as_asked():
    taken = []
    items = ahead((taken.append(i) or i for i in range(100)), 3)
    assert not taken
    assert next(items) == 0
    eventually(lambda: taken == [0, 1, 2, 3])
    time.sleep(0.05)
    assert taken == [0, 1, 2, 3]
    assert next(items) == 1
    eventually(lambda: taken == [0, 1, 2, 3, 4])
    items.close()
    assert len(taken) == 5


def test_one_thread_takes_all_of_them():
    found = {*ahead((threading.get_ident() for _ in range(50)), 5)}
    assert len(found) == 1 and threading.get_ident() not in found


def test_an_error_comes_in_its_place():
    def items():
        yield from range(3)
        raise KeyError("third")

    found = []
    with pytest.raises(KeyError, match="third"):
        for item in ahead(items(), 10):
            found.append(item)
    assert found == [0, 1, 2]


@pytest.mark.parametrize("stop", ["close", "break", "raise"])
def test_a_consumer_may_stop_early(stop):
    def endless():
        while True:
            yield 1

    items = ahead(endless(), 2)
    if stop == "close":
        next(items)
        assert threads()
        items.close()
        assert not threads()
    elif stop == "break":
        for _ in items:
            break
        del items
    else:
        with pytest.raises(ZeroDivisionError):
            for _ in items:
                raise ZeroDivisionError
        items.close()


def test_it_may_never_be_asked():
    ahead(iter([1]), 2).close()
    assert not threads()


def test_the_interpreter_exits_before_the_items_end():
    """Whoever holds the generator then, and whatever depth waits."""
    program = (
        "import itertools, sys; from moram_dist.data.ahead import ahead\n"
        "items = ahead(itertools.count(), 50)\n"
        "print(next(items), next(items), flush=True)\n"
        "sys.exit(3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "0 1\n", "")


def test_read_all_keeps_the_order():
    def slow_first(i):
        time.sleep(0.02 * (i == 0))
        return i * i

    for count in (1, 2, 8):
        assert read_all(slow_first, range(10), count) == [i * i for i in range(10)]
    assert read_all(slow_first, [], 2) == []


def test_read_all_works_at_once():
    both = threading.Barrier(2, timeout=10)  # breaks if one thread computes both
    assert sorted(read_all(lambda _: both.wait(), range(2), 2)) == [0, 1]


def test_read_all_raises_the_first_error():
    def failing(i):
        time.sleep(0.02 * (i == 3))
        if i in (3, 4):
            raise ValueError(i)

    with pytest.raises(ValueError, match=r"^3$"):
        read_all(failing, range(8), 4)
