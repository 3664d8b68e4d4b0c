"""UDFs of text: counts, and a vector that needs no model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

import geneva

_BLOCK_BYTES = 1 << 18  # of text hashed at once: its arrays stay in the processor's cache


@geneva.udf(data_type=pa.int64())
def char_count(text: pa.Array) -> pa.Array:
    """Count the characters (code points) of each text.

    Parameters
    ----------
    text
        String or large string array.

    Returns
    -------
    pyarrow.Int64Array
        Null where the text is.

    Examples
    --------
    >>> char_count(pa.array(["naïve", "", None])).to_pylist()
    [5, 0, None]
    """
    return pc.utf8_length(text).cast(pa.int64())


@geneva.udf
def word_count(text: str | None) -> int | None:
    r"""Count the words of a text, which white space of any kind separates.

    A scalar UDF, because `str.split` is quicker here than any of Arrow's kernels.

    Parameters
    ----------
    text
        One text.

    Returns
    -------
    int
        ``None`` for ``None``.

    Examples
    --------
    >>> word_count("to be or\n not"), word_count(" "), word_count(None)
    (4, 0, None)
    """
    return None if text is None else len(text.split())


@geneva.udf(data_type=pa.int64())
def line_count(text: pa.Array) -> pa.Array:
    r"""Count the lines of each text; a last line needs no newline at its end.

    Parameters
    ----------
    text
        String or large string array; lines end with ``\n`` or ``\r\n``.

    Returns
    -------
    pyarrow.Int64Array
        0 for an empty text; null where the text is.

    Examples
    --------
    >>> line_count(pa.array(["one\ntwo\n", "one\ntwo", "", None])).to_pylist()
    [2, 2, 0, None]
    """
    ended = pc.count_substring(text, "\n").cast(pa.int64())
    unended = pc.and_(pc.invert(pc.ends_with(text, "\n")), pc.greater(pc.binary_length(text), 0))
    return pc.add(ended, unended.cast(pa.int64()))


def HashedNgrams(dimensions: int = 256, n: int = 3) -> geneva.UDF:
    """Make a UDF that turns texts into vectors by hashing their n-grams; no model is needed.

    Each run of ``n`` bytes, ASCII letters lowered, is hashed to one of the dimensions and to a
    sign. The signed square root of the sums, scaled to length 1, is the vector: texts that share
    many n-grams point in about the same direction. The hash is fixed arithmetic, so that any
    process on any machine gives the same vector.

    Parameters
    ----------
    dimensions
        Length of the vectors.
    n
        Bytes per n-gram.

    Returns
    -------
    geneva.UDF
        Reads ``text``; gives a fixed-size list of float32 of length 1 (L2 norm). A text of fewer
        than ``n`` bytes has no n-gram and becomes all zeros; null becomes null.

    Raises
    ------
    ValueError
        A parameter is not a whole number of at least 1.

    Examples
    --------
    >>> embed = HashedNgrams(dimensions=64)
    >>> embed.data_type
    FixedSizeListType(fixed_size_list<item: float>[64])
    >>> a, b, c = embed(pa.array(["def area(w, h):", "def area(w, d):", "SELECT 1"])).to_pylist()
    >>> np.dot(a, b) > np.dot(a, c)
    np.True_
    """
    for name, value in (("dimensions", dimensions), ("n", n)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is a whole number of at least 1, not {value!r}")
    declare = geneva.udf(data_type=pa.list_(pa.float32(), dimensions), name="HashedNgrams")
    made: geneva.UDF = declare(_HashedNgrams)(dimensions, n)
    return made


class _HashedNgrams:
    def __init__(self, dimensions: int, n: int) -> None:
        self._dimensions, self._n = dimensions, n
        # Odd multipliers (powers of an odd number) lose no bit of a byte.
        self._factors = [np.uint32(pow(0x9E3779B1, k + 1, 1 << 32)) for k in range(n)]
        lowered = bytes(range(256)).lower()
        self._lower = np.frombuffer(lowered, np.uint8).astype(np.uint32)

    def __call__(self, text: pa.Array) -> pa.Array:
        filled = text.fill_null("").cast(pa.large_binary())
        _, offset_buffer, data_buffer = filled.buffers()
        rows = len(filled)
        edges = np.frombuffer(offset_buffer, np.int64)[filled.offset : filled.offset + rows + 1]
        data = np.frombuffer(data_buffer or b"", np.uint8)
        vectors = np.zeros((rows, self._dimensions), np.float32)
        start = 0
        while start < rows:
            # At least one row, and then as many as fit.
            stop = int(np.searchsorted(edges, edges[start] + _BLOCK_BYTES, "right")) - 1
            stop = min(max(stop, start + 1), rows, start + _BLOCK_BYTES // self._dimensions + 1)
            block = edges[start : stop + 1]
            vectors[start:stop] = self._vectors(data[block[0] : block[-1]], block - block[0])
            start = stop
        return pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), self._dimensions, mask=text.is_null()
        )

    def _vectors(
        self, data: npt.NDArray[np.uint8], edges: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        rows, width = len(edges) - 1, 2 * self._dimensions
        places = self._places(data)
        counts = np.maximum(np.diff(edges) - self._n + 1, 0)
        if len(places):
            # N-grams that span two texts are left out: keep the first `counts` of each text.
            row = np.repeat(np.arange(rows), np.diff(edges))[: len(places)]
            inside = np.arange(len(places)) - edges[row] < counts[row]
            places, row = places[inside], row[inside]
            places = places + row * width
        sums = np.bincount(places, minlength=rows * width).reshape(rows, self._dimensions, 2)
        signed = (sums[:, :, 0] - sums[:, :, 1]).astype(np.float32)
        # The root keeps a run of blanks or a licence header from drowning everything else.
        vectors = np.sign(signed) * np.sqrt(np.abs(signed))
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)

    def _places(self, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return twice the dimension, plus 1 for a negative sign, of the n-gram at each byte."""
        grams = len(data) - self._n + 1
        if grams < 1:
            return np.zeros(0, np.int64)
        lowered = self._lower[data]
        hashed = np.zeros(grams, np.uint32)
        for k, factor in enumerate(self._factors):
            hashed += lowered[k : k + grams] * factor
        hashed ^= hashed >> np.uint32(15)
        hashed *= np.uint32(0x85EBCA77)
        hashed ^= hashed >> np.uint32(13)
        hashed *= np.uint32(0xC2B2AE3D)
        # The high bits are the best mixed: scale instead of taking a remainder.
        return (
            (hashed.astype(np.uint64) * np.uint64(2 * self._dimensions)) >> np.uint64(32)
        ).astype(np.int64)
