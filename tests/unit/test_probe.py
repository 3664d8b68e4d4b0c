"""Each of two drivers that begin at once has its workers see the directory that it sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from geneva.appliers.ray.worker import check_probe, ensure_probe
from geneva.storage.lance import TableStorage
from geneva.storage.objects import LocalObjects


def test_second_driver_of_a_new_table_hides_the_directory_from_the_firsts_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.lance").mkdir()
    storage = TableStorage(str(tmp_path / "t.lance"))
    put, probes = LocalObjects.put, []

    def put_later(self: LocalObjects, *arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(LocalObjects, "put", put)
        probes.append(ensure_probe(storage))
        put(self, *arguments, **options)

    monkeypatch.setattr(LocalObjects, "put", put_later)
    probes.append(ensure_probe(storage))
    for probe in [*probes, ensure_probe(storage)]:
        check_probe(storage, probe)  # raises where it sees another directory
