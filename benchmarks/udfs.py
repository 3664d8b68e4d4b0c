"""The UDFs of the questions; they reach the appliers by value, so they write logs, not lists."""

from __future__ import annotations

import hashlib
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from geneva import udf

SPIN_ROUNDS = 32  # of SHA-256 over a kilobyte: some tens of microseconds a row
DIMENSIONS = 384


def log(path: str, line: str) -> None:
    """Append a line to a file that all appliers share."""
    fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


@udf(data_type=pa.int64())
def double_batch(x: pa.Array) -> pa.Array:
    return pc.multiply(x, 2)


@udf
def double(x: int) -> int:
    return x * 2


@udf(data_type=pa.int64())
def spin(x: pa.Array) -> pa.Array:
    """Keep a core busy without letting go of it: hashes so short that the lock stays held."""
    block = b"x" * 1024
    for _ in range(len(x) * SPIN_ROUNDS):
        hashlib.sha256(block)
    return x


def sleeper(path: str, seconds: float, rows: int) -> object:
    """A batch UDF that waits, and logs when each call began and ended."""

    @udf(data_type=pa.int64(), num_cpus=0.1, batch_size=rows)
    def sleep(x: pa.Array) -> pa.Array:
        started = time.time()
        time.sleep(seconds)
        log(path, f"{started} {time.time()}")
        return x

    return sleep


def uneven_sleeper(path: str, seconds: float, rows: int) -> object:
    """A batch UDF with a GPU that waits for 0.4 to 1.6 times as long, and logs its calls."""

    @udf(data_type=pa.int64(), num_cpus=0.01, num_gpus=1, batch_size=rows)
    def sleep(x: pa.Array) -> pa.Array:
        part = hashlib.sha256(str(x[0]).encode()).digest()[0] / 255
        started = time.time()
        time.sleep(seconds * (0.4 + 1.2 * part))
        log(path, f"{started} {time.time()}")
        return x

    return sleep


def counted(path: str, seconds_per_row: float) -> object:
    """A batch UDF of a known cost that logs the rows it was given, which are consecutive."""

    @udf(data_type=pa.int64())
    def count(x: pa.Array) -> pa.Array:
        rows = f"{x[0].as_py()} {len(x)}"
        log(path, f"begin {time.time()} {rows}")
        time.sleep(seconds_per_row * len(x))
        log(path, f"end {time.time()} {rows}")
        return x

    return count


def cores(path: str) -> object:
    """`spin`, logging the processor seconds that it took."""

    @udf(data_type=pa.int64())
    def busy(x: pa.Array) -> pa.Array:
        began, used = time.time(), time.thread_time()
        block = b"x" * 1024
        for _ in range(len(x) * SPIN_ROUNDS):
            hashlib.sha256(block)
        log(path, f"{began} {time.time()} {time.thread_time() - used}")
        return x

    return busy


def vectors(rows: int) -> pa.Array:
    """Vectors that look like embeddings, in memory that nobody fills again."""
    values = np.random.default_rng(7).standard_normal(rows * DIMENSIONS, dtype=np.float32)
    values.flags.writeable = False
    return pa.FixedSizeListArray.from_arrays(pa.array(values), DIMENSIONS)


@udf(data_type=pa.list_(pa.float32(), DIMENSIONS))
class Vectors:
    """Hands out vectors that are there already."""

    def __init__(self) -> None:
        self._block = vectors(65_536)

    def __call__(self, x: pa.Array) -> pa.Array:
        return self._block.slice(0, len(x))


def peak(path: str, *, returns: bool = False) -> object:
    """The length of a blob, or the blob itself; logs the peak memory of its process."""

    @udf(data_type=pa.large_binary() if returns else pa.int64())
    def measured(blob: pa.Array) -> pa.Array:
        with open("/proc/self/status") as status:
            peak_kb = next(s.split()[1] for s in status if s.startswith("VmHWM"))
        log(path, f"{os.getpid()} {peak_kb} {len(blob)}")
        if returns:
            return pc.cast(blob, pa.large_binary())
        return pc.cast(pc.binary_length(blob), pa.int64())

    return measured
