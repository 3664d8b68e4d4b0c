"""The rules of the house: sizes, names, pins, links, and that the import contracts bite."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("geneva", "udfs")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

FUNCTION_LINES = 50
FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager", "core"}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ------------------------------------------------------------------------------ import contracts

CONTRACTS = {
    contract["id"]: contract for contract in PYPROJECT["tool"]["importlinter"]["contracts"]
}

# (the contract, what is appended to which module of a copy of the packages)
VIOLATIONS = {
    "lower_layer_imports_upper": ("layers", {"geneva/errors.py": "import geneva.storage"}),
    "layers_side_by_side_know_each_other": (
        "layers",
        {"geneva/extras.py": "import geneva.interrupts"},
    ),
    "module_outside_every_layer": ("layers", {"geneva/planted.py": ""}),
    "ray_in_a_stage": ("ray", {"geneva/model/types.py": "import ray"}),
    "ray_beside_the_ray_executor": (
        "ray",
        {"geneva/appliers/__init__.py": "", "geneva/appliers/planted.py": "from ray.util import x"},
    ),
    "lance_in_a_stage": ("lance", {"geneva/model/types.py": "def f():\n    import lance"}),
    "lancedb_in_a_stage": ("lance", {"geneva/model/types.py": "from lancedb.table import Table"}),
    "lance_in_a_ready_udf": ("lance", {"udfs/planted.py": "import lance"}),
    "cycle_in_a_folder": (
        "cycles",
        {
            "geneva/storage/one.py": "import geneva.storage.two",
            "geneva/storage/two.py": "import geneva.storage.one",
        },
    ),
    "udf_reaches_inside": (
        "surface",
        {"udfs/planted.py": "from geneva.model.types import Progress"},
    ),
    "udf_reaches_inside_udf": (
        "surface",
        {
            "geneva/udf/__init__.py": "",
            "geneva/udf/planted.py": "",
            "udfs/planted.py": "import geneva.udf.planted",
        },
    ),
    "geneva_imports_a_ready_udf": ("udfs", {"geneva/model/types.py": "import udfs"}),
    "table_imports_the_service": ("layers", {"geneva/table.py": "import geneva.service"}),
    "sql_in_the_engine": ("service", {"geneva/engine/control.py": "import sqlalchemy"}),
    "sql_in_the_rest_interface": ("service", {"geneva/cli/options.py": "import sqlalchemy"}),
    "service_imports_the_pages": ("layers", {"geneva/service/app.py": "import geneva.pages"}),
    "templates_in_the_service": ("service", {"geneva/service/app.py": "import jinja2"}),
    "http_in_the_table": ("service", {"geneva/table.py": "def f():\n    import fastapi"}),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of the packages and of the contracts, to plant violations in."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(tree: Path, violation: dict[str, str]) -> None:
    for name, text in violation.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"\n{text}\n")


def lint_imports(tree: Path, *contract_ids: str) -> subprocess.CompletedProcess[str]:
    """Run import-linter over the copy, in a fresh process that sees the copy first."""
    chosen = [argument for name in contract_ids for argument in ("--contract", name)]
    # With -c the working folder comes first on the path, before the editable install.
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", *chosen],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_tree_keeps_every_contract(tree: Path):
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in done.stdout


@pytest.mark.parametrize("name", VIOLATIONS)
def test_contract_bites_where_a_violation_is_planted(tree: Path, name: str):
    contract_id, violation = VIOLATIONS[name]
    plant(tree, violation)
    done = lint_imports(tree, contract_id)
    # A crash of the linter also ends with 1: only the verdict on this contract counts.
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{CONTRACTS[contract_id]['name']} BROKEN" in done.stdout, done.stdout + done.stderr


def test_every_contract_has_a_planted_violation():
    assert {contract_id for contract_id, _ in VIOLATIONS.values()} == set(CONTRACTS)


def test_import_of_geneva_loads_no_library_that_it_can_do_without():
    services = ("sqlalchemy", "alembic", "fastapi", "uvicorn", "httpx", "jinja2")
    heavy = (*services, "prometheus_client", "ray", "lancedb", "pandas")
    program = f"import geneva, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_public_surface_is_not_refused_to_a_udf(tree: Path):
    # The folder geneva/udf makes `from geneva import udf` look like an import of its inside.
    surface = "import geneva\nfrom geneva import Retry, udf"
    plant(tree, {"geneva/udf/__init__.py": "", "udfs/planted.py": surface})
    done = lint_imports(tree, "surface")
    assert done.returncode == 0, done.stdout + done.stderr


# -------------------------------------------------------------------------------- sizes and names


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body, from the first statement that is not the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_function_has_at_most_50_lines(path: Path):
    long = {
        node.name: code_lines(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and code_lines(node) > FUNCTION_LINES
    }
    assert long == {}


def test_no_module_has_a_name_that_says_nothing():
    parts = {named(path): path.relative_to(ROOT).with_suffix("").parts for path in MODULES}
    assert {name: found for name, found in parts.items() if FORBIDDEN_NAMES & {*found}} == {}


def stems() -> dict[str, list[str]]:
    held: dict[str, list[str]] = defaultdict(list)
    for path in (ROOT / "geneva").rglob("*.py"):
        if not path.stem.startswith("__"):
            held[path.stem].append(named(path))
    return {stem: sorted(paths) for stem, paths in held.items() if len(paths) > 1}


def classes() -> dict[str, list[str]]:
    held: dict[str, list[str]] = defaultdict(list)
    for path in (ROOT / "geneva").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                held[node.name].append(named(path))
    return {name: sorted(paths) for name, paths in held.items() if len(paths) > 1}


def test_name_of_a_file_or_of_a_class_stands_once():
    assert stems() == {}
    assert classes() == {}


def test_rooms_have_at_most_one_floor_of_folders():
    assert [named(path) for path in MODULES if len(path.relative_to(ROOT).parts) > 4] == []


# ------------------------------------------------------------------------------------------- pins


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (pin.split("==") for pin in kept)}


def requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    found = [Requirement(text) for group in groups for text in group]
    return [r for r in found if r.name != project["name"]]  # one extra may include another


def test_constraints_name_no_host_and_no_path():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"(#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.]+)?", line), line
        assert "://" not in line


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_range_includes_the_pinned_version(requirement: Requirement):
    pinned = pins()
    assert canonicalize_name(requirement.name) in pinned
    assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


# ------------------------------------------------------------------------------------------ links


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_of_a_page_lead_somewhere(page: Path):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    local = [target.partition("#")[0] for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []
