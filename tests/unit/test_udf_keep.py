"""A UDF may fill one object anew for each row, or the same memory in each call."""

from __future__ import annotations

import array
import collections
import enum
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geneva.udf import BadResult, Caller, to_arrow, udf
from geneva.udf.keep import keeper
from geneva.udf.plain_values import from_values

ROWS = [1, 2, 3, 4]
INT, FLOAT = pa.int64(), pa.float32()
LIST, VECTOR = pa.list_(INT), pa.list_(FLOAT, 2)
STRUCT = pa.struct([("p", INT)])


@dataclass
class Plain:
    p: Any = 0


class Slotted:
    __slots__ = ("p",)
    __attrs_attrs__ = (collections.namedtuple("Attribute", ["name"])("p"),)


class Model(pydantic.BaseModel):
    p: Any = 0


class Pair(NamedTuple):
    p: Any


class Numbers(list[Any]):
    pass


class Tensor:
    """What torch.Tensor offers."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.memory

    def __len__(self) -> int:
        return len(self.memory)


class Boxed(enum.Enum):
    MEMORY = np.zeros(())


def attribute(made: Any, name: str = "p") -> tuple[Any, Callable[[int], None]]:
    return made, lambda x: setattr(made, name, x)


def item(made: Any, key: Any = "p") -> tuple[Any, Callable[[int], None]]:
    return made, lambda x: made.__setitem__(key, x)


def within(
    wrap: Callable[[Any], Any], made: Any, key: Any = 0
) -> tuple[Any, Callable[[int], None]]:
    return wrap(made), lambda x: made.__setitem__(key, x)


def window() -> tuple[Any, Callable[[int], None]]:
    made: collections.deque[int] = collections.deque(maxlen=2)
    return made, lambda x: made.extend([x, x])


def refilled_set() -> tuple[Any, Callable[[int], None]]:
    made: set[int] = set()

    def fill(x: int) -> None:
        made.clear()
        made.add(x)

    return made, fill


def over_memory(wrap: Callable[[Any], Any]) -> tuple[Any, Callable[[int], None]]:
    memory = np.zeros(2, np.float32)
    return wrap(memory), lambda x: memory.__setitem__(slice(None), x)


def number(wrap: Callable[[Any], Any] = lambda a: a) -> tuple[Any, Callable[[int], None]]:
    return within(wrap, np.zeros((), np.float32), ())


def twice(x: int) -> list[float]:
    return [x, x]


REFILLED: dict[str, tuple[pa.DataType, Callable[[], Any], Callable[[int], Any]]] = {
    "dataclass": (STRUCT, lambda: attribute(Plain()), lambda x: {"p": x}),
    "attrs": (STRUCT, lambda: attribute(Slotted()), lambda x: {"p": x}),
    "model": (STRUCT, lambda: attribute(Model()), lambda x: {"p": x}),
    "dict": (STRUCT, lambda: item({}), lambda x: {"p": x}),
    "ordered dict": (STRUCT, lambda: item(collections.OrderedDict()), lambda x: {"p": x}),
    "user dict": (STRUCT, lambda: item(collections.UserDict()), lambda x: {"p": x}),
    "proxy": (
        STRUCT,
        lambda: within(types.MappingProxyType, {}, "p"),
        lambda x: {"p": x},
    ),
    "dataclasses in a list": (
        pa.list_(STRUCT),
        lambda: (lambda made: ([made], attribute(made)[1]))(Plain()),
        lambda x: [{"p": x}],
    ),
    "deque": (LIST, window, twice),
    "set": (LIST, refilled_set, lambda x: [x]),
    "list in a dict": (
        pa.struct([("p", LIST)]),
        lambda: within(lambda made: {"p": made}, [0]),
        lambda x: {"p": [x]},
    ),
    "list subclass": (LIST, lambda: item(Numbers([0]), 0), lambda x: [x]),
    "user list": (LIST, lambda: item(collections.UserList([0]), 0), lambda x: [x]),
    "array": (LIST, lambda: item(array.array("q", [0]), 0), lambda x: [x]),
    "view": (LIST, lambda: within(memoryview, array.array("q", [0])), lambda x: [x]),
    "tuple of arrays": (
        pa.list_(VECTOR),
        lambda: over_memory(lambda m: (m,)),
        lambda x: [twice(x)],
    ),
    "named tuple": (
        pa.struct([("p", VECTOR)]),
        lambda: over_memory(Pair),
        lambda x: {"p": twice(x)},
    ),
    "numpy": (VECTOR, lambda: over_memory(lambda m: m), twice),
    "numpy view": (VECTOR, lambda: over_memory(lambda m: m[:]), twice),
    "numpy read-only": (VECTOR, lambda: over_memory(read_only), twice),
    "masked": (VECTOR, lambda: over_memory(lambda m: np.ma.MaskedArray(m, copy=False)), twice),
    "matrix row": (
        pa.list_(VECTOR),
        lambda: over_memory(lambda m: m.reshape(1, 2)),
        lambda x: [twice(x)],
    ),
    "series": (VECTOR, lambda: over_memory(lambda m: pd.Series(m, copy=False)), twice),
    "tensor": (VECTOR, lambda: over_memory(Tensor), twice),
    "tensor in a dict": (
        pa.struct([("v", VECTOR)]),
        lambda: over_memory(lambda m: {"v": Tensor(m)}),
        lambda x: {"v": twice(x)},
    ),
    "tensor in a dataclass": (
        pa.struct([("p", VECTOR)]),
        lambda: over_memory(lambda m: Plain(Tensor(m))),
        lambda x: {"p": twice(x)},
    ),
    "tensors in a list": (
        pa.list_(VECTOR),
        lambda: over_memory(lambda m: [Tensor(m)]),
        lambda x: [twice(x)],
    ),
    "tensors in a map": (
        pa.map_(pa.string(), VECTOR),
        lambda: over_memory(lambda m: {"k": Tensor(m)}),
        lambda x: [("k", twice(x))],
    ),
    "pairs": (
        pa.map_(pa.string(), INT),
        lambda: within(lambda pair: [pair], ["k", 0], 1),
        lambda x: [("k", x)],
    ),
    "arrow over memory": (VECTOR, lambda: over_memory(pa.array), twice),
    "arrow's scalar over memory": (
        VECTOR,
        lambda: over_memory(lambda m: pa.FixedSizeListArray.from_arrays(pa.array(m), 2)[0]),
        twice,
    ),
    "objects": (
        pa.list_(STRUCT),
        lambda: within(lambda d: np.array([d], dtype=object), {"p": 0}, "p"),
        lambda x: [{"p": x}],
    ),
    "bytes": (pa.binary(), lambda: item(bytearray(1), 0), lambda x: bytes([x])),
    "bytes in a dict": (
        pa.struct([("b", pa.large_binary())]),
        lambda: within(lambda b: {"b": memoryview(b)}, bytearray(1)),
        lambda x: {"b": bytes([x])},
    ),
    "bytes in a list": (
        pa.list_(pa.binary()),
        lambda: within(lambda b: [b"", b], bytearray(1)),
        lambda x: [b"", bytes([x])],
    ),
    "number": (FLOAT, number, float),
    "number's view": (FLOAT, lambda: number(lambda a: a.view()), float),
    "number as a tensor": (FLOAT, lambda: number(Tensor), float),
    "number in a list": (pa.list_(FLOAT), lambda: number(lambda a: [a]), lambda x: [float(x)]),
    "number in a dict": (
        pa.struct([("p", FLOAT)]),
        lambda: number(lambda a: {"p": a}),
        lambda x: {"p": float(x)},
    ),
    "member of an enum": (
        FLOAT,
        lambda: (Boxed.MEMORY, lambda x: Boxed.MEMORY.value.__setitem__((), x)),
        float,
    ),
}


def read_only(memory: Any) -> Any:
    view = memory.view()
    view.flags.writeable = False
    return view


@pytest.mark.parametrize("form", ["row", "async"])
@pytest.mark.parametrize("case", REFILLED)
def test_object_that_is_filled_for_each_row_keeps_each_rows_value(case: str, form: str) -> None:
    kind, make, shown = REFILLED[case]
    made, fill = make()

    def scalar(x: int) -> Any:
        fill(x)
        return made

    async def awaited(x: int) -> Any:
        return scalar(x)

    with Caller(udf(scalar if form == "row" else awaited, data_type=kind)) as caller:
        found = caller(pa.RecordBatch.from_pydict({"x": ROWS})).values.to_pylist()
    assert found == [shown(x) for x in ROWS]


@pytest.mark.parametrize("first", [None, 0.5])
@pytest.mark.parametrize("case", ["number", "number's view", "number as a tensor"])
def test_number_that_is_filled_again_behind_an_immutable_one_is_right_or_refused(
    case: str, first: float | None
) -> None:
    kind, make, shown = REFILLED[case]
    made, fill = make()

    @udf(data_type=kind)
    def scalar(x: int) -> Any:
        fill(x)
        return first if x == ROWS[0] else made

    with Caller(scalar) as caller:
        rows = pa.RecordBatch.from_pydict({"x": ROWS})
        if first is None:
            assert caller(rows).values.to_pylist() == [None, *map(shown, ROWS[1:])]
            return
        with pytest.raises(BadResult, match="filled again"):
            caller(rows)


def test_new_number_without_dimensions_is_taken_wherever_it_comes() -> None:
    @udf(data_type=pa.float64())
    def scalar(x: int) -> Any:
        return 0.5 if x < 3 else np.where(x > 3, 1.0, 2.0)

    with Caller(scalar) as caller:
        found = caller(pa.RecordBatch.from_pydict({"x": ROWS})).values.to_pylist()
    assert found == [0.5, 0.5, 2.0, 1.0]


def test_number_that_is_filled_again_within_a_list_of_numbers_is_refused() -> None:
    memory = np.zeros(())

    @udf(data_type=pa.list_(pa.float64()))
    def scalar(x: int) -> Any:
        memory[()] = x
        return [0.5, memory]

    with Caller(scalar) as caller, pytest.raises(BadResult, match="filled again"):
        caller(pa.RecordBatch.from_pydict({"x": ROWS}))


def test_masked_elements_of_a_row_are_null() -> None:
    row = np.ma.MaskedArray([1.0, 2.0], [True, False])
    assert to_arrow([row, row], pa.list_(FLOAT), 2).to_pylist() == [[None, 2.0]] * 2


def test_class_that_cannot_be_read_is_a_failure_of_its_row() -> None:
    class Stuck:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise RuntimeError("requires grad")

    @udf(data_type=VECTOR)
    def scalar(x: int) -> Any:
        return Stuck() if x == 2 else [x, x]

    with Caller(scalar, "null") as caller:
        applied = caller(pa.RecordBatch.from_pydict({"x": ROWS}))
    assert [(f.row, f.message) for f in applied.failures] == [(1, "requires grad")]
    with pytest.raises(BadResult, match="requires grad"):
        to_arrow(Stuck(), VECTOR, 1)


def views(memory: Any) -> Iterator[tuple[Any, pa.DataType]]:
    """The same four floats, in all the forms in which a batch UDF may return them."""
    kind = pa.float32()
    read = read_only(memory)
    yield memory, kind
    yield read, kind
    yield read.astype(np.float32, copy=False), kind
    yield memory[::-1][::-1], kind
    yield pa.array(memory), kind
    yield pa.array(read), kind
    yield pa.array(read).slice(0), kind
    buffers = [
        pa.py_buffer(memory),
        pa.py_buffer(memoryview(memory).toreadonly()),
        pa.foreign_buffer(memory.ctypes.data, memory.nbytes, memory),
    ]
    for buffer in buffers:
        yield pa.Array.from_buffers(kind, 4, [None, buffer]), kind
    foreign = pa.Array.from_buffers(kind, 4, [None, buffers[-1]])
    yield pa.chunked_array([foreign]), kind
    yield pa.chunked_array([foreign.slice(0, 1), foreign.slice(1)]), kind
    yield pa.FixedSizeListArray.from_arrays(foreign, 1), pa.list_(kind, 1)
    yield pa.ListArray.from_arrays([0, 1, 2, 3, 4], foreign), pa.list_(kind)
    yield pa.ListArray.from_arrays([0, 1, 2, 3, 4], foreign), pa.large_list(kind)
    yield pa.StructArray.from_arrays([foreign], ["p"]), pa.struct([("p", kind)])
    yield pa.table({"p": foreign}), pa.struct([("p", kind)])
    yield pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3]), foreign), kind
    codes = pa.array([0, 1, 2, 3], pa.int8())
    yield pa.DictionaryArray.from_arrays(codes, foreign), pa.dictionary(pa.int8(), kind)
    yield pd.Series(memory, copy=False), kind
    yield pd.DataFrame(memory.reshape(4, 1), columns=["p"], copy=False), pa.struct([("p", kind)])
    yield Tensor(memory), kind
    yield memory.reshape(4, 1), pa.list_(kind, 1)
    yield [memory[k : k + 1] for k in range(4)], pa.list_(kind)
    yield [memory[k : k + 1].reshape(()) for k in range(4)], kind
    yield np.array([memory[k : k + 1] for k in range(4)] + [None], dtype=object)[:4], pa.list_(kind)


def test_memory_of_a_batch_that_is_filled_again_changes_no_value() -> None:
    memory = np.arange(4, dtype=np.float32)
    made = []
    for k, (values, kind) in enumerate(views(memory)):
        array = to_arrow(values, kind, 4)
        made.append((k, array, array.to_pylist()))
    memory[:] = 7
    assert len(made) > 20
    for k, array, before in made:
        assert array.to_pylist() == before, k


def test_text_behind_views_is_copied() -> None:
    memory = bytearray(b"a text that is longer than a view can hold")
    view = pa.array([bytes(memory).decode()], pa.string_view())
    inline, _ = view.buffers()[1], view.buffers()[2]
    made = pa.Array.from_buffers(pa.string_view(), 1, [None, inline, pa.py_buffer(memory)])
    array = to_arrow(made, pa.string_view(), 1)
    memory[:] = b"x" * len(memory)
    assert array.to_pylist() == view.to_pylist()


leaf = st.one_of(
    st.none(),
    st.integers(-5, 5),
    st.just(np.array(3)),
    st.just(np.int8(3)),
    st.just(pa.scalar(3)),
    st.just(Boxed.MEMORY),
)
value = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(collections.deque),
        st.lists(inner, max_size=3).map(Numbers),
        st.builds(lambda v: {"p": v}, inner),
        st.builds(Plain, inner),
        st.builds(Pair, inner),
        st.builds(lambda v: collections.OrderedDict(p=v), inner),
        st.lists(st.integers(0, 5), max_size=2).map(lambda v: Tensor(np.array(v, dtype=np.int64))),
    ),
    max_leaves=6,
)
kinds = st.recursive(
    st.just(INT),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(lambda t: pa.struct([("p", t)])),
        inner.map(lambda t: pa.map_(INT, t)),
    ),
    max_leaves=3,
)


def spoil(thing: Any, seen: set[int]) -> None:
    """Fill anew whatever can be, however deep it lies."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        thing[...] = 9
    elif isinstance(thing, Tensor):
        thing.memory[...] = 9
    elif isinstance(thing, list | collections.deque):
        for inner in list(thing):
            spoil(inner, seen)
        thing.clear()
    elif isinstance(thing, dict):
        spoil(thing.get("p"), seen)
        thing.clear()
    elif isinstance(thing, Plain):
        spoil(thing.p, seen)
        thing.p = 9
    elif isinstance(thing, Pair):
        spoil(thing.p, seen)
    elif isinstance(thing, enum.Enum):
        thing.value[...] = 9


def built(kept: Any, kind: pa.DataType) -> Any:
    try:
        return from_values([kept], kind).to_pylist()
    except Exception as error:
        return str(error)


@given(value, kinds)
def test_whatever_is_accepted_cannot_be_changed_afterwards(thing: Any, kind: pa.DataType) -> None:
    Boxed.MEMORY.value[...] = 1
    kept = keeper(kind)(thing)
    before = built(kept, kind)
    spoil(thing, set())
    after = built(kept, kind)
    assert after == before or "filled again" in str(before)
