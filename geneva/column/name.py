"""The name of a column file: the atomic, free summary of its row map.

``gv.<incarnation>.<class>.<a|m>.<generation>.<uuid>.lance``. *a*: every live row was computed by
one UDF from the inputs that ``class`` stands for. *m*: mixed, the footer's row map tells. The
uuid begins with the time, as version 7 does: object stores' clients do not tell a file's age.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from dataclasses import dataclass, field
from uuid import uuid4

from geneva.model.rows import Marks

_PATTERN = re.compile(r"gv\.([0-9a-f]{8})\.([0-9a-f]{16})\.([am])\.(\d+)\.([0-9a-f]{32})\.lance")
_TIME_DIGITS = 12  # of a uuid of version 7: milliseconds since 1970


@dataclass(frozen=True, slots=True)
class ColumnFileName:
    """What a column file's name says."""

    incarnation: str
    class_hash: str
    uniform: bool
    generation: int
    begun_s: float = field(default=math.inf, compare=False)  # Unix time; inf: not known

    def text(self) -> str:
        """Return a fresh name that says this."""
        flag = "a" if self.uniform else "m"
        head = f"gv.{self.incarnation}.{self.class_hash}.{flag}.{self.generation}"
        unique = f"{time.time_ns() // 1_000_000:012x}7{uuid4().hex[13:]}"
        return f"{head}.{unique}.lance"

    @classmethod
    def parse(cls, name: str) -> ColumnFileName | None:
        """Read a name; ``None`` for files that this engine did not write."""
        match = _PATTERN.fullmatch(name)
        if match is None:
            return None
        incarnation, class_hash, flag, generation, unique = match.groups()
        timed = unique[_TIME_DIGITS] == "7"
        begun_s = int(unique[:_TIME_DIGITS], 16) / 1000 if timed else math.inf
        return cls(incarnation, class_hash, flag == "a", int(generation), begun_s)


def vouches(file: str, incarnation: str, digest: str, inputs: Marks) -> bool:
    """Whether a file's name says that every live row is of this class."""
    # Asked of every fragment of a plan: no pattern, and no hash of what others wrote.
    begin = f"gv.{incarnation}."
    if not file.startswith(begin) or "|" in file:
        return False
    return file.startswith(f"{class_hash(digest, inputs)}.a.", len(begin))


def class_hash(digest: str, inputs: Marks) -> str:
    """Return 16 digits that stand for a UDF and what it read."""
    marks = ", ".join([repr(tuple(m)) for m in inputs])
    text = f"({digest!r}, [{marks}])"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
