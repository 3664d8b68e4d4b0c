"""Fixtures that all tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.calls import CallLog

# The same examples in every run, so that a commit is judged by itself; GENEVA_RANDOM=1 looks for
# new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("new", deadline=None)
settings.load_profile("new" if os.environ.get("GENEVA_RANDOM") else "same")


@pytest.fixture
def calls(tmp_path: Path) -> CallLog:
    """A log of UDF calls."""
    return CallLog(tmp_path / "calls.log")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests that need one, in a directory of its own."""
    import ray

    from geneva.execute.ray import release_idle, start_ray

    folder = tempfile.mkdtemp(prefix="gv-ray-")  # Ray's sockets need a short path
    start_ray({"address": "local", "num_cpus": 2, "_temp_dir": folder, "log_to_driver": False})
    yield
    release_idle()
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["local", "ray"])
def executor(request: pytest.FixtureRequest) -> str:
    """Both executors: what holds on one must hold on the other."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return str(request.param)
