"""Fixtures that all tests share."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import tables
from tests.support.calls import CallLog
from tests.support.s3 import Bucket, S3Server

# The same examples in every run, so that a commit is judged by itself; GENEVA_RANDOM=1 looks for
# new ones.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("new", deadline=None)
settings.load_profile("new" if os.environ.get("GENEVA_RANDOM") else "same")

# A script that starts the tests with `&` has them ignore SIGINT, and their children would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store",
        choices=["disk", "s3"],
        default="disk",
        help="where make_table() makes tables; tests marked both_stores run on both",
    )
    parser.addoption(
        "--screenshots", action="store_true", help="make the pictures of docs/screenshots anew"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("both_stores"):
        on_disk = metafunc.config.getoption("--store") == "disk"
        metafunc.parametrize("store", ["disk", "s3"] if on_disk else ["s3"], indirect=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for all tests; options in the environment lead there too."""
    server = S3Server()
    for name, value in Bucket(server.port, "").options().items():
        os.environ[name.upper() if name.startswith("aws_") else f"AWS_{name.upper()}"] = value
    yield server
    server.stop()


@pytest.fixture
def bucket(s3_server: S3Server) -> Bucket:
    """A bucket of its own, for a test of what stores do."""
    return s3_server.bucket()


@pytest.fixture(autouse=True)
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where this test's tables lie: ``disk``, or ``s3`` under the same paths."""
    where = str(getattr(request, "param", request.config.getoption("--store")))
    only = request.node.get_closest_marker("disk")
    if where == "s3" and only:
        pytest.skip(f"only on a disk: {only.kwargs['reason']}")
    if where == "s3":
        tables.use(request.getfixturevalue("s3_server").bucket())
    yield where
    tables.use(None)


@pytest.fixture
def calls(tmp_path: Path) -> CallLog:
    """A log of UDF calls."""
    return CallLog(tmp_path / "calls.log")


def _uses_s3(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", ())
    callspec = getattr(item, "callspec", None)
    return "s3_server" in names or (callspec is not None and callspec.params.get("store") == "s3")


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """One local Ray for all tests that need one, in a directory of its own."""
    import ray

    from geneva.appliers.ray.actors import start_ray
    from geneva.appliers.ray.warm import release_idle

    if request.config.getoption("--store") == "s3" or any(map(_uses_s3, request.session.items)):
        request.getfixturevalue("s3_server")  # before Ray: workers inherit the environment
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
