"""``@udf``, and the value that it makes of a function or class."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import pyarrow as pa

from geneva.errors import SettingError, UdfError
from geneva.udf import digest as _digest
from geneva.udf import pickling
from geneva.udf.retry import Retry
from geneva.udf.signature import Container, Signature, UdfKind, read_signature

Instances = Literal["applier", "thread"]
_UNSET = "\0unset"


# No slots: a UDF carries the function's __name__, __doc__ and __wrapped__, as a decorator's
# result should. No equality but identity: parameters need not be comparable.
@dataclass(frozen=True, eq=False, repr=False)
class UDF:
    """A function of a row or of a batch, with all that is needed to run it elsewhere.

    Made by `udf`; stays callable like the function that it was made of.

    Attributes
    ----------
    name
        Name for people; the function's or class's own unless given.
    kind, container
        What one call takes: Python values, or arrays in which form.
    data_type
        Arrow type of the results.
    input_columns
        Columns, or paths such as ``meta.lang``, in the order of the parameters.
    batch_size
        Rows per call, or ``None`` to let the engine choose.
    num_cpus, num_gpus, memory, runtime_env
        Resources of one applier, in Ray's units (`memory` in bytes).
    params
        Declared parameters: keyword arguments of a function, constructor arguments of a class.
    stateful
        Whether `instantiate` builds an object of the user's class.
    """

    target: Callable[..., Any]
    name: str
    kind: UdfKind
    container: Container
    data_type: pa.DataType
    input_columns: tuple[str, ...]
    batch_size: int | None = None
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory: int | None = None
    runtime_env: Mapping[str, Any] | None = None
    retry: Retry | None = None
    instances: Instances = "applier"
    version: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    stateful: bool = False
    reads_own_output: bool = False
    _digests: dict[str, str] = field(default_factory=dict)
    _reference: str | None = _UNSET

    def __post_init__(self) -> None:
        """Look like the function that this was made of."""
        look = {name: getattr(self.target, name, None) for name in functools.WRAPPER_ASSIGNMENTS}
        self.__dict__.update({name: value for name, value in look.items() if value is not None})
        self.__dict__["__wrapped__"] = self.target

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, or the object of a stateful UDF, which is built at the first call."""
        if self.stateful:
            return self._own_instance()(*args, **kwargs)
        if not self.params:
            return self.target(*args, **kwargs)
        given = inspect.signature(self.target).bind_partial(*args, **kwargs).arguments
        rest = {name: value for name, value in self.params.items() if name not in given}
        return self.target(*args, **(rest | kwargs))

    def __repr__(self) -> str:
        """Show name, inputs and type."""
        return f"UDF({self.name}({', '.join(self.input_columns)}) -> {self.data_type})"

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what the UDF is; computed once, and carried through pickling."""
        if "all" not in self._digests:
            self._digests["all"] = _digest.complete(self, self.code_digest)
        return self._digests["all"]

    @property
    def code_digest(self) -> str:
        """The part of `digest` that does not depend on parameters and type."""
        if "code" not in self._digests:
            self._digests["code"] = _digest.of_code(self)
        return self._digests["code"]

    @property
    def reference(self) -> str | None:
        """``module:qualname`` that imports back to this, or ``None`` if nothing does."""
        if self._reference == _UNSET:
            object.__setattr__(self, "_reference", _find_reference(self))
        return self._reference

    def with_params(self, overrides: Mapping[str, Any]) -> UDF:
        """Return the same UDF with other values for declared parameters, and so another digest.

        Raises
        ------
        SettingError
            If a name was not declared; the message lists those that were.
        """
        unknown = [name for name in overrides if name not in self.params]
        if unknown:
            raise SettingError(
                f"UDF {self.name!r} has no params {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(map(repr, self.params)) or 'none'}"
            )
        # The code's digest is taken over, because its source may not be at hand here.
        return replace(
            self,
            params={**self.params, **overrides},
            _digests={"code": self.code_digest},
            _reference=self.reference,
        )

    def instantiate(self) -> Callable[..., Any]:
        """Return a callable that takes just the columns; builds the user's class if stateful."""
        if self.stateful:
            bound = inspect.signature(self.target).bind_partial()
            bound.arguments.update(self.params)
            return self.target(*bound.args, **bound.kwargs)  # type: ignore[no-any-return]
        if not self.params:
            return self.target
        return _with_keywords(self.target, self.params)

    def dumps(self) -> bytes:
        """Pickle the UDF with the user's modules by value.

        Raises
        ------
        UdfError
            If something in it cannot be pickled; the message names it.
        """
        return pickling.dumps(self)

    @staticmethod
    def loads(data: bytes) -> UDF:
        """Return the UDF that `dumps` pickled.

        Raises
        ------
        UdfError
            If the bytes come from another minor version of Python, or need what is not here.
        """
        return pickling.loads(data, UDF)

    def _own_instance(self) -> Callable[..., Any]:
        if "_built" not in self.__dict__:
            with _BUILD_LOCK:
                if "_built" not in self.__dict__:
                    self.__dict__["_built"] = self.instantiate()
        return self.__dict__["_built"]  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        """Fix digest and reference before leaving; leave the built object behind."""
        # Taken here, because neither can be found again where the source is not.
        _ = self.digest, self.reference
        return {name: value for name, value in self.__dict__.items() if name != "_built"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore past the freeze."""
        self.__dict__.update(state)


_BUILD_LOCK = threading.RLock()


class UdfFactory:
    """A class decorated with `udf`: calling it with constructor arguments gives a `UDF`.

    The class itself is built on the worker only. Its other attributes are reachable here.
    """

    def __init__(self, cls: type, settings: Mapping[str, Any], scope: Mapping[str, Any]) -> None:
        self.cls = cls
        self._settings = dict(settings)
        self._scope = dict(scope)
        self.__name__, self.__qualname__ = cls.__name__, cls.__qualname__
        self.__module__, self.__doc__ = cls.__module__, cls.__doc__
        self._signature = _read(_name_of(cls, settings), cls, {}, scope)
        _check_type(_name_of(cls, settings), settings.get("data_type"), self._signature)

    def __call__(self, *args: Any, **kwargs: Any) -> UDF:
        """Remember the constructor's arguments; nothing is built."""
        defaults = dict(self._settings.get("params") or {})
        signature = inspect.signature(self.cls)
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
            rest = {name: value for name, value in defaults.items() if name not in given}
            bound = signature.bind(*args, **(rest | kwargs))
        except TypeError as error:
            raise UdfError(f"{self.__qualname__}{signature}: {error}") from error
        bound.apply_defaults()
        settings = self._settings | {"params": dict(bound.arguments)}
        return _make(self.cls, settings, self._signature, stateful=True)

    def __getattr__(self, name: str) -> Any:
        """Give the class's own attributes, so that its methods may name it as usual."""
        if name.startswith("__") or "cls" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.cls, name)

    def __repr__(self) -> str:
        """Show the class's name."""
        return f"UdfFactory({self.__qualname__})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave the local names behind: they were read already."""
        return self.__dict__ | {"_scope": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore without asking the class for attributes."""
        self.__dict__.update(state)


@overload
def udf(target: type, /) -> UdfFactory: ...
@overload
def udf(target: Callable[..., Any], /, **settings: Any) -> UDF: ...
@overload
def udf(target: None = None, /, **settings: Any) -> Callable[[Any], Any]: ...


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
    runtime_env: Mapping[str, Any] | None = None,
    retry: Retry | None = None,
    instances: Instances = "applier",
    version: str | None = None,
    params: Mapping[str, Any] | None = None,
    name: str | None = None,
    reads_own_output: bool = False,
) -> Any:
    """Declare a function, an async function or a class as a UDF.

    Parameters
    ----------
    data_type
        Arrow type of the results; needed where the hints do not give one.
    input_columns
        Columns, or paths such as ``meta.lang``, one per parameter and in their order. Default:
        the names of the parameters that are not in `params`.
    batch_size
        Rows per call of a batch UDF.
    num_cpus, num_gpus, memory, runtime_env
        What one applier reserves, in Ray's terms (`memory` in bytes).
    retry
        Whether to repeat failing calls.
    instances
        One object of a stateful UDF per ``"applier"`` process, or per ``"thread"``.
    version
        What the UDF is, in place of its source: change it to have values computed anew.
    params
        Parameters that are settings, with their values; a backfill may override them.
    reads_own_output
        Allow the column that the UDF fills to be among its inputs.

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
    _check_settings(settings)
    frame = inspect.currentframe()
    scope = frame.f_back.f_locals if frame and frame.f_back else {}
    if target is None:
        return lambda function: _declare(function, settings, scope)
    return _declare(target, settings, scope)


def as_udf(thing: Any) -> UDF:
    """Return the UDF that a UDF, a factory without arguments or a plain callable stands for."""
    if isinstance(thing, UDF):
        return thing
    declared = thing if isinstance(thing, UdfFactory) else _declare(thing, {}, {})
    return declared() if isinstance(declared, UdfFactory) else declared


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
    columns = _columns(name, settings.pop("input_columns", None), signature)
    data_type = _check_type(name, settings.pop("data_type", None), signature)
    settings.pop("name", None)
    return UDF(
        target=target,
        name=name,
        kind=signature.kind,
        container=signature.container,
        data_type=data_type,
        input_columns=columns,
        stateful=stateful,
        **settings | {"params": dict(settings.get("params") or {})},
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
            raise UdfError(
                f"UDF {name!r} takes a pa.RecordBatch, so its columns must be named: "
                '@udf(input_columns=["text", "meta.lang"])'
            )
        given = signature.columns
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


def _check_settings(settings: Mapping[str, Any]) -> None:
    size, memory = settings["batch_size"], settings["memory"]
    for key, value in (("batch_size", size), ("memory", memory)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise SettingError(f"@udf({key}=) is a whole number of at least 1, not {value!r}")
    for key in ("num_cpus", "num_gpus"):
        value = settings[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise SettingError(f"@udf({key}=) is a number of at least 0, not {value!r}")
    if settings["instances"] not in {"applier", "thread"}:
        raise SettingError(
            f'@udf(instances=) is "applier" or "thread", not {settings["instances"]!r}'
        )
    if settings["retry"] is not None and not isinstance(settings["retry"], Retry):
        raise SettingError(f"@udf(retry=) is a Retry(...), not {settings['retry']!r}")
    for key in ("params", "runtime_env"):
        if settings[key] is not None and not isinstance(settings[key], Mapping):
            raise SettingError(f"@udf({key}=) is a mapping, not {settings[key]!r}")
    for key in ("version", "name"):
        if settings[key] is not None and not (isinstance(settings[key], str) and settings[key]):
            raise SettingError(f"@udf({key}=) is a text, not {settings[key]!r}")


def _with_keywords(target: Callable[..., Any], params: Mapping[str, Any]) -> Callable[..., Any]:
    """Bind the parameters by name, so that the columns can be passed by position."""
    parameters = inspect.signature(target).parameters.values()
    columns = [p for p in parameters if p.name not in params]
    leading = list(parameters)[: len(columns)]
    if columns == leading and all(p.kind is not p.KEYWORD_ONLY for p in columns):
        return functools.partial(target, **params)
    names = [p.name for p in columns]

    def by_name(*values: Any) -> Any:
        return target(**dict(zip(names, values, strict=False)), **params)

    return by_name


def _find_reference(udf: UDF) -> str | None:
    module_name = getattr(udf.target, "__module__", None)
    module = sys.modules.get(module_name or "")
    if module is None or module_name == "__main__" or getattr(module, "__spec__", None) is None:
        return None
    for name, value in list(vars(module).items()):
        if value is udf:
            return f"{module_name}:{name}"
    qualname = getattr(udf.target, "__qualname__", "<locals>")
    if "<" in qualname:
        return None
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    target = found.cls if isinstance(found, UdfFactory) else getattr(found, "target", None)
    return f"{module_name}:{qualname}" if target is udf.target else None
