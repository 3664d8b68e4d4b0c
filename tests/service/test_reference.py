"""The reference of REST and the command line says what the code says."""

from __future__ import annotations

import pytest

from tests.support.reference import FOLDER, pages


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


@pytest.mark.parametrize("name", ["rest.md", "cli.md", "arguments.md"])
def test_page_that_is_out_of_date(made: dict[str, str], name: str):
    assert (FOLDER / name).read_text() == made[name], "run `make reference`"
