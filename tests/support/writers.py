"""Other writers: what they do to a table while a backfill of it runs, at a chosen moment."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.file import LanceFileWriter
from lance.fragment import DataFile

import geneva
from geneva.engine.claims import FOLDER
from geneva.storage.lance import TableStorage
from tests.support.calls import CallLog
from tests.support.tables import database_of

Action = Callable[[str], None]


@dataclass(frozen=True)
class Once:
    """Runs an action on the table at ``uri`` the first time that any process calls it."""

    uri: str
    marker: str
    action: Action | None

    def __call__(self) -> None:
        if self.action is None:
            return
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        self.action(self.uri)

    @property
    def ran(self) -> bool:
        return os.path.exists(self.marker)


@dataclass(frozen=True)
class MeddledStorage(TableStorage):
    """Lets another writer commit after the engine opened the latest version, before it commits."""

    meddle: Once | None = None

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        if self.meddle is not None:
            self.meddle()
        return super().publish(*args, **kwargs)


@dataclass(frozen=True)
class ContestedStorage(TableStorage):
    """Lets another writer be first at every commit, until a file is there that ends it.

    It writes a column again, with the same values, in the fragments that are to be committed.
    """

    column: str = ""
    ends: str = ""
    log: str = ""

    def publish(self, snapshot: Any, replacements: Any, *args: Any, **kwargs: Any) -> Any:
        if not os.path.exists(self.ends):
            CallLog(self.log)("contested")
            ids = [r.fragment_id for r in replacements]
            rewrite_column(self.uri, self.column, lambda v: v, ids, "update")
        return super().publish(snapshot, replacements, *args, **kwargs)


class _Unaware:
    """Shows no claims."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def list(self, folder: str) -> list[str]:
        return [] if folder.startswith(FOLDER) else self._inner.list(folder)


class UnawareStorage(TableStorage):
    """For a driver that does not see the claims of others."""

    @property
    def objects(self) -> Any:
        return _Unaware(super().objects)


def unaware(uri: str) -> geneva.Table:
    """Return a table whose backfills run beside others as if they were alone.

    One that a UDF of another backfill waits for must not wait for that other backfill.
    """
    table = geneva.connect(database_of(uri)).open_table(Path(uri).stem)
    return geneva.Table(table, storage=UnawareStorage(uri))


def rewrite_column(
    uri: str, name: str, change: Callable[[Any], Any], fragments: list[int], how: str
) -> None:
    """Replace a column's values in place, as ``rewrite_columns`` or as ``DataReplacement``."""
    dataset = lance.dataset(uri)
    field = dataset.lance_schema.field(name)
    replaced = []
    for fragment_id in fragments:
        fragment = dataset.get_fragment(fragment_id)
        values = fragment.to_table(columns=[name])[name].to_pylist()
        file = f"other.{uuid.uuid4().hex}.lance"
        schema = pa.schema([dataset.schema.field(name)])
        with LanceFileWriter(
            f"{uri}/data/{file}", schema, version=dataset.data_storage_version
        ) as writer:
            writer.write_batch(
                pa.record_batch([pa.array([change(v) for v in values], schema[0].type)], schema)
            )
        replaced.append((fragment, DataFile.create(dataset, file)))
    if how == "replacement":
        groups = [lance.LanceOperation.DataReplacementGroup(f.fragment_id, d) for f, d in replaced]
        operation: Any = lance.LanceOperation.DataReplacement(groups)
    else:
        updated = []
        for fragment, data_file in replaced:
            meta = fragment.metadata
            files = []
            for old in meta.files:
                old.fields = [-2 if i == field.id() else i for i in old.fields]
                if any(i != -2 for i in old.fields):
                    files.append(old)
            meta.files = [*files, data_file]
            updated.append(meta)
        operation = lance.LanceOperation.Update(
            updated_fragments=updated, fields_modified=[field.id()], update_mode="rewrite_columns"
        )
    lance.LanceDataset.commit(uri, operation, read_version=dataset.version)
