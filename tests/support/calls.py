"""A log of UDF calls that survives processes: UDFs are pickled by value, lists are not shared."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CallLog:
    """Counts calls by key in a file that any process appends to; picklable, and seen by digests."""

    path: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", str(self.path))

    def __call__(self, *keys: object) -> None:
        data = "".join(f"{k}\n" for k in keys).encode()
        fd = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    @property
    def keys(self) -> list[str]:
        if not os.path.exists(self.path):
            return []
        return Path(self.path).read_text().split()

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def clear(self) -> None:
        Path(self.path).unlink(missing_ok=True)
