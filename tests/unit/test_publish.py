"""A job that is to stop while neither the store nor other writers let it commit."""

from __future__ import annotations

from typing import Any

import pytest

from geneva.engine.commit import publish
from geneva.engine.control import Control, Wanted
from geneva.storage.lance import TableStorage


class Away(TableStorage):
    """A table on a store that does not answer."""

    def open(self, version: int | None = None) -> Any:
        raise OSError("the store does not answer")


def test_store_that_never_answered_does_not_hide_why_a_cancelled_job_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publish, "_LAST_S", 0.0)
    control = Control("j", ("y",), None)
    control.want(Wanted.CANCEL)
    file: Any = object()  # nothing is asked of it before the table is open
    published = publish.publish(Away("/nowhere/t.lance"), file, [file], control)
    assert published.left == (file,)
    assert published.committed == ()
