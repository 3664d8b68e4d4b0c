"""UDFs that bring files into a column."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa

import geneva

_CHUNK_BYTES = 1 << 18
# Too early, too many requests, timed out, and what a proxy says of a server that will be back.
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}


class TransientReadError(OSError):
    """Reading failed in a way that may pass: worth another attempt."""


@geneva.udf(
    data_type=pa.large_binary(),
    params={"max_bytes": 256 << 20, "timeout_s": 60.0},
    retry=geneva.Retry(attempts=4, wait=0.5, on=(TransientReadError,)),
    num_cpus=0.25,
)
def read_bytes(path: str | None, max_bytes: int, timeout_s: float) -> bytes | None:
    """Read a file or URL into a column; faults that may pass are tried again, four times in all.

    Parameters
    ----------
    path
        A path that the appliers can see, a ``file://`` URL, or an ``http(s)://`` URL. Local
        files are read with the appliers' rights: fill such a column from sources that you trust.
    max_bytes
        Larger files fail, before they are read where the size is known.
    timeout_s
        Seconds that one attempt at a URL may take from the first to the last byte.

    Returns
    -------
    bytes
        ``None`` for ``None``.

    Raises
    ------
    TransientReadError
        Connection refused or broken, time-out, short answer, or status 408, 425, 429, 500, 502,
        503, 504, after the last attempt.
    OSError
        No such file, or the server said that there is none; not tried again.
    ValueError
        The file is larger than `max_bytes`, or the URL's scheme is none of the three.

    Notes
    -----
    ``tbl.backfill(..., params={"max_bytes": 10_000_000})`` sets a parameter for one call. An
    attempt waits most of the time, so it reserves a quarter of a processor:
    ``intra_applier_concurrency=16`` reads 16 URLs at once in each applier.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(b"abc")
    ...     file.flush()
    ...     read_bytes(file.name)
    b'abc'
    """
    if path is None:
        return None
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", path)
    scheme = found[1].lower() if found else ""
    if scheme in {"http", "https"}:
        return _fetch(path, max_bytes, timeout_s)
    if scheme not in {"", "file"}:
        raise ValueError(
            f"read_bytes reads paths, file://, http:// and https://, not {scheme}:// ({path})"
        )
    return _read_local(_local_path(path) if scheme else Path(path), max_bytes)


def _local_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"}:
        raise ValueError(f"{url} names another host; a local file is file:///path")
    return Path(unquote(parts.path))


def _read_local(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        _check_size(path, path.stat().st_size, max_bytes)
        content = file.read(max_bytes + 1)
    _check_size(path, len(content), max_bytes)  # it may have grown, or be no plain file
    return content


def _fetch(url: str, max_bytes: int, timeout_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return _receive(answer, url, max_bytes, deadline)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _PASSING_STATUS:
            raise TransientReadError(f"{url}: {error.code} {error.reason}") from None
        raise OSError(f"{url}: {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        # Refused, reset, unknown host, time-out, half an answer: all of them come and go.
        if isinstance(error, TransientReadError):
            raise
        raise TransientReadError(f"{url}: {error or type(error).__name__}") from error


def _receive(answer: http.client.HTTPResponse, url: str, max_bytes: int, deadline: float) -> bytes:
    declared = answer.length
    if declared is not None:
        _check_size(url, declared, max_bytes)
    content = bytearray()
    # One read per arrival: the socket's time-out bounds each, the deadline bounds their sum.
    while chunk := answer.read1(_CHUNK_BYTES):
        content += chunk
        _check_size(url, len(content), max_bytes)
        if time.monotonic() > deadline:
            raise TransientReadError(f"{url}: not complete in time, {len(content):,} bytes came")
    if declared is not None and len(content) != declared:
        raise TransientReadError(f"{url}: {len(content):,} of {declared:,} bytes came")
    return bytes(content)


def _check_size(name: object, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ValueError(f"{name} holds {size:,} bytes or more; max_bytes={max_bytes:,}")
