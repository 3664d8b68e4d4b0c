"""What a UDF takes from outside counts by what it is, not by what kind of thing it is."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from geneva.udf import UDF, udf
from geneva.udf import digest as digests

_numbers = itertools.count()
_HEAD = "import numpy as np\nimport pyarrow as pa\nfrom geneva.udf import udf\n"
_ROW = "@udf\ndef f(x: int) -> float:\n    return "
Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that writes modules of any names, imports all anew and gives the last."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names: set[str] = set()

    def load(text: str, **others: str) -> ModuleType:
        name = f"values_{next(_numbers)}"
        for other, content in (others | {name: _HEAD + text}).items():
            path = tmp_path / (other.replace("__", "/") + ".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
            names.add(other.replace("__", "."))
        for loaded in [
            m for m in sys.modules if m.split(".")[0] in {n.split(".")[0] for n in names}
        ]:
            del sys.modules[loaded]
        for cached in tmp_path.rglob("__pycache__/*"):
            cached.unlink()
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


CHANGES = {
    "builtin": ("AGG = max\n" + _ROW + "AGG(x, 2)", "max", "min"),
    "imported builtin": ("from math import floor as r\n" + _ROW + "r(x / 2)", "floor", "ceil"),
    "builtin parameter": (
        "import math\n@udf(params={'op': math.sqrt})\n"
        "def f(x: int, op) -> float:\n    return op(x)",
        "math.sqrt",
        "math.exp",
    ),
    "ufunc": ("OP = np.sqrt\n" + _ROW + "float(OP(x))", "sqrt", "log"),
    "method of a type": ("C = str.lower\n" + _ROW + "len(C('Ab'))", "lower", "upper"),
    "bound builtin": ("import re\nM = re.compile('a').sub\n" + _ROW + "M('', 'b')", "'a'", "'b'"),
    "zone": (
        "from zoneinfo import ZoneInfo\nZ = ZoneInfo('UTC')\n" + _ROW + "Z",
        "UTC",
        "Etc/GMT+1",
    ),
    "offset": (
        "import datetime as dt\nZ = dt.timezone(dt.timedelta(hours=1))\n" + _ROW + "Z",
        "hours=1",
        "hours=2",
    ),
    "series": ("import pandas as pd\nT = pd.Series([1, 2])\n" + _ROW + "T[x]", "1, 2", "1, 3"),
    "frame": (
        "import pandas as pd\nT = pd.DataFrame({'a': [1, 2]})\n" + _ROW + "T['a'][x]",
        "1, 2",
        "1, 3",
    ),
    "table": ("T = pa.table({'a': [1, 2]})\n" + _ROW + "T['a'][x]", "1, 2", "1, 3"),
    "deque": ("from collections import deque\nT = deque([1, 2])\n" + _ROW + "T[x]", "1, 2", "1, 3"),
    "mask": ("T = np.ma.array([1, 2], mask=[0, 0])\n" + _ROW + "T.sum()", "0, 0", "0, 1"),
    "factory": (
        "from collections import defaultdict\ndef d():\n    return 1\nT = defaultdict(d)\n"
        + _ROW
        + "T.copy()[x]",
        "return 1",
        "return 2",
    ),
    "order": (
        "R = {'a': 1, '': 2}\n" + _ROW + "next(v for k, v in R.items() if k in str(x))",
        "{'a': 1, '': 2}",
        "{'': 2, 'a': 1}",
    ),
    "dispatched": (
        "from functools import singledispatch\n@singledispatch\ndef g(v):\n    return 0\n"
        "@g.register\ndef _(v: int):\n    return v + 1\n" + _ROW + "g(x)",
        "v + 1",
        "v + 2",
    ),
    "own mapping": (
        "class D(dict):\n    def __missing__(self, k):\n        return 1\nT = D()\n"
        + _ROW
        + "T[x]",
        "return 1",
        "return 2",
    ),
    "own number": ("class I(int):\n    pass\nT = I(1)\n" + _ROW + "x * T", "I(1)", "I(2)"),
    "own array": (
        "class A(np.ndarray):\n    pass\nT = np.array([1, 2]).view(A)\n" + _ROW + "T[x]",
        "1, 2",
        "1, 3",
    ),
    "own tuple": (
        "from typing import NamedTuple\nclass B(NamedTuple):\n    r: int\n    def s(self, x):\n"
        "        return x + self.r\nC = B(1)\n" + _ROW + "C.s(x)",
        "x + self",
        "x - self",
    ),
    "method of an enum": (
        "import enum\nclass M(enum.Enum):\n    A = 1\n    def go(self, x):\n        return x + 1\n"
        "@udf(params={'m': M.A})\ndef f(x: int, m) -> int:\n    return m.go(x)",
        "x + 1",
        "x + 2",
    ),
    "attribute of a class": (
        "_k = 1\nclass C:\n    R = (lambda: _k)()\n" + _ROW + "x * C.R",
        "_k = 1",
        "_k = 2",
    ),
    "class made in a function": (
        "def make(rate):\n    @udf\n    class S:\n        RATE = rate\n"
        "        def __call__(self, x: int) -> int:\n            return x * self.RATE\n"
        "    return S\nf = make(2)()",
        "make(2)",
        "make(3)",
    ),
    "class without source": (
        "from collections import namedtuple\nP = namedtuple('P', 'a b')\n" + _ROW + "P(x, 9).a",
        "'a b'",
        "'b a'",
    ),
    "enum without source": (
        "import enum\nP = enum.Enum('P', {'A': 1})\n" + _ROW + "P.A.value",
        "'A': 1",
        "'A': 2",
    ),
    "constant that another closure counts": (
        "def counted(g):\n    n = 0\n    def w(x: int) -> int:\n        nonlocal n\n"
        "        n += 1\n        return g(x)\n    return w\n"
        "def make(n):\n    def h(x):\n        return x * n\n    return h\n"
        "H = counted(make(2))\n" + _ROW + "H(x)",
        "make(2)",
        "make(3)",
    ),
    "target": (
        "import math\nf = udf(data_type=pa.int64(), input_columns=['x'])(math.floor)",
        "math.floor",
        "math.ceil",
    ),
    "zone of a time": (
        "import datetime as dt\nfrom zoneinfo import ZoneInfo\n"
        "T = dt.datetime(2020, 1, 1, tzinfo=ZoneInfo('Europe/Berlin'))\n" + _ROW + "T",
        "Berlin",
        "Paris",
    ),
    "long number": ("N = (1 << 20000) - 1\n" + _ROW + "x & N", "- 1", "- 2"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_value_that_was_changed_is_never_missed(load: Load, what: str) -> None:
    text, old, new = CHANGES[what]
    assert old in text
    before = load(text).f.digest
    assert load(text).f.digest == before
    assert load(text.replace(old, new)).f.digest != before


_HELPER = (
    "LIMIT = 3\nUNUSED = 1\ndef scale(x):\n    return inner(x)\ndef inner(x):\n    return 2 * x\n"
)
_IMPORTS = {
    "inside": "    import helper_in\n    return helper_in.scale(x) + helper_in.LIMIT",
    "inside, renamed": "    import helper_in as h\n    return h.scale(x) + h.LIMIT",
    "inside, names": "    from helper_in import LIMIT, scale as s\n    return s(x) + LIMIT",
}


@pytest.mark.parametrize("how", _IMPORTS)
def test_own_module_that_a_function_imports_itself_counts(load: Load, how: str) -> None:
    text = "@udf\ndef f(x: int) -> int:\n" + _IMPORTS[how]
    before = load(text, helper_in=_HELPER).f.digest
    for old, new, same in (
        ("2 * x", "3 * x", False),
        ("LIMIT = 3", "LIMIT = 4", False),
        ("UNUSED = 1", "UNUSED = 2", True),
        ("2 * x", "2 * x  # a comment", True),
    ):
        assert old in _HELPER
        edited = load(text, helper_in=_HELPER.replace(old, new)).f.digest
        assert (edited == before) is same, (old, new)


def test_module_in_a_folder_without_init_counts(load: Load) -> None:
    text = "import folder_in.part\n" + _ROW + "folder_in.part.scale(x)"
    inside = "@udf\ndef f(x: int) -> int:\n    from folder_in import part\n    return part.scale(x)"
    for code in (text, inside):
        before = load(code, folder_in__part=_HELPER).f.digest
        again = load(code, folder_in__part=_HELPER).f.digest
        edited = load(code, folder_in__part=_HELPER.replace("2 * x", "3 * x")).f.digest
        assert before == again != edited


def test_own_module_that_cannot_be_imported_is_named(load: Load) -> None:
    text = "@udf\ndef f(x: int) -> int:\n    import helper_bad\n    return helper_bad.scale(x)"
    f = load(text, helper_bad="").f
    sys.modules.pop("helper_bad", None)
    Path(importlib.util.find_spec("helper_bad").origin).write_text("raise RuntimeError('no')")
    with pytest.warns(UserWarning, match="does not see into the module helper_bad.*version="):
        assert f.digest


def test_function_without_source_still_counts_what_it_calls_by_a_dotted_name(load: Load) -> None:
    def digest_with(helper: str) -> str:
        module = load("import helper_dot\n", helper_dot=helper)
        exec(
            "def f(x: int) -> int:\n    return [helper_dot.scale(v) for v in [x]][0]", vars(module)
        )
        with pytest.warns(UserWarning, match="no source for f"):
            return udf(module.f).digest

    before = digest_with(_HELPER)
    assert digest_with(_HELPER) == before
    assert digest_with(_HELPER.replace("2 * x", "3 * x")) != before


def test_file_that_was_loaded_by_its_path_is_the_users(tmp_path: Path) -> None:
    def load_path(name: str, text: str) -> UDF:
        path = tmp_path / f"plug_{next(_numbers)}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return udf(module.f)

    text = "def f(x: int) -> int:\n    return x + 1\n"
    assert load_path("plug", text).digest == load_path("plug", text).digest
    assert load_path("plug", text).digest != load_path("plug", text.replace("1", "2")).digest


def test_file_with_the_name_of_one_of_pythons_is_the_users(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import this\n" + _ROW + "this.scale(x)"
    monkeypatch.delitem(sys.modules, "this", raising=False)
    before = load(text, this=_HELPER).f.digest
    assert load(text, this=_HELPER.replace("2 * x", "3 * x")).f.digest != before


@pytest.mark.parametrize(("was", "now"), [("1", 5), ("[1, 2]", [1, 3]), ("{'a': 1}", {"a": 2})])
def test_attribute_of_a_class_that_was_set_since_counts_when_it_is_bound(
    load: Load, was: str, now: Any
) -> None:
    module = load(f"class C:\n    R = {was}\n" + _ROW + "len([C.R])")
    before = module.f.as_of_now().digest
    module.C.R = now
    assert module.f.as_of_now().digest != before


def test_globals_of_a_method_that_another_module_wraps_count(load: Load) -> None:
    decorators = (
        "import functools\ndef deco(f):\n    @functools.wraps(f)\n    def w(*a):\n"
        "        return f(*a)\n    return w\n"
    )
    text = (
        "import decorators_in\nRATE = 2\n@udf\nclass S:\n    @decorators_in.deco\n"
        "    def __init__(self):\n        self.k = 1\n"
        "    def __call__(self, x: int) -> int:\n        return x * RATE\nf = S()"
    )
    before = load(text, decorators_in=decorators).f.digest
    edited = load(text.replace("RATE = 2", "RATE = 3"), decorators_in=decorators).f.digest
    assert edited != before


_STATEFUL = {
    "of another package": (
        "from packaging.version import Version\nV = Version('1.0')\n" + _ROW + "V",
        "packaging.version.Version",
    ),
    "namespace": (
        "from types import SimpleNamespace\nC = SimpleNamespace(rate=2)\n" + _ROW + "x * C.rate",
        "types.SimpleNamespace",
    ),
    "getter": (
        "from operator import itemgetter\nG = itemgetter(0)\n" + _ROW + "G([x])",
        "operator.itemgetter",
    ),
    "function in an object": (
        "@np.vectorize\ndef g(v):\n    return v + 1\n" + _ROW + "g(x)",
        "numpy.vectorize",
    ),
    "own object": (
        "class M:\n    def __init__(self, r):\n        self.r = r\n    def add(self, x):\n"
        "        return self.r + x\nC = M(1)\n" + _ROW + "C.add(x)",
        "values_[0-9]+.M",
    ),
    "random state": ("import random\nR = random.Random()\n" + _ROW + "R.random()", "random.Random"),
    "environment": ("from os import environ\n" + _ROW + "len(environ)", "os._Environ"),
    "iterator": ("IDS = iter(range(9))\n" + _ROW + "next(IDS)", "builtins.range_iterator"),
    "file system": (
        "from pyarrow.fs import S3FileSystem\n"
        "FS = S3FileSystem(access_key='a', secret_key='one', region='eu-1')\n" + _ROW + "FS",
        "pyarrow._s3fs.S3FileSystem",
    ),
    "objects that know each other": (
        "from types import SimpleNamespace\nn = SimpleNamespace()\nn.n = n\nclass C:\n    R = n\n"
        + _ROW
        + "x if n is C.R else 0",
        "types.SimpleNamespace",
    ),
}


@pytest.mark.parametrize("what", _STATEFUL)
def test_object_with_a_state_of_its_own_is_named_once_and_wants_a_version(
    load: Load, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    text, kind = _STATEFUL[what]
    with pytest.warns(UserWarning, match=f"see into {kind}, so.*version=") as seen:
        before = load(text).f.digest
    assert seen[0].filename == __file__
    assert len(seen) == 1
    monkeypatch.setenv("GENEVA_TEST_OTHER", "1")
    with pytest.warns(UserWarning, match="version="):
        assert load(text.replace("one", "two")).f.digest == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(text.replace("@udf", "@udf(version='1')")).f.digest != before


def test_source_of_an_object_that_is_not_seen_into_counts(load: Load) -> None:
    text, _ = _STATEFUL["own object"]
    with pytest.warns(UserWarning, match="version="):
        one, two = load(text).f.digest, load(text.replace("self.r + x", "self.r - x")).f.digest
    assert one != two


def test_array_that_is_too_large_is_named(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "LARGEST", 1 << 20)
    for made in ("np.zeros({}, 'i8')", "pa.array(np.zeros({}))"):
        text = f"T = {made}\n" + _ROW + "len(T)"
        assert load(text.format(1000)).f.digest != load(text.format(1001)).f.digest
        with pytest.warns(UserWarning, match="of more than 1 MB.*version="):
            assert load(text.format(1 << 18)).f.digest


def test_expression_that_cannot_be_written_again_has_a_digest_all_the_same(load: Load) -> None:
    text = "@udf\ndef f(x: int) -> str:\n    return f\"{'\u00a0'.join(['a', 'b'])}{x}\""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load(text).f.digest != load(text.replace("{x}", "{x}!")).f.digest


_SETS = """
from geneva.udf import udf
class A:
    pass
