from pathlib import Path

import pytest

from tests.conformance.cases_of import ADAPTERS, cases_in, failure_of

FOLDER = Path(__file__).parents[1] / "conformance" / "cases"
CASES = [(name, case) for name in ADAPTERS for case in cases_in(FOLDER / f"{name}.yaml")]


@pytest.mark.parametrize(("name", "case"), CASES, ids=[case["id"] for _, case in CASES])
def test_case_of_the_conformance_set_holds(name, case):
    assert failure_of(name, case, FOLDER) is None


def test_set_has_146_cases():
    assert len(CASES) == 146
