"""Large bytes as files: a UDF that asks for one reads as much of a value as it needs.

A column of blobs that is to come so is not read: in a batch stands where each row's blob is, and
the file is opened when the batch is called. Bytes of any other column become a file in memory.
"""

from __future__ import annotations

import io
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Protocol, cast, get_args, get_origin

import pyarrow as pa

Open = Callable[[pa.Array], Sequence[BinaryIO | None]]

_NAMES = {
    *("BinaryIO", "IOBase", "RawIOBase", "BufferedIOBase", "BufferedReader", "BytesIO"),
    "BlobFile",
}
_CLASSES = (io.RawIOBase, io.BufferedIOBase, BinaryIO)


class _Closes(Protocol):
    def close(self) -> None: ...


def is_file(hint: Any) -> bool:
    """Whether a hint asks for a file of bytes; it may be text that did not evaluate.

    >>> is_file(typing.BinaryIO | None), is_file(bytes), is_file("lance.BlobFile")
    (True, False, True)
    """
    if isinstance(hint, str):
        parts = [part.strip().removeprefix("Optional[").rstrip("]") for part in hint.split("|")]
        return any(part.rsplit(".", 1)[-1] in _NAMES for part in parts)
    if get_origin(hint) in {typing.Union, types.UnionType}:
        rest = [arg for arg in get_args(hint) if arg is not type(None)]
        return len(rest) == 1 and is_file(rest[0])
    if hasattr(hint, "__metadata__"):
        return is_file(hint.__origin__)
    if get_origin(hint) is typing.IO:
        return get_args(hint) == (bytes,)
    return isinstance(hint, type) and (hint is io.IOBase or issubclass(hint, _CLASSES))


class _PlaceScalar(pa.ExtensionScalar):  # type: ignore[misc]
    """Is shown for a row where a message shows its inputs."""

    def as_py(self, **_: Any) -> _Unopened:
        """Return the stand-in for the file."""
        return _Unopened()


class _Unopened:
    def __repr__(self) -> str:
        return "<blob>"


class FilePlaces(pa.ExtensionType):  # type: ignore[misc]
    """The type of a column that holds where the blobs of its rows are, and how they are opened.

    Arrow refers to it weakly: who makes one keeps it for as long as there are arrays of it. It
    never leaves its process.

    Parameters
    ----------
    open_files
        Opens the blobs at some row addresses; a null is ``None``.
    """

    def __init__(self, open_files: Open) -> None:
        self.open_files = open_files
        super().__init__(pa.uint64(), "geneva.file_places")

    def __arrow_ext_serialize__(self) -> bytes:
        """Return nothing: it is not sent anywhere."""
        return b""

    def __arrow_ext_scalar_class__(self) -> type[pa.ExtensionScalar]:
        """Return the text for one row's place."""
        return _PlaceScalar

    def column(self, addresses: Any) -> pa.Array:
        """Return a column of blobs that are not opened."""
        return pa.ExtensionArray.from_storage(self, pa.array(addresses, pa.uint64()))


class _Held(io.BytesIO):
    """Bytes in memory, with the interface of a blob's file."""

    def size(self) -> int:
        """Return the number of bytes."""
        return self.getbuffer().nbytes


def opened(column: pa.Array) -> list[BinaryIO | None]:
    """Return each row's value as a file; a null is ``None``."""
    if isinstance(column.type, FilePlaces):
        return list(column.type.open_files(column.storage))
    return [None if value is None else _Held(value) for value in column.to_pylist()]


def closing(call: Callable[..., Any], at: Sequence[int]) -> Callable[..., Any]:
    """Return a call that closes its arguments at these positions when it ends."""

    def closes(*values: Any) -> Any:
        try:
            return call(*values)
        finally:
            _close(values, at)

    return closes


def closing_async(call: Callable[..., Any], at: Sequence[int]) -> Callable[..., Any]:
    """Do the same for a call that is awaited."""

    async def closes(*values: Any) -> Any:
        try:
            return await call(*values)
        finally:
            _close(values, at)

    return closes


def _close(values: Sequence[Any], at: Sequence[int]) -> None:
    for k in at:
        if values[k] is not None:
            cast(_Closes, values[k]).close()
