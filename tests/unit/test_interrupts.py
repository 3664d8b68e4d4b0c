"""Ctrl-C never leaves half done what the rest of a session needs."""

from __future__ import annotations

import signal
import threading

import pytest

import geneva
from geneva.errors import ClusterError, JobCancelledError
from geneva.interrupts import interrupt_cancels, uninterrupted


def test_interrupt_waits_for_the_end_and_strikes_once() -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_is_held_back_where_the_work_fails() -> None:
    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("no")

    with pytest.raises(KeyboardInterrupt):
        work()
    with pytest.raises(ValueError, match="no"), uninterrupted():
        raise ValueError("no")


def test_handler_of_ones_own_is_asked_later_and_one_that_ignores_is_left() -> None:
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert not asked
        assert asked == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_the_handler_alone() -> None:
    found = []

    def work() -> None:
        with uninterrupted():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_interrupt_that_strikes_a_backfill_is_one_clean_error() -> None:
    clean = pytest.raises(JobCancelledError, match="same command continues")
    with clean as caught, interrupt_cancels():
        raise KeyboardInterrupt
    assert caught.value.__suppress_context__
    with pytest.raises(KeyboardInterrupt, match="goes on in the service"), interrupt_cancels():
        raise KeyboardInterrupt("run 1 goes on in the service")


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_ray_that_does_not_start_says_where_its_logs_are(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    from geneva.appliers.ray import actors as executor

    def init(**_: object) -> None:
        raise RuntimeError("the raylet\ndied " + "x" * 10_000)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(executor.ray, "init", init)
    monkeypatch.setattr(executor.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(executor.ray, "shutdown", lambda: None)
    with pytest.raises(ClusterError, match="logs are") as caught:
        executor.start_ray({"address": address} if address else {})
    assert issubclass(ClusterError, geneva.GenevaError)
    text = str(caught.value)
    assert 'executor="local"' in text
    assert "the raylet died" in text
    assert "\n" not in text
    assert len(text) < 1000
    assert caught.value.__suppress_context__
