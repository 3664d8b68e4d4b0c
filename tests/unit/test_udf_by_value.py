"""What a module of the user's own names travels with the UDF, or is refused by name."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from geneva.errors import UdfError
from geneva.udf import UDF, udf

# What travels is asked here, not what a digest sees of it.
pytestmark = pytest.mark.filterwarnings("ignore:UDF .*digest does not see:UserWarning")

ROOT = Path(__file__).parents[2]
_NUMBERS = itertools.count()
RIGHT = "7 7"

# Each defines `use`, which is what the UDF calls, and gives 7 for 3.
SHIPPED = {
    "lru_cache": """
        @functools.lru_cache(maxsize=None)
        def model(): return 4
        def use(x): return x + model()
    """,
    "cache with arguments": """
        @functools.cache
        def model(a, *, b=1): return a + b
        def use(x): return x + model(3)
    """,
    "a cache that calls itself": """
        @functools.lru_cache
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        def use(x): return x + 1 + fib(4)
    """,
    "a cache within a cache": """
        inner = functools.lru_cache(lambda: 4)
        outer = functools.cache(inner)
        def use(x): return x + outer()
    """,
    "a cache of another module's function": """
        import math
        root = functools.cache(math.isqrt)
        words = functools.cache(textwrap.dedent)
        def use(x): return x + root(16) + len(words(''))
    """,
    "a cached method": """
        class Models:
            @functools.lru_cache
            def of(self, n): return n + 1
            @classmethod
            @functools.cache
            def known(cls): return cls().of(0)
            @staticmethod
            @functools.cache
            def fixed(): return 2
        def use(x): return x + Models().of(0) + Models.known() + Models.fixed()
    """,
    "cached_property": """
        class Models:
            @functools.cached_property
            def of(self): return Models.number
            number = 4
        def use(x): return x + Models().of
    """,
    "singledispatch": """
        @functools.singledispatch
        def size(value): return 1
        @size.register
        def _(value: list): return sum(map(size, value)) + 1
        def use(x): return x + size([0, 0, 0])
    """,
    "singledispatchmethod": """
        class Sizes:
            @functools.singledispatchmethod
            def of(self, value): return 1
            @of.register
            def _(self, value: str): return len(value)
        def use(x): return x + Sizes().of('abc') + Sizes().of(None)
    """,
    "partialmethod": """
        class Adds:
            def add(self, a, b): return a + b
            four = functools.partialmethod(add, 4)
        def use(x): return Adds().four(x)
    """,
    "partial": """
        def add(a, b): return a + b
        use = functools.partial(add, 4)
    """,
    "a decorator of one's own": """
        def twice(f):
            @functools.wraps(f)
            def call(*a): return f(f(*a))
            return call
        @twice
        def use(x): return x + 2
    """,
    "NewType": """
        Id = typing.NewType('Id', int)
        class Known: kind = Id
        def use(x: Id): return Known.kind(x) + Id(4)
    """,
    "type variables": """
        T, P, Ts = typing.TypeVar('T'), typing.ParamSpec('P'), typing.TypeVarTuple('Ts')
        KINDS = [T, P, Ts]
        def use(x: T): return x + 1 + len(KINDS)
    """,
    "enum, dataclass, named tuple, protocol": """
        class Kind(enum.IntFlag):
            A = 1
            B = 2
        @dataclasses.dataclass(frozen=True, slots=True)
        class Point:
            x: int = 1
        class Pair(typing.NamedTuple):
            a: int = 0
            b: int = 0
        @typing.runtime_checkable
        class Sized(typing.Protocol):
            def size(self): ...
        def use(x): return x + Point().x + Kind.A + Kind.B + len(Pair()) - 2 + isinstance(x, Sized)
    """,
    "an instance of one's own class": """
        class Adds:
            __slots__ = ('n',)
            def __init__(self): self.n = 4
            def __call__(self, x): return x + self.n
        use = Adds()
    """,
    "context manager, total ordering, abstract class": """
        @contextlib.contextmanager
        def four(): yield 4
        @functools.total_ordering
        class One:
            def __lt__(self, other): return True
            def __eq__(self, other): return False
        class Base(abc.ABC):
            @abc.abstractmethod
            def go(self): ...
        class Made(Base):
            def go(self): return One() >= One()
        def use(x):
            with four() as n: return x + n + Made().go()
    """,
    "its own module": """
        import sys
        ME = sys.modules[__name__]
        def four(): return ME.number()
        def number(): return 4
        def use(x): return x + ME.four()
    """,
}

REFUSED = {
    "a thing that pickles as its name": """
        class Model:
            def __reduce__(self): return 'MODEL'
            def __call__(self): return 4
        MODEL = Model()
        def use(x): return x + MODEL()
    """,
    "an open file": """
        MODEL = OPEN = open(__file__)
        def use(x): return x + len(MODEL.read())
    """,
    "a file deep inside": """
        class Holder: pass
        OPEN = open(__file__); MODEL = Holder(); MODEL.parts = {'a': [OPEN]}
        def use(x): return x + len(MODEL.parts)
    """,
    "a binary file": """
        MODEL = OPEN = open(__file__, 'rb')
        def use(x): return x + len(MODEL.read())
    """,
    "a socket": """
        import socket
        MODEL = socket.socket(); MODEL.close()
        def use(x): return x if MODEL else 0
    """,
    "a thread": """
        import threading
        MODEL = threading.Thread(target=print)
        def use(x): return x if MODEL else 0
    """,
}

_IMPORTS = "import abc, contextlib, dataclasses, enum, functools, textwrap, typing\n"


def source(body: str) -> str:
    lines = body.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return _IMPORTS + "\n".join(line[indent:] for line in lines)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that only this process can import from."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def away(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where nothing is."""
    return tmp_path_factory.mktemp("away")


