"""A declaration says what it means, or says what to write instead."""

from __future__ import annotations

import datetime as dt
import enum
import io
import subprocess
import sys
import textwrap
import typing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NewType, TypedDict

import lance
import numpy as np
import numpy.typing as npt
import pandas
import pyarrow as pa
import pydantic
import pytest
from lancedb.pydantic import Vector

import geneva.errors
from geneva.errors import SettingError, UdfError
from geneva.udf import UDF, UdfKind, arrow_type, as_udf, udf, with_columns

if TYPE_CHECKING:
    import pandas as unloaded


@dataclass
class Point:
    x: int
    y: float | None


class Pair(NamedTuple):
    a: str
    b: list[Point]


class Doc(TypedDict, total=False):
    title: str
    tags: typing.Required[list[str]]


class Color(enum.Enum):
    RED = 1


class Mixed(enum.Enum):
    RED = 1
    BLUE = "blue"


class Model(pydantic.BaseModel):
    w: int
    h: Annotated[float | None, pydantic.Field(ge=0)] = None
    tags: list[str] = []
    _hidden: int = 0


T = typing.TypeVar("T")


class Box(pydantic.BaseModel, typing.Generic[T]):
    inside: T


MODEL = pa.struct([("w", pa.int64()), ("h", pa.float64()), ("tags", pa.list_(pa.string()))])

UserId = NewType("UserId", int)
POINT = pa.struct([("x", pa.int64()), ("y", pa.float64())])


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, pa.int64()),
        (float, pa.float64()),
        (bool, pa.bool_()),
        (str, pa.string()),
        (bytes, pa.binary()),
        (int | None, pa.int64()),
        (typing.Optional[str], pa.string()),  # noqa: UP045  the old spelling must work, too
        (np.float32, pa.float32()),
        (np.float16, pa.float16()),
        (np.uint8, pa.uint8()),
        (np.bool_, pa.bool_()),
        (dt.datetime, pa.timestamp("us")),
        (dt.date, pa.date32()),
        (dt.time, pa.time64("us")),
        (dt.timedelta, pa.duration("us")),
        (list[float], pa.list_(pa.float64())),
        (list[np.float32 | None], pa.list_(pa.float32())),
        (tuple[int, ...], pa.list_(pa.int64())),
        (typing.Sequence[str], pa.list_(pa.string())),
        (dict[str, list[int]], pa.map_(pa.string(), pa.list_(pa.int64()))),
        (Point, POINT),
        (Pair, pa.struct([("a", pa.string()), ("b", pa.list_(POINT))])),
        (Doc, pa.struct([("title", pa.string()), ("tags", pa.list_(pa.string()))])),
        (Literal["a", "b"], pa.string()),
        (Literal["a", None], pa.string()),
        (UserId, pa.int64()),
        (Annotated[int, "doc"], pa.int64()),
        (tuple[int, int], pa.list_(pa.int64(), 2)),
        (tuple[np.float32, np.float32, np.float32], pa.list_(pa.float32(), 3)),
        (tuple[str, str], pa.list_(pa.string())),  # Lance has no vectors of text
        (tuple[tuple[float, float], ...], pa.list_(pa.list_(pa.float64(), 2))),
        (dict[str, int], pa.map_(pa.string(), pa.int64())),
        (Model, MODEL),
        (list[Model], pa.list_(MODEL)),
        (Box[float], pa.struct([("inside", pa.float64())])),
        (Color, pa.int64()),
        (list[Color], pa.list_(pa.int64())),
        (Vector(4), pa.list_(pa.float32(), 4)),
        (Annotated[list[float], pa.list_(pa.float32(), 3)], pa.list_(pa.float32(), 3)),
    ],
    ids=str,
)
def test_hint_gives_its_type(hint: Any, expected: pa.DataType) -> None:
    assert arrow_type(hint) == expected


