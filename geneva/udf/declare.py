"""``@udf``: from a function or class to a UDF."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol, cast, overload

import pyarrow as pa

from geneva.errors import UdfError
from geneva.udf import pickling
from geneva.udf.definition import UDF, Instances
from geneva.udf.retry import Retry, Rule, checked_rules
from geneva.udf.settings import check_settings, seconds_of
from geneva.udf.signature import Signature, UdfKind, column_signature, read_signature


class UdfFactory:
    """A class decorated with `udf`: calling it with constructor arguments gives a `UDF`.

    The class itself is built on the worker only. Its other attributes are reachable here.
    """

    def __init__(self, cls: type, settings: Mapping[str, Any], scope: Mapping[str, Any]) -> None:
        self.target = cls
        self._settings = dict(settings)
        self._scope = dict(scope)
        self.__name__, self.__qualname__ = cls.__name__, cls.__qualname__
        self.__module__, self.__doc__ = cls.__module__, cls.__doc__
        self._signature = _read(_name_of(cls, settings), cls, {}, scope)
        _check_type(_name_of(cls, settings), settings.get("data_type"), self._signature)

    def __call__(self, *args: Any, **kwargs: Any) -> UDF:
        """Remember the constructor's arguments; nothing is built."""
        defaults = dict(self._settings.get("params") or {})
        signature = inspect.signature(self.target)
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
            rest = {name: value for name, value in defaults.items() if name not in given}
            bound = signature.bind(*args, **(rest | kwargs))
        except TypeError as error:
            raise UdfError(f"{self.__qualname__}{signature}: {error}") from error
        bound.apply_defaults()
        settings = self._settings | {"params": dict(bound.arguments)}
        return _make(self.target, settings, self._signature, stateful=True)

    def __getattr__(self, name: str) -> Any:
        """Give the class's own attributes, so that its methods may name it as usual."""
        if name.startswith("__") or "target" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.target, name)

    def __repr__(self) -> str:
        """Show the class's name."""
        return f"UdfFactory({self.__qualname__})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave the local names behind: they were read already."""
        return self.__dict__ | {"_scope": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore without asking the class for attributes."""
        self.__dict__.update(state)


class _Decorator(Protocol):
    """The decorator that ``@udf(...)`` with settings returns."""

    @overload
    def __call__(self, target: type, /) -> UdfFactory: ...  # type: ignore[overload-overlap]  # a class is callable too
    @overload
    def __call__(self, target: Callable[..., Any], /) -> UDF: ...


@overload
def udf(target: type, /) -> UdfFactory: ...  # type: ignore[overload-overlap]  # ditto
@overload
def udf(target: Callable[..., Any], /) -> UDF: ...
@overload
def udf(
    *,
    data_type: pa.DataType | None = ...,
    input_columns: list[str] | tuple[str, ...] | None = ...,
    batch_size: int | None = ...,
    num_cpus: float = ...,
    num_gpus: float = ...,
    memory: int | None = ...,
    resources: Mapping[str, float] | None = ...,
    runtime_env: Mapping[str, Any] | None = ...,
    retry: Retry | None = ...,
    on_error: Sequence[Rule] | Rule | None = ...,
    timeout: float | timedelta | None = ...,
    instances: Instances = ...,
    version: str | None = ...,
    params: Mapping[str, Any] | None = ...,
    name: str | None = ...,
    reads_own_output: bool = ...,
    field_metadata: Mapping[str, str] | None = ...,
) -> _Decorator: ...
def udf(
    target: Callable[..., Any] | None = None,
    /,
    *,
    data_type: pa.DataType | None = None,
    input_columns: list[str] | tuple[str, ...] | None = None,
    batch_size: int | None = None,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    memory: int | None = None,
    resources: Mapping[str, float] | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    retry: Retry | None = None,
    on_error: Sequence[Rule] | Rule | None = None,
    timeout: float | timedelta | None = None,
    instances: Instances = "applier",
    version: str | None = None,
    params: Mapping[str, Any] | None = None,
    name: str | None = None,
    reads_own_output: bool = False,
    field_metadata: Mapping[str, str] | None = None,
) -> Any:
    """Declare a function, an async function or a class as a UDF.

    Parameters
    ----------
    data_type
        Arrow type of the results; needed where the hints do not give one.
    input_columns
        Columns, or paths such as ``meta.lang``, one per parameter and in their order. Default:
        the names of the parameters that are not in `params`; of those with a default, the ones
        that are columns of the table when the UDF is bound. A UDF of a ``pa.RecordBatch`` then
        reads all columns that the table has and no UDF computes.
    batch_size
        Rows per call of a batch UDF.
    num_cpus, num_gpus, memory, resources, runtime_env
        What one applier reserves, in Ray's terms (`memory` in bytes; `resources` by their names).
    retry
        Whether to repeat failing calls; short for ``on_error=[Retry(...)]``.
    on_error
        Rules for calls that fail, `Retry`, `Skip` and `Fail`, tried in order: the first that is
        about the error decides. A `Retry` without attempts left leaves it to the next rule; what
        no rule is about follows the backfill's ``on_error``.
    timeout
        Seconds, or a timedelta, after which a call (of one row, or of one batch) counts as
        failed with `UdfTimeoutError`. An async call is cancelled; any other goes on in a thread
        that is left behind, because Python cannot end it.
    instances
        One object of a stateful UDF per ``"applier"`` process, or per ``"thread"``.
    version
        What the UDF is, in place of its source: change it to have values computed anew.
    params
        Parameters that are settings, with their values; a backfill may override them.
    reads_own_output
        Allow the column that the UDF fills to be among its inputs.
    field_metadata
        Metadata of a new column, such as ``{"lance-encoding:blob": "true"}`` for large bytes.

    Returns
    -------
    UDF, UdfFactory
        For a class, a factory: call it with the constructor's arguments. Without a function, a
        decorator.

    Raises
    ------
    UdfError
        If kind, inputs or type cannot be derived; the message says what to write.
    SettingError
        If a setting has a value that makes no sense.

    Examples
    --------
    >>> @udf
    ... def area(width: int, height: int) -> int:
    ...     return width * height
    >>> area.input_columns, area.data_type, area(3, 4)
    (('width', 'height'), DataType(int64), 12)
    """
    settings = {key: value for key, value in locals().items() if key != "target"}
    check_settings(settings)
    frame = inspect.currentframe()
    scope = frame.f_back.f_locals if frame and frame.f_back else {}
    if target is None:
        return cast(_Decorator, lambda function: _declare(function, settings, scope))
    return _declare(target, settings, scope)


def as_udf(thing: Any) -> UDF:
    """Return the UDF that a UDF, a factory without arguments or a plain callable stands for now.

    A pair of one of these and a list names the columns that it reads.
    """
    if isinstance(thing, tuple) and len(thing) == 2:
        return with_columns(as_udf(thing[0]), thing[1])
    if isinstance(thing, UDF):
        return thing.as_of_now()
    declared = thing if isinstance(thing, UdfFactory) else _declare(thing, {}, {})
    return declared() if isinstance(declared, UdfFactory) else declared


def with_columns(made: UDF, columns: Sequence[str]) -> UDF:
    """Return the same UDF, reading these columns.

    Raises
    ------
    UdfError
        It does not take so many.
    """
    call = made.target
    settings: Collection[str] = made.params
    if made.stateful:
        call = inspect.getattr_static(made.target, "__call__")
        settings = [next(iter(inspect.signature(call).parameters))]
    signature = replace(column_signature(made.name, call, settings), kind=made.kind)
    names = _columns(made.name, columns, signature)
    # What the module's name leads to reads other columns.
    digests = {"code": made.code_digest}
    return replace(
        made,
        input_columns=names,
        defaults={},
        row_arrays=_among(made.name, made.input_columns, names, made.row_arrays),
        files=_among(made.name, made.input_columns, names, made.files),
        _digests=digests,
        _reference=None,
    )


def from_reference(reference: str, params: Mapping[str, Any] | None = None) -> UDF:
    """Import the UDF that `UDF.reference` names, with these parameters.

    Raises
    ------
    UdfError
        If nothing of that name can be imported, or it is no UDF.
    """
    try:
        found = pickling.import_reference(reference)
    except (ImportError, AttributeError) as error:
        raise UdfError(f"the UDF {reference!r} cannot be imported here: {error}") from error
    if isinstance(found, UdfFactory):
        return found(**(params or {}))
    if not isinstance(found, UDF):
        raise UdfError(f"{reference!r} is a {type(found).__name__}, not a UDF")
    return found.with_params(params) if params else found


def _declare(
    target: Any, settings: Mapping[str, Any], scope: Mapping[str, Any]
) -> UDF | UdfFactory:
    if isinstance(target, UDF | UdfFactory):
        raise UdfError(f"{target!r} is declared already; @udf goes on it once")
    if not callable(target):
        raise UdfError(f"@udf goes on a function or class, not on {type(target).__name__}")
    if isinstance(target, type):
        return UdfFactory(target, settings, scope)
    signature = _read(_name_of(target, settings), target, settings.get("params") or {}, scope)
    return _make(target, settings, signature, stateful=False)


def _read(name: str, target: Any, params: Mapping[str, Any], scope: Mapping[str, Any]) -> Signature:
    call = target
    if isinstance(target, type):
        call = inspect.getattr_static(target, "__call__", None)
        if not inspect.isfunction(call):
            raise UdfError(f"class {name!r} has no __call__ method for the UDF to call")
        # A method's `self` is no column.
        params = {**params, next(iter(inspect.signature(call).parameters)): None}
    elif not inspect.isroutine(target) and not isinstance(target, functools.partial):
        call = target.__call__
    return read_signature(name, call, params, scope)


def _make(target: Any, settings: Mapping[str, Any], signature: Signature, *, stateful: bool) -> UDF:
    settings = dict(settings)
    name = _name_of(target, settings)
    given = settings.pop("input_columns", None)
    columns = _columns(name, given, signature)
    params = dict(settings.get("params") or {})
    if not stateful:
        params = {**signature.settings, **params}
    data_type = _check_type(name, settings.pop("data_type", None), signature)
    settings.pop("name", None)
    rules = settings.pop("on_error", None)
    timeout = seconds_of(settings.pop("timeout", None))
    return UDF(
        target=target,
        name=name,
        kind=signature.kind,
        container=signature.container,
        data_type=data_type,
        input_columns=columns,
        stateful=stateful,
        on_error=() if rules is None else checked_rules(rules),
        timeout=timeout,
        defaults=signature.defaults if given is None else {},
        row_arrays=_among(name, signature.columns, columns, signature.row_arrays),
        files=_among(name, signature.columns, columns, signature.files),
        **settings | {"params": params},
    )


def _among(
    name: str, before: Sequence[str], columns: Sequence[str], special: Collection[str]
) -> frozenset[str]:
    """Return the columns that come in place of some parameters or columns.

    Raises
    ------
    UdfError
        A column comes in two forms.
    """
    found = {c for b, c in zip(before, columns, strict=False) if b in special}
    others = {c for k, c in enumerate(columns) if k >= len(before) or before[k] not in special}
    if both := found & others:
        raise UdfError(
            f"UDF {name!r} reads {', '.join(map(repr, sorted(both)))} twice, in two forms; hint "
            "both parameters alike"
        )
    return frozenset(found)


def for_rows(made: UDF, lists: Collection[str]) -> UDF:
    """Return a UDF that takes its arrays as one row's list, or as a column's batch.

    Parameters
    ----------
    lists
        Those of its input columns that hold lists or vectors.

    Raises
    ------
    UdfError
        Its result is one value, and its array is no list.
    """
    if not made.row_arrays:
        return made
    if made.row_arrays <= set(lists):
        if made.kind is not UdfKind.BATCH:
            return made
        return replace(made, kind=UdfKind.SCALAR, _digests={}, _reference=None)
    if made.kind is UdfKind.BATCH:
        return replace(made, row_arrays=frozenset())
    plain = ", ".join(sorted(made.row_arrays - set(lists)))
    raise UdfError(
        f"UDF {made.name!r} takes {plain} as an array, which is a batch of rows where the column "
        "holds no lists, so it must return one value per row; hint its result np.ndarray, or the "
        "parameter by what one row holds"
    )


def _name_of(target: Any, settings: Mapping[str, Any]) -> str:
    function = target.func if isinstance(target, functools.partial) else target
    own = getattr(function, "__name__", None) or type(function).__name__
    return settings.get("name") or ("lambda_" if own == "<lambda>" else own)


def _check_type(name: str, data_type: Any, signature: Signature) -> pa.DataType:
    if data_type is None:
        if signature.data_type is None:
            raise UdfError(
                f"UDF {name!r} has no column type: {signature.type_problem}. "
                "Hint the result (-> int) or write @udf(data_type=pa.float32())"
            )
        return signature.data_type
    if not isinstance(data_type, pa.DataType):
        raise UdfError(
            f"data_type of UDF {name!r} is a pyarrow type such as pa.float32(), not {data_type!r}"
        )
    return data_type


def _columns(name: str, given: Any, signature: Signature) -> tuple[str, ...]:
    if given is None:
        if signature.kind is UdfKind.RECORD_BATCH:
            return ()  # those of the table, once it is known
        given = signature.columns
    elif isinstance(given, list | tuple) and not given and signature.kind is UdfKind.RECORD_BATCH:
        raise UdfError(f"input_columns of UDF {name!r} is empty; leave it out to read all")
    if isinstance(given, str) or not all(isinstance(c, str) and c for c in given):
        raise UdfError(f"input_columns of UDF {name!r} is a list of names, not {given!r}")
    if not given:
        raise UdfError(f"UDF {name!r} reads no column; give it a parameter or input_columns")
    _check_arity(name, given, signature)
    if len(set(given)) < len(given) and signature.kind is UdfKind.RECORD_BATCH:
        raise UdfError(f"input_columns of UDF {name!r} names a column twice: {list(given)}")
    return tuple(given)


def _check_arity(name: str, columns: Collection[str], signature: Signature) -> None:
    if signature.kind is UdfKind.RECORD_BATCH:
        return
    if len(columns) < signature.least or len(columns) > (signature.most or len(columns)):
        raise UdfError(
            f"input_columns of UDF {name!r} names {len(columns)} columns ({', '.join(columns)}), "
            f"but it takes the parameters {', '.join(signature.columns)}"
        )