def own_module(folder: Path, text: str, name: str = "") -> Any:
    name = name or f"own_{next(_NUMBERS)}"
    file = folder / f"{name.replace('.', '/')}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return importlib.import_module(name)


def calling(use: Any) -> UDF:
    def f(x: int) -> int:
        return int(use(x))

    return udf(f)


def far_away(pickled: Mapping[str, bytes], cwd: Path) -> dict[str, str]:
    """Call pickled UDFs with 3 in a process that cannot import the project; load them twice."""
    for name, data in pickled.items():
        (cwd / name).write_bytes(data)
    code = (
        "import json, sys\n"
        "from geneva.udf import UDF\n"
        "def told(name):\n"
        "    data = open(name, 'rb').read()\n"
        "    try:\n"
        "        again = UDF.loads(UDF.loads(data).dumps())\n"
        "        return f'{UDF.loads(data)(3)} {again(3)}'\n"
        "    except Exception as error:\n"
        "        return str(error)\n"
        "print(json.dumps({name: told(name) for name in sys.argv[1:]}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *pickled],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def arrives(use: Any, cwd: Path) -> bool:
    """Whether what is called with 3 gives 7 where the project is not."""
    told = far_away({"one": calling(use).dumps()}, cwd)
    return told == {"one": RIGHT} or pytest.fail(str(told))


def test_what_the_users_module_names_travels_with_the_udf(folder: Path, away: Path) -> None:
    modules = {kind: own_module(folder, source(body)) for kind, body in SHIPPED.items()}
    assert {kind: m.use(3) for kind, m in modules.items()} == dict.fromkeys(SHIPPED, 7)
    pickled = {kind: calling(m.use).dumps() for kind, m in modules.items()}
    assert far_away(pickled, away) == dict.fromkeys(SHIPPED, RIGHT)


def test_what_a_script_names_travels_with_the_udf(folder: Path, away: Path) -> None:
    # As in a notebook: its module is `__main__`, which is another one elsewhere.
    kinds = [kind for kind in SHIPPED if kind != "its own module"]
    ends = (
        "\nfrom geneva.udf import udf\n"
        "def f(x: int) -> int: return int(use(x))\n"
        "open({kind!r}, 'wb').write(udf(f).dumps())\n"
    )
    script = "".join(source(SHIPPED[kind]) + ends.format(kind=kind) for kind in kinds)
    (folder / "script.py").write_text(script)
    written = subprocess.run(
        [sys.executable, "script.py"],
        capture_output=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        cwd=folder,
    )
    assert written.returncode == 0, written.stderr.decode()
    pickled = {kind: (folder / kind).read_bytes() for kind in kinds}
    assert far_away(pickled, away) == dict.fromkeys(kinds, RIGHT)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_travel_is_refused_by_name(kind: str, folder: Path) -> None:
    module = own_module(folder, source(REFUSED[kind]))
    try:
        with pytest.raises(UdfError, match="global 'MODEL'"):
            calling(module.use).dumps()
    finally:
        getattr(module, "OPEN", io.StringIO()).close()


def test_message_says_that_workers_lack_the_module(folder: Path) -> None:
    module = own_module(folder, source(REFUSED["a thing that pickles as its name"]))
    with pytest.raises(UdfError, match=rf"the name {module.__name__}\.MODEL"):
        calling(module.use).dumps()


def test_content_of_an_open_file_is_stored_nowhere(folder: Path) -> None:
    (folder / "secret.txt").write_text("hunter2")
    with (folder / "secret.txt").open() as held:

        def f(x: int) -> int:
            return x + len(held.read())

        with pytest.raises(UdfError, match=r"'held'.*cannot pickle an open file"):
            udf(f).dumps()


def test_environment_is_that_of_the_worker(
    folder: Path, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET_OF_THE_DRIVER", "hunter2")
    module = own_module(
        folder, "from os import environ\ndef use(x): return x + len(environ) * 0 + 4"
    )
    data = calling(module.use).dumps()
    assert b"hunter2" not in data
    assert far_away({"one": data}, away) == {"one": RIGHT}


def test_modules_of_a_package_may_name_each_other(folder: Path, away: Path) -> None:
    tag = f"pack_{next(_NUMBERS)}"
    (folder / tag).mkdir()
    (folder / tag / "__init__.py").write_text(f"import {tag}.b\n")
    (folder / tag / "b.py").write_text(f"import {tag}\ndef four(): return {tag}.b.FOUR\nFOUR = 4\n")
    module = own_module(folder, f"import {tag}\ndef use(x): return x + {tag}.b.four()", f"{tag}.a")
    assert arrives(module.use, away)


def test_folder_without_init_travels_too(folder: Path, away: Path) -> None:
    tag = f"space_{next(_NUMBERS)}"
    own_module(folder, "def four(): return 4", f"{tag}.inner")
    module = own_module(folder, f"import {tag}.inner\ndef use(x): return x + {tag}.inner.four()")
    assert arrives(module.use, away)


def test_cache_begins_empty_and_holds_on_the_worker(folder: Path) -> None:
    module = own_module(folder, source(SHIPPED["lru_cache"]))
    module.model()
    loaded = UDF.loads(calling(module.use).dumps())
    cache = loaded.target.__closure__[0].cell_contents.__globals__["model"]
    assert cache is not module.model
    assert cache.cache_info().currsize == 0
    assert [loaded(3), loaded(3), cache.cache_info().hits] == [7, 7, 1]
    assert cache.cache_parameters() == {"maxsize": None, "typed": False}
    assert (cache.__name__, cache.__wrapped__()) == ("model", 4)


def test_installed_caches_and_dispatchers_stay_names() -> None:
    import pprint
    import re

    escape, pretty = re._compile, pprint.pformat  # type: ignore[attr-defined]

    def f(x: int) -> int:
        return x + len(pretty(escape))

    assert len(udf(f).dumps()) < 5000


def test_another_loader_is_another_digest(folder: Path) -> None:
    text = source(SHIPPED["lru_cache"])
    one = own_module(folder, text)
    two = own_module(folder, text.replace("return 4", "return 5"))
    assert calling(one.use).digest != calling(two.use).digest


def test_script_run_by_path_is_the_users_own(folder: Path, away: Path) -> None:
    (folder / "tool.py").write_text(source(SHIPPED["lru_cache"]))
    space = runpy.run_path(str(folder / "tool.py"), run_name="tool")
    assert arrives(space["use"], away)
