"""What the tests themselves kill."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from geneva.service.service_settings import DRIVER_CLAIM
from tests.support.services import is_driver


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_thread_with_the_number_of_a_driver_that_ended_is_no_driver() -> None:
    started, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (started.set(), done.wait()))
    thread.start()
    assert started.wait(10)
    assert thread.native_id is not None
    assert not is_driver(thread.native_id)
    assert not is_driver(os.getpid())
    done.set()
    thread.join()
    sleeper = [sys.executable, "-c", "print('here', flush=True); input()"]
    with subprocess.Popen(
        sleeper,
        env=os.environ | {DRIVER_CLAIM: "a:1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert is_driver(child.pid)
        child.kill()
    assert not is_driver(child.pid)