@pytest.mark.parametrize(
    "hint",
    [
        Any,
        object,
        None,
        type(None),
        list,
        dict,
        int | str,
        Mixed,
        Decimal,
        Literal["a", 1],
        np.ndarray,
        tuple[int, str],
        complex,
        set[int],
        tuple[()],
        list[Mixed],
        typing.TypeVar("T"),
        dict[str, Any],
    ],
    ids=str,
)
def test_hint_that_says_too_little_is_refused_with_advice(hint: Any) -> None:
    with pytest.raises(UdfError, match=r"data_type=pa\."):
        arrow_type(hint)


def test_hints_of_local_classes_work_as_text() -> None:
    @dataclass
    class Local:
        n: int

    @udf
    def f(x: int) -> Local:
        return Local(x)

    @udf()
    def g(x: int) -> list[Local]:
        return [Local(x)]

    assert f.data_type == pa.struct([("n", pa.int64())])
    assert g.data_type == pa.list_(f.data_type)


def scalar(x: int) -> int: ...
async def awaited(x: int) -> int: ...
def arrow(x: pa.Array) -> pa.Array: ...
def strings(x: pa.StringArray, y=None) -> pa.Array: ...
def numpy(x: np.ndarray) -> np.ndarray: ...
def typed(x: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]: ...
def optional(x: pandas.Series | None) -> pandas.Series: ...
def bare(x) -> pa.Array: ...
def record(x: pa.RecordBatch) -> pa.Array: ...


@pytest.mark.parametrize(
    ("function", "kind", "container"),
    [
        (scalar, UdfKind.SCALAR, "python"),
        (awaited, UdfKind.ASYNC, "python"),
        (arrow, UdfKind.BATCH, "arrow"),
        (strings, UdfKind.BATCH, "arrow"),
        (numpy, UdfKind.BATCH, "numpy"),
        (typed, UdfKind.BATCH, "numpy"),
        (optional, UdfKind.BATCH, "pandas"),
        (bare, UdfKind.BATCH, "arrow"),
        (record, UdfKind.RECORD_BATCH, "arrow"),
    ],
)
def test_kind_follows_from_the_parameters(function: Any, kind: UdfKind, container: str) -> None:
    made = udf(function, data_type=pa.int64(), input_columns=["x"])
    assert (made.kind, made.container) == (kind, container)


def test_type_of_a_typed_numpy_array_is_not_asked_for_twice() -> None:
    assert udf(typed).data_type == pa.float32()


def no_hint(x: int): ...
def no_column() -> int: ...
def mixed(x: pa.Array, y: np.ndarray) -> pa.Array: ...
def chunked(x: pa.ChunkedArray) -> pa.Array: ...
def one_for_many(x: pa.Array) -> float: ...
def unloaded_hint(x: unloaded.Series) -> unloaded.Series: ...
async def async_batch(x: pa.Array) -> pa.Array: ...
def generator(x: int) -> int:
    yield x


def gives_none(x: int) -> None: ...


class NoCall:
    pass


@pytest.mark.parametrize(
    ("target", "settings", "says"),
    [
        (no_hint, {}, r"no column type: it has no hint.*@udf\(data_type=pa.float32\(\)\)"),
        (gives_none, {}, "nothing but nulls"),
        (no_column, {}, "reads no column"),
        (record, {"data_type": pa.int64(), "input_columns": []}, "leave it out to read all"),
        (record, {"input_columns": ["x"]}, "what its arrays hold"),
        (mixed, {}, "mixes arrow, numpy"),
        (chunked, {}, "write pa.Array"),
        (one_for_many, {}, "one value per row"),
        (unloaded_hint, {}, "does not evaluate"),
        (async_batch, {}, "one row at a time"),
        (generator, {}, "is a generator"),
        (NoCall, {}, "no __call__"),
        (no_hint, {"data_type": int}, "pyarrow type"),
        (no_hint, {"data_type": pa.int8(), "input_columns": "x"}, "list of names"),
        (no_hint, {"data_type": pa.int8(), "input_columns": ["x", "y"]}, "names 2 columns"),
        (
            no_hint,
            {"data_type": pa.int8(), "params": {"z": 1}},
            r"declares the params 'z'.*parameters x",
        ),
        (5, {}, "not on int"),
    ],
)
def test_declaration_that_cannot_work_is_refused_with_advice(
    target: Any, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(UdfError, match=says):
        udf(**settings)(target)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("num_cpus", -1),
        ("num_gpus", "1"),
        ("memory", 0),
        ("resources", {"CPU": 1}),
        ("resources", {"tpu": 0}),
        ("instances", "process"),
        ("retry", 3),
        ("params", ["x"]),
        ("version", 2),
        ("name", ""),
    ],
)
def test_senseless_setting_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=rf"@udf\({name}="):
        udf(**{name: value})


