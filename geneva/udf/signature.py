"""The signature of a callable: its kind, its inputs and its type, from parameters and hints."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pyarrow as pa

from geneva.errors import UdfError
from geneva.udf.files import is_file
from geneva.udf.infer import arrow_type, element_type

Container = Literal["python", "arrow", "numpy", "pandas"]
_ANY_CONTAINER = ("Array", "ndarray", "Series", "RecordBatch", "ChunkedArray", "NDArray")
_UNKNOWN = object()
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class UdfKind(StrEnum):
    """The form of one call of a UDF."""

    SCALAR = "scalar"
    ASYNC = "async"
    BATCH = "batch"
    RECORD_BATCH = "record_batch"


@dataclass(frozen=True, slots=True)
class Signature:
    """The facts of a callable; `data_type` is ``None`` where the hints do not tell.

    `least` and `most` bound how many columns the callable takes (``None``: any number). `defaults`
    are those of its columns; `settings`, those of parameters that cannot be columns. `row_arrays`
    are the parameters that take one row's list as a NumPy array; of a batch UDF they may yet do so:
    the types of its columns decide. `files` are those that take bytes as a file.
    """

    kind: UdfKind
    container: Container
    columns: tuple[str, ...]
    least: int
    most: int | None
    data_type: pa.DataType | None
    type_problem: str
    defaults: Mapping[str, Any]
    settings: Mapping[str, Any]
    row_arrays: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()


def read_signature(
    name: str, call: Callable[..., Any], params: Collection[str], scope: Mapping[str, Any]
) -> Signature:
    """Read kind, container, column parameters and type from a callable's signature.

    Parameters
    ----------
    call
        The function, or the ``__call__`` of a class bound to nothing (``self`` removed).
    params
        Parameters that are settings of the UDF, not columns.
    scope
        Local names of the place of definition, for hints that are written as text.
    """
    if inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call):
        raise UdfError(f"UDF {name!r} is a generator; return the values instead of yielding them")
    parameters = _column_parameters(name, call, params)
    hints = _hints(call, scope)
    parameters, settings = _apart(name, parameters, hints)
    returns = hints.get("return", _UNKNOWN)
    forms = {p.name: _container(name, p.name, hints.get(p.name, _UNKNOWN)) for p in parameters}
    arrays = _row_arrays(name, forms, returns)
    if arrays and returns is not _UNKNOWN:
        is_async = inspect.iscoroutinefunction(call)
        kind, container = UdfKind.ASYNC if is_async else UdfKind.SCALAR, typing.cast(Any, "numpy")
    else:
        kind, container = _kind(name, call, list(forms.values()), returns)
    data_type, problem = _data_type(name, kind, returns)
    return replace(
        column_signature(name, call, {*params, *settings}),
        kind=kind,
        container=container,
        data_type=data_type,
        type_problem=problem,
        settings=settings,
        row_arrays=arrays,
        files=frozenset(p.name for p in parameters if is_file(hints.get(p.name))),
    )


def _row_arrays(name: str, forms: Mapping[str, str | None], returns: Any) -> frozenset[str]:
    """Return the parameters that may be one row's list as a NumPy array.

    They may where nothing says that the result is an array, which it is of a batch.
    """
    arrays = frozenset(p for p, form in forms.items() if form == "numpy")
    plain = set(forms.values()) <= {"numpy", "python", None}
    if returns is _UNKNOWN:  # a batch UDF's, too: the types of the columns decide
        return arrays if set(forms.values()) == {"numpy"} else frozenset()
    one = _container(name, "return", returns) == "python" and _is_one_value(returns)
    return arrays if plain and one else frozenset()


def column_signature(name: str, call: Callable[..., Any], params: Collection[str]) -> Signature:
    """Read which columns a callable takes, and how many."""
    named = [p for p in _column_parameters(name, call, params) if p.kind not in _MANY]
    given = {p.name: p.default for p in named if p.default is not inspect.Parameter.empty}
    takes_many = any(p.kind in _MANY for p in inspect.signature(call).parameters.values())
    return Signature(
        kind=UdfKind.SCALAR,
        container="python",
        columns=tuple(p.name for p in named),
        least=len(named) - len(given),
        most=None if takes_many else len(named),
        data_type=None,
        type_problem="",
        defaults=given,
        settings={},
    )


def _apart(
    name: str, parameters: list[inspect.Parameter], hints: Mapping[str, Any]
) -> tuple[list[inspect.Parameter], dict[str, Any]]:
    """Take out of an array UDF's parameters the plain ones with a default: no columns."""
    forms = {p.name: _container(name, p.name, hints.get(p.name, _UNKNOWN)) for p in parameters}
    if not {"batch", "arrow", "numpy", "pandas"} & set(forms.values()):
        return parameters, {}
    whole = "batch" in forms.values()
    settings = {
        p.name: p.default
        for p in parameters
        if p.default is not inspect.Parameter.empty
        and (forms[p.name] == "python" or (whole and forms[p.name] is None))
    }
    return [p for p in parameters if p.name not in settings], settings


