"""Run a folder of cases: ``python -m tests.conformance FOLDER [FILE]``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conformance.cases_of import ADAPTERS, cases_in, failure_of


def main(arguments: list[str]) -> int:
    """Print how many cases of each file passed, and the ids of those that failed."""
    if not 1 <= len(arguments) <= 2 or not Path(arguments[0]).is_dir():
        print("usage: python -m tests.conformance FOLDER [FILE]", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    wanted = [Path(arguments[1]).stem] if len(arguments) == 2 else list(ADAPTERS)
    failed = 0
    for name in wanted:
        path = folder / f"{name}.yaml"
        if not path.exists():
            if len(arguments) == 2:
                print(f"there is no {path.name} in {folder}", file=sys.stderr)
                return 2
            continue
        cases = cases_in(path)
        wrong = {c["id"]: why for c in cases if (why := failure_of(name, c, folder))}
        failed += len(wrong)
        print(f"{path.name}: {len(cases) - len(wrong)} passed, {len(wrong)} failed")
        for case_id, why in wrong.items():
            print(f"  {case_id}: {why}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
