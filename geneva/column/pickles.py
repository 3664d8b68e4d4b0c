"""Pickled UDFs, stored with the table by their sha256. Loading one runs its author's code."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress

from geneva.column.binding import PICKLES, Binding, python_version
from geneva.errors import CorruptFileError, UdfError
from geneva.storage.lance import TableStorage
from geneva.storage.secrets import secrets_of
from geneva.udf import UDF, from_reference


def store(storage: TableStorage, udf: UDF) -> str:
    """Write a pickled UDF; return its sha256. Writing it again changes nothing.

    Raises
    ------
    UdfError
        It holds a secret of the storage options, which everybody who reads the table could read.
    """
    data = udf.dumps()
    for secret, option in secrets_of(storage.options).items():
        if secret.encode() in data:
            raise UdfError(
                f"UDF {udf.name!r} holds the value of {option!r}: it is stored with the table, for "
                "all who can read it. Open what it needs when it is called, with credentials "
                "from the environment, instead of passing them in"
            )
    digest = hashlib.sha256(data).hexdigest()
    storage.objects.put(f"{PICKLES}/{digest}", data)
    return digest


def load(storage: TableStorage, binding: Binding) -> UDF:
    """Load the UDF of a binding; only when a backfill or the user asks for it.

    Raises
    ------
    UdfError
        It was pickled by another Python and cannot be imported here, or does not load.
    CorruptFileError
        The pickle is missing or is not what its name says.
    """
    if binding.python != python_version():
        if binding.reference and binding.params:
            udf = from_reference(binding.reference, json.loads(binding.params))
            if udf.digest != binding.digest:
                raise UdfError(
                    f"UDF {binding.udf!r} was bound under Python {binding.python}, and what this "
                    f"Python {python_version()} imports as {binding.reference} is another one by "
                    "now; bind it again from here with alter_columns, or run the backfill under "
                    "that version"
                )
            return udf
        raise UdfError(
            f"UDF {binding.udf!r} was bound under Python {binding.python}, this is Python "
            f"{python_version()}, and it cannot be imported by name; bind it again from here "
            "with alter_columns, or run the backfill under that version"
        )
    key = (storage.uri, binding.pickle)
    if key not in _LOADED:
        _LOADED[key] = _load(storage, binding.pickle)
    return _LOADED[key]


_LOADED: dict[tuple[str, str], UDF] = {}


def _load(storage: TableStorage, sha: str) -> UDF:
    data = _found(storage, sha)
    if data is None:
        raise CorruptFileError(
            f"the pickled UDF {sha[:12]} of {storage.uri} is missing; bind the column again with "
            "alter_columns (values of the same UDF stay fresh), or, if the table is a copy or a "
            f"clone, copy _backfill/{PICKLES}/{sha} from the original"
        )
    if hashlib.sha256(data).hexdigest() != sha:
        raise CorruptFileError(f"the pickled UDF {sha[:12]} of {storage.uri} is damaged")
    return UDF.loads(data)


def _found(storage: TableStorage, sha: str) -> bytes | None:
    """Return a pickle's content; of a shallow clone also from the tables that have its data."""
    for place in (storage, *storage.origins()):
        with suppress(FileNotFoundError):
            return place.objects.get(f"{PICKLES}/{sha}")
    return None