def _column_parameters(
    name: str, call: Callable[..., Any], params: Collection[str]
) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError) as error:
        raise UdfError(
            f"UDF {name!r} has no signature that Python can read; wrap it in a function"
        ) from error
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [param for param in params if param not in parameters]
    if unknown and not takes_any:
        raise UdfError(
            f"UDF {name!r} declares the params {', '.join(map(repr, unknown))} but has only the "
            f"parameters {', '.join(parameters) or '(none)'}"
        )
    return [
        p
        for p in parameters.values()
        if p.name not in params and p.kind is not inspect.Parameter.VAR_KEYWORD
    ]


def _hints(call: Callable[..., Any], scope: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate each hint on its own, so that one unknown name spoils only itself."""
    function: Any = inspect.unwrap(call)
    while hasattr(function, "func"):
        function = function.func
    function = getattr(function, "__func__", function)
    raw = getattr(function, "__annotations__", {})
    # The usual names come first, so that they help only where the module has none of its own:
    # a library that is imported under TYPE_CHECKING is still understood.
    names = {"pa": pa, "pyarrow": pa, "np": np, "numpy": np, "typing": typing}
    names |= {**getattr(function, "__globals__", {}), **scope, **_closure(function)}
    hints: dict[str, Any] = {}
    for parameter, hint in raw.items():
        probe = types.SimpleNamespace(__annotations__={parameter: hint})
        try:
            hints |= typing.get_type_hints(probe, names, names, include_extras=True)
        except (NameError, AttributeError, TypeError, SyntaxError):
            hints[parameter] = hint
    return hints


def _closure(function: Any) -> dict[str, Any]:
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    found = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # an empty cell: the name is assigned later
            continue
    return found


def _container(name: str, parameter: str, hint: Any) -> str | None:
    """Return the container that a hint names; "batch" for a record batch, ``None`` for no hint."""
    if hint is _UNKNOWN:
        return None
    if isinstance(hint, str):
        # The text did not evaluate. Guessing "scalar" for an array would call the UDF wrongly.
        if hint.split("[")[0].rsplit(".", 1)[-1] in _ANY_CONTAINER:
            raise UdfError(
                f"the hint {hint!r} of parameter {parameter!r} of UDF {name!r} does not evaluate; "
                "import its module at run time, not only under TYPE_CHECKING"
            )
        return "python"
    kind = _bare(hint)
    if not isinstance(kind, type):
        return "python"
    if issubclass(kind, pa.ChunkedArray | pa.Table):
        raise UdfError(
            f"parameter {parameter!r} of UDF {name!r} is hinted {kind.__name__}; a batch is one "
            "chunk: write pa.Array or pa.RecordBatch"
        )
    if kind.__name__ == "Series" and kind.__module__.split(".")[0] == "pandas":
        return "pandas"
    known = ((pa.RecordBatch, "batch"), (pa.Array, "arrow"), (np.ndarray, "numpy"))
    return next((word for form, word in known if issubclass(kind, form)), "python")


def _bare(hint: Any) -> Any:
    """Strip ``| None``, ``Annotated`` and type arguments."""
    if get_origin(hint) in {typing.Union, types.UnionType}:
        rest = [arg for arg in get_args(hint) if arg is not type(None)]
        return _bare(rest[0]) if len(rest) == 1 else None
    if hasattr(hint, "__metadata__"):
        return _bare(hint.__origin__)
    return get_origin(hint) or hint


def _kind(
    name: str, call: Callable[..., Any], containers: list[str | None], returns: Any
) -> tuple[UdfKind, Container]:
    known = {container for container in containers if container}
    if not known:
        # Without any hint on a parameter, the hint of the result is all there is to go by.
        returned = _container(name, "return", returns)
        known = {returned} if returned in {"arrow", "numpy", "pandas"} else {"python"}
    if len(known) > 1:
        raise UdfError(
            f"UDF {name!r} mixes {', '.join(sorted(map(str, known)))} parameters; a batch UDF "
            "takes all its columns in one form"
        )
    container = known.pop()
    is_async = inspect.iscoroutinefunction(call)
    if is_async and container != "python":
        raise UdfError(f"UDF {name!r} is async, so it takes one row at a time, not arrays")
    if container == "batch":
        if len(containers) > 1:
            raise UdfError(f"UDF {name!r} takes a pa.RecordBatch, so it takes nothing else")
        return UdfKind.RECORD_BATCH, "arrow"
    if container == "python":
        return (UdfKind.ASYNC if is_async else UdfKind.SCALAR), "python"
    return UdfKind.BATCH, typing.cast(Container, container)


def _data_type(name: str, kind: UdfKind, hint: Any) -> tuple[pa.DataType | None, str]:
    """Return the type that the result's hint gives, and else why it gives none."""
    if hint is _UNKNOWN:
        return None, "it has no hint for its result"
    if isinstance(hint, str):
        return None, f"the hint {hint!r} of its result does not evaluate"
    if kind in {UdfKind.SCALAR, UdfKind.ASYNC}:
        try:
            return arrow_type(hint), ""
        except UdfError as error:
            return None, str(error)
    if _container(name, "return", hint) == "python" and _is_one_value(hint):
        raise UdfError(
            f"UDF {name!r} takes arrays, so it must return one value per row, but its result is "
            f"hinted {hint!r}; hint it pa.Array, np.ndarray or pd.Series"
        )
    return element_type(hint), "its hints do not say what its arrays hold"


def _is_one_value(hint: Any) -> bool:
    try:
        kind = arrow_type(hint)
    except UdfError:
        return False
    return not (pa.types.is_list(kind) or pa.types.is_struct(kind))