def test_decorated_things_stay_callable() -> None:
    @udf
    def area(width: int, height: int) -> int:
        """Doc."""
        return width * height

    built: list[str] = []

    @udf(data_type=pa.int64(), params={"start": 5})
    class Add:
        STEP = 10

        def __init__(self, start: int, *, step: int = 1) -> None:
            built.append("x")
            self.total = start + step * Add.STEP

        def __call__(self, x: int) -> int:
            return x + self.total

    assert area(3, 4) == area(height=4, width=3) == 12
    assert (area.__name__, area.__doc__) == ("area", "Doc.")
    add = Add(step=2)
    assert add.params == {"start": 5, "step": 2}
    assert not built
    assert [add(1), add(2)] == [26, 27]
    assert built == ["x"]
    assert add.with_params({"start": 0})(1) == 21
    assert as_udf(Add).stateful
    with pytest.raises(UdfError, match="unexpected keyword"):
        Add(steps=2)
    with pytest.raises(SettingError, match="no params 'stop'; it has 'start', 'step'"):
        add.with_params({"stop": 1})


def test_default_columns_leave_out_the_parameters() -> None:
    @udf(params={"k": 1})
    def f(x: int, k: int, y: int = 2) -> int:
        return x + k + y

    assert f.input_columns == ("x", "y")
    assert f(1) == 4
    assert f(1, 5) == 8


def test_plain_callables_are_udfs_too() -> None:
    made = udf(len, data_type=pa.int64(), input_columns=["text"])
    assert made("abc") == 3
    assert as_udf(made) is made
    assert made.reference is None


def test_import_is_light() -> None:
    heavy = "{'ray', 'torch', 'pandas', 'lance', 'lancedb'}"
    # A package of that name alone, because `geneva` itself may load lancedb.
    code = textwrap.dedent(f"""
        import sys, types
        package = types.ModuleType("geneva"); package.__path__ = sys.argv[1:]
        sys.modules["geneva"] = package
        import geneva.udf
        sys.exit(", ".join({heavy} & set(sys.modules)) or 0)
    """)
    folder = str(Path(geneva.errors.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_repr_says_inputs_and_type() -> None:
    @udf
    def area(width: int, height: int) -> int: ...

    assert repr(area) == "UDF(area(width, height) -> int64)"
    assert isinstance(area, UDF)


@pytest.mark.parametrize(
    ("hint", "file"),
    [
        (typing.BinaryIO, True),
        (typing.BinaryIO | None, True),
        (typing.IO[bytes], True),
        (typing.Annotated[io.IOBase, "video"], True),
        (io.BufferedIOBase, True),
        (io.RawIOBase, True),
        (io.BufferedReader, True),
        (io.BytesIO, True),
        (lance.BlobFile, True),
        ("lance.BlobFile | None", True),
        ("Optional[t.BinaryIO]", True),
        (bytes, False),
        ("bytes", False),
        (typing.TextIO, False),
        (typing.IO[str], False),
        (io.TextIOBase, False),
        (io.StringIO, False),
        (str | None, False),
    ],
)
def test_parameter_takes_a_file_if_its_hint_is_one_of_bytes(hint: Any, file: bool) -> None:
    def size(id: int, video: Any) -> int:
        return id

    size.__annotations__["video"] = hint
    made = udf(size)
    assert made.kind is UdfKind.SCALAR
    assert made.files == ({"video"} if file else set())
    assert with_columns(made, ["id", "clip"]).files == ({"clip"} if file else set())


def test_column_of_another_name_comes_as_the_same_array() -> None:
    @udf
    def norm(vector: np.ndarray) -> float:
        return float(np.linalg.norm(vector))

    assert with_columns(norm, ["embedding"]).row_arrays == {"embedding"}
