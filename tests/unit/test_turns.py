"""Tasks of one applier give work to its UDF threads in the order in which they began."""

from __future__ import annotations

import threading

from geneva.appliers.calls import Turns


def test_later_task_does_not_go_before_an_earlier_one() -> None:
    turns = Turns()
    first, second, third = turns.join(), turns.join(), turns.join()
    order: list[int] = []

    def go(k: int, turn: object) -> None:
        turn.wait()
        order.append(k)
        turn.end()

    threads = [
        threading.Thread(target=go, args=(k, t), daemon=True) for k, t in ((3, third), (2, second))
    ]
    for thread in threads:
        thread.start()
    assert not order
    first.wait()
    order.append(1)
    first.end()
    for thread in threads:
        thread.join(10)
    assert order == [1, 2, 3]


def test_turn_that_is_never_taken_blocks_the_others() -> None:
    turns = Turns()
    first, second = turns.join(), turns.join()
    first.end()
    first.end()
    second.wait()
    second.end()
    turns.join().wait()