class B:
    pass
class C:
    pass
KINDS = {A, B, C, int}
WORDS = {word: True for word in {"a", "b", "c", "d", "e"}}
@udf
def f(x: int) -> int:
    return sum(isinstance(x, kind) for kind in KINDS) + len(WORDS)
print(f.digest)
"""


def test_set_of_classes_has_one_digest_in_every_process(tmp_path: Path) -> None:
    script = tmp_path / "sets.py"
    script.write_text(_SETS)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script)]
    runs = [
        subprocess.run(command, env=environment, capture_output=True, check=True) for _ in "1234"
    ]
    assert len({run.stdout for run in runs}) == 1


def test_parameters_in_another_order_are_the_same() -> None:
    def f(x: int, k: Any) -> int:
        return x

    one, two = (udf(f, params={"k": k}) for k in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert one.digest == two.digest
    assert digests.of_code("f", f, "") == digests.of_code("f", f, "")


_USED = {
    "attributes": "class S:\n    CALLS = 0\n    CACHE = {}\n"
    "    def __call__(self, x: int) -> int:\n        S.CALLS += 1\n        self.CACHE[x] = x\n"
    "        return x\nf = udf(S)()",
    "function": "MODEL = None\n@udf\ndef f(x: int) -> int:\n    global MODEL\n"
    "    if MODEL is None:\n        MODEL = max\n    return MODEL(x, 1)",
    "class": "class M:\n    def __call__(self, x):\n        return x\n"
    "M0 = None\ndef load():\n    return M()\n"
    "@udf\ndef f(x: int) -> int:\n    global M0\n    M0 = M0 or load()\n    return M0(x)",
    "dict of a class": "class M:\n    seen = {}\n    def run(self, x):\n        c = self.seen\n"
    "        c[x] = 1\n        return x\n" + _ROW + "M().run(x)",
    "frame": "import pandas as pd\nT = pd.DataFrame({'func': [1.0, 2.0]})\nT['b'] = [3.0, 4.0]\n"
    "I = pd.date_range('2020-01-01', periods=3)\nclass C:\n    T = T\n"
    "@udf\ndef f(x: int) -> float:\n    T._consolidate_inplace()\n    I.get_loc('2020-01-02')\n"
    "    return C.T.values[0, 0] + T.values[0, 1]",
}


@pytest.mark.parametrize("what", _USED)
def test_use_changes_nothing(load: Load, what: str) -> None:
    used = load(_USED[what])
    used.f(1)
    assert used.f.digest == load(_USED[what]).f.digest


def test_module_that_ends_its_process_is_named(load: Load) -> None:
    text = "@udf\ndef f(x: int) -> int:\n    import helper_exit\n    return x"
    f = load(text, helper_exit="raise SystemExit(3)").f
    with pytest.warns(UserWarning, match="the module helper_exit"):
        assert f.digest


def test_digest_imports_nothing_of_numpy_that_is_not_there_yet(tmp_path: Path) -> None:
    script = tmp_path / "quick.py"
    script.write_text(
        "import sys\nfrom geneva.udf import udf\nbefore = set(sys.modules)\n"
        "@udf\ndef f(x: int) -> int:\n    return x + 1\n"
        "f.as_of_now()\nprint(sorted(set(sys.modules) - before))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
