"""UDFs of one process are made ready one after the other, and share its CPUs."""

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from geneva.appliers.host import Pools, share_of_cpus
from geneva.udf import Caller, udf
from geneva.udf.build import import_ahead


@pytest.fixture
def halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two modules that import each other, as the parts of a large library do."""
    for mine, theirs in (("half_a", "half_b"), ("half_b", "half_a")):
        text = f"import time; time.sleep(0.1)\nimport {theirs}\ntime.sleep(0.1)\nVALUE = 1\n"
        (tmp_path / f"{mine}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "half_a"
    for name in ("half_a", "half_b"):
        sys.modules.pop(name, None)


def in_threads(works: list[Any]) -> list[Any]:
    gate = threading.Barrier(len(works))

    def run(work: Any) -> Any:
        gate.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [f.result() for f in [pool.submit(run, work) for work in works]]


def test_instances_are_built_one_at_a_time() -> None:
    under_way, most = set[int](), []

    @udf
    class Model:
        def __init__(self, k: int) -> None:
            under_way.add(k)
            time.sleep(0.02)
            most.append(len(under_way))
            under_way.discard(k)

        def __call__(self, x: int) -> int:
            return x

    callers = [Caller(Model(k)) for k in range(4)]
    in_threads([c.open for c in callers])
    assert most == [1] * 4


@pytest.mark.parametrize("instances", ["applier", "thread"])
def test_threads_that_build_at_once_see_whole_modules(halves: str, instances: Any) -> None:
    @udf(instances=instances)
    class One:
        def __init__(self) -> None:
            from half_a import VALUE  # type: ignore[import-not-found]

            self.value = VALUE

        def __call__(self, x: int) -> int:
            return x

    @udf(instances=instances)
    class Other:
        def __init__(self) -> None:
            from half_b import VALUE  # type: ignore[import-not-found]

            self.value = VALUE

        def __call__(self, x: int) -> int:
            return x

    in_threads([Caller(kind()).open for kind in (One, Other) * 4])


def test_threads_that_call_at_once_see_whole_modules(halves: str) -> None:
    @udf
    def one(x: int) -> int:
        from half_a import VALUE

        return x + int(VALUE)

    @udf
    def other(x: int) -> int:
        from half_b import VALUE

        return x + int(VALUE)

    assert in_threads([lambda u=u: u.instantiate()(1) for u in (one, other) * 4]) == [2] * 8


def test_nothing_is_imported_that_a_call_may_leave_alone(tmp_path: Path, halves: str) -> None:
    def sometimes(x: int) -> int:
        if x:
            import half_a  # noqa: F401
        return x

    import_ahead(sometimes)
    assert "half_a" not in sys.modules

    def missing(x: int) -> int:
        import no_such_module_anywhere  # type: ignore[import-not-found]  # noqa: F401

        return x

    import_ahead(missing)  # the call tells of it, row by row


def test_torch_follows_the_share_of_an_applier(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [16]
    torch = types.SimpleNamespace(
        set_num_threads=lambda n: threads.append(n), get_num_threads=lambda: threads[-1]
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    first, second = Pools(2), Pools(4)
    first.follow()
    first.follow()
    assert threads == [16, 2]
    second.follow()
    first.restore()
    assert threads[-1] == 4
    second.restore()
    second.restore()
    assert threads == [16, 2, 4, 16]


def test_half_imported_torch_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    pools = Pools(1)
    pools.follow()
    pools.restore()


def test_share_is_at_least_what_the_udf_reserves() -> None:
    assert share_of_cpus(1000, 1.0) == 1
    assert share_of_cpus(1000, 3.0) == 3
    assert share_of_cpus(1, 0.0) >= 1
