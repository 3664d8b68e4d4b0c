"""A UDF reaches a worker that has none of the user's modules."""

from __future__ import annotations

import enum
import importlib
import pickle
import platform
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cloudpickle
import pyarrow as pa
import pytest

from geneva.errors import UdfError
from geneva.udf import UDF, from_reference, udf
from geneva.udf.project import is_own_module

ROOT = Path(__file__).parents[2]
LOCK = threading.Lock()

PROJECT = {
    "own/__init__.py": "",
    "own/words.py": "SUFFIX = '!'\ndef shout(text):\n    return text.upper() + SUFFIX\n",
    "own/udfs.py": """
from geneva.udf import udf
from own import words
from own.words import shout

@udf(params={"times": 2})
def loud(text: str, times: int) -> str:
    return shout(text) * times + words.SUFFIX

@udf
class Prefix:
    def __init__(self, prefix="a"):
        self.prefix = prefix
    def __call__(self, text: str) -> str:
        return self.prefix + shout(text)

def plain(text: str) -> str:
    return text

wrapped = udf(plain)
""",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.split(".")[0] == "own"]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("own.udfs")


def elsewhere(code: str, folder: Path) -> str:
    """Run code in a process that cannot import the project."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_worker_without_the_project_can_run_the_udf(project: Any, tmp_path: Path) -> None:
    away = tmp_path / "away"
    away.mkdir()
    embedded = project.Prefix(prefix="b")
    (away / "loud").write_bytes(project.loud.dumps())
    (away / "prefix").write_bytes(embedded.dumps())
    assert not {n for n in cloudpickle.list_registry_pickle_by_value() if n.startswith("own")}
    # Source that cannot be found must not matter: the digests were taken before.
    for file in tmp_path.glob("own/*.py"):
        file.unlink()
    code = (
        "import pathlib, sys\nfrom geneva.udf import UDF\n"
        "for name in ('loud', 'prefix'):\n"
        "    u = UDF.loads(pathlib.Path(name).read_bytes())\n"
        "    print(u('x'), u.digest, u.reference)\n"
        "print(u.with_params({'prefix': 'c'}).digest)\n"
        "assert 'own' not in sys.modules\n"
    )
    assert elsewhere(code, away).splitlines() == [
        f"X!X!! {project.loud.digest} own.udfs:loud",
        f"bX! {embedded.digest} own.udfs:Prefix",
        embedded.with_params({"prefix": "c"}).digest,
    ]


def test_plain_pickle_of_a_udf_keeps_its_digest() -> None:
    @udf
    def f(x: int) -> int:
        return x

    blob = cloudpickle.dumps(f)
    assert cloudpickle.loads(blob).digest == f.digest


def test_reference_really_leads_back(project: Any) -> None:
    assert project.loud.reference == "own.udfs:loud"
    assert from_reference(project.loud.reference) is project.loud
    again = from_reference(project.Prefix("z").reference, {"prefix": "z"})
    assert again.digest == project.Prefix("z").digest
    assert project.wrapped.reference == "own.udfs:wrapped"
    assert from_reference("own.udfs:wrapped") is project.wrapped
    # The module's `plain` is the function: its settings as a UDF could not be told from it.
    assert udf(project.plain).reference is None
    tripled = project.loud.with_params({"times": 3})
    assert from_reference(tripled.reference, {"times": 3}).digest == tripled.digest
    with pytest.raises(UdfError, match="cannot be imported"):
        from_reference("own.udfs:missing")
    with pytest.raises(UdfError, match="not a UDF"):
        from_reference("own.udfs:plain")


def test_local_functions_and_lambdas_have_no_reference() -> None:
    @udf
    def local(x: int) -> int:
        return x

    assert local.reference is None
    assert udf(lambda x: x, data_type=pa.int64()).reference is None


def holds_global() -> UDF:
    @udf
    def f(x: int) -> int:
        with LOCK:
            return x

    return f


def holds_closure() -> UDF:
    guard = {"inner": [threading.Lock()]}

    def helper(x: int) -> int:
        with guard["inner"][0]:
            return x

    @udf
    def f(x: int) -> int:
        return helper(x)

    return f


def holds_argument() -> UDF:
    @udf
    class F:
        def __init__(self, guard: Any) -> None:
            self.guard = guard

        def __call__(self, x: int) -> int:
            return x

    return F(threading.Lock())


def holds_default() -> UDF:
    def f(x: int, y: Any = threading.Lock()) -> int:  # noqa: B008  shared on purpose
        return x

    return udf(f)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (holds_global, "global 'LOCK'"),
        (holds_closure, "closure variable 'guard'"),
        (holds_argument, "'guard'"),
        (holds_default, "default of parameter 'y'"),
    ],
)
def test_what_cannot_be_pickled_is_named(make: Any, name: str) -> None:
    with pytest.raises(UdfError, match=rf"{name}.*_thread\.lock"):
        make().dumps()


def test_pickle_of_another_python_is_refused_before_it_is_read() -> None:
    blob = udf(lambda x: x, data_type=pa.int64()).dumps()
    ours = platform.python_version()
    assert ours.encode() in blob[:40]
    with pytest.raises(
        UdfError, match=rf"pickled by Python 3\.99\.0 and cannot be read by Python {ours}"
    ):
        UDF.loads(blob.replace(ours.encode(), b"3.99.0", 1))


def test_damaged_or_foreign_bytes_are_refused() -> None:
    blob = udf(lambda x: x, data_type=pa.int64()).dumps()
    head, _, _ = blob.partition(b"\n")
    for bad, says in (
        (b"", "no pickled UDF"),
        (blob[: len(blob) // 2], "cannot be loaded"),
        (head + b"\n" + pickle.dumps(5), "a int, not a UDF"),
        (head + b"\ncno_such_module\nname\n.", "no_such_module is not installed"),
    ):
        with pytest.raises(UdfError, match=says):
            UDF.loads(bad)


def test_loaded_udf_is_pickled_again_for_every_backfill() -> None:
    @udf(params={"k": 2})
    def times(x: int, k: int) -> int:
        return k * x

    loaded = UDF.loads(times.dumps())
    assert loaded.dumps() is loaded.dumps()
    assert loaded.dumps() not in cloudpickle.dumps(loaded)  # it does not travel with that
    assert UDF.loads(loaded.with_params({"k": 3}).dumps())(5) == 15
    assert times.dumps() is not times.dumps()  # what it refers to may change


class Sizes(enum.Enum):
    SMALL = 1


def test_loading_a_udf_undoes_what_its_class_was_changed_to_since() -> None:
    class Scale:
        factor = 2

        def __call__(self, x: int) -> int:
            return x * self.factor * Sizes.SMALL.value

    earlier = udf(Scale)().dumps()
    Scale.factor = 3
    later = udf(Scale)().dumps()
    Scale.factor = 5
    loaded = [UDF.loads(earlier), UDF.loads(later)]
    assert [u(1) for u in loaded] == [2, 3]
    assert Scale.factor == 5
    # What was computed on appliers that are warm, it is still warm for.
    assert [UDF.loads(data).dumps() for data in (earlier, later)] == [u.dumps() for u in loaded]


def test_package_in_another_folder_than_pythons_is_taken_for_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `pip install --target` leaves it, or a zip of dependencies; beside it, a user's module.
    for name in ("vendored/__init__.py", "vendored/inner/part.py", "single.py", "mine.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "vendored-1.0.dist-info").mkdir()
    record = "vendored/__init__.py,,\nvendored/inner/part.py,,\nsingle.py,,\n"
    (tmp_path / "vendored-1.0.dist-info" / "RECORD").write_text(record)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ["vendored", "vendored.inner.part", "single", "mine"]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.import_module(name)
    assert [n for n in names if is_own_module(n)] == ["mine"]
