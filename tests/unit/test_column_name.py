"""Names of column files: short, plain, unique, and read back exactly."""

from __future__ import annotations

import re

import pytest

from geneva.column.file import ColumnFileName, class_hash
from geneva.model.rows import Mark

NAME = ColumnFileName("0123abcd", "f" * 16, True, 42)


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("generation", [0, 7, 2**63])
def test_name_says_what_it_was_made_from(uniform: bool, generation: int) -> None:
    name = ColumnFileName("0123abcd", class_hash("d", ()), uniform, generation)
    assert ColumnFileName.parse(name.text()) == name


def test_two_files_of_the_same_class_never_share_a_name() -> None:
    assert len({NAME.text() for _ in range(100)}) == 100


def test_name_fits_every_store() -> None:
    text = ColumnFileName("0123abcd", "f" * 16, False, 2**64).text()
    assert len(text) <= 128
    assert re.fullmatch(r"[A-Za-z0-9._=-]+", text)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "data.lance",
        "8b5e2a5c-6c1e-4c2f-9d49-0b2f0c1d2e3f.lance",
        NAME.text() + ".tmp",
        "x" + NAME.text(),
        NAME.text().replace("gv.", "bf.", 1),
        NAME.text().replace(".a.", ".b.", 1),
        NAME.text().removesuffix(".lance"),
        NAME.text() + "\n",
        f"{NAME.text()}|{NAME.text()}",
    ],
)
def test_foreign_file_is_never_taken_for_ours(name: str) -> None:
    assert ColumnFileName.parse(name) is None


def test_class_hash_tells_every_input_apart() -> None:
    variants = [
        ("d", ()),
        ("e", ()),
        ("d", (Mark(1, "a"),)),
        ("d", (Mark(2, "a"),)),
        ("d", (Mark(1, "b"),)),
        ("d", (Mark(1, "a", 5),)),
        ("d", (Mark(1, "a"), Mark(2, "a"))),
        ("d", (Mark(2, "a"), Mark(1, "a"))),
    ]
    hashes = [class_hash(d, m) for d, m in variants]
    assert len(set(hashes)) == len(variants)
    assert all(re.fullmatch(r"[0-9a-f]{16}", h) for h in hashes)
    assert hashes == [class_hash(d, m) for d, m in variants]
