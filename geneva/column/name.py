"""The name of a column file: the atomic, free summary of its row map.

``gv.<incarnation>.<class>.<a|m>.<generation>.<uuid>.lance``. *a*: every live row was computed by
one UDF from the inputs that ``class`` stands for. *m*: mixed, the footer's row map tells.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from uuid import uuid4

from geneva.rows import Marks

_PATTERN = re.compile(r"gv\.([0-9a-f]{8})\.([0-9a-f]{16})\.([am])\.(\d+)\.[0-9a-f]{32}\.lance")


@dataclass(frozen=True, slots=True)
class ColumnFileName:
    """What a column file's name says."""

    incarnation: str
    class_hash: str
    uniform: bool
    generation: int

    def text(self) -> str:
        """Return a fresh name that says this."""
        flag = "a" if self.uniform else "m"
        head = f"gv.{self.incarnation}.{self.class_hash}.{flag}.{self.generation}"
        return f"{head}.{uuid4().hex}.lance"

    @classmethod
    def parse(cls, name: str) -> ColumnFileName | None:
        """Read a name; ``None`` for files that this engine did not write."""
        match = _PATTERN.fullmatch(name)
        if match is None:
            return None
        incarnation, class_hash, flag, generation = match.groups()
        return cls(incarnation, class_hash, flag == "a", int(generation))


def class_hash(digest: str, inputs: Marks) -> str:
    """Return 16 digits that stand for a UDF and what it read."""
    text = repr((digest, [(m.field, m.file, m.generation) for m in inputs]))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
