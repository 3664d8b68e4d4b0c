"""The definition of a declared UDF."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

from geneva.errors import SettingError
from geneva.udf import digest as _digest
from geneva.udf import pickling
from geneva.udf.build import BUILDING, import_ahead
from geneva.udf.retry import Retry, Rule, Skip
from geneva.udf.signature import Container, UdfKind

Instances = Literal["applier", "thread"]
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_UNSET = "\0unset"
_OF_PROCESS = {"_built", "_pickled", "_bound"}
_KEPT_PICKLE_BYTES = 1 << 20


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
    num_cpus, num_gpus, memory, resources, runtime_env
        Resources of one applier, in Ray's units (`memory` in bytes).
    on_error, timeout
        Rules for calls that fail, in order; seconds that one call may take.
    params
        Declared parameters: keyword arguments of a function, constructor arguments of a class.
    row_arrays
        Parameters that take one row's list as a NumPy array; of a batch UDF, if their columns are
        lists.
    files
        Columns of bytes that come as files.
    field_metadata
        Metadata of the column that the UDF's results make.
    stateful
        Whether `instantiate` builds an object of the user's class.
    defaults
        Of input columns that were read from the parameters' names, and need not be columns.
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
    resources: Mapping[str, float] | None = None
    runtime_env: Mapping[str, Any] | None = None
    retry: Retry | None = None
    on_error: tuple[Rule, ...] = ()
    timeout: float | None = None
    instances: Instances = "applier"
    version: str | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    stateful: bool = False
    reads_own_output: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    field_metadata: Mapping[str, str] | None = None
    row_arrays: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
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
        """Hex SHA-256 of the UDF's code and constants; computed once, carried through pickling."""
        if "all" not in self._digests:
            self._digests["all"] = _digest.complete(
                self.name,
                self.code_digest,
                self.data_type,
                self.input_columns,
                self.params,
                versioned=self.version is not None,
            )
        return self._digests["all"]

    @property
    def code_digest(self) -> str:
        """The part of `digest` that does not depend on parameters and type."""
        if "code" not in self._digests:
            self._digests["code"] = (
                _digest.of_code(self.name, self.target, f"{self.kind}:{self.container}")
                if self.version is None
                else _digest.of_version(self.name, self.target, self.version)
            )
        return self._digests["code"]

    def as_of_now(self) -> UDF:
        """Return the same UDF, its digest taken anew unless nothing has changed since it was bound.

        The digest of one that was loaded, with other parameters or not, stays as it was stored.
        """
        if "_pickled" in self.__dict__:
            return self
        bound = self.__dict__.get("_bound")
        if bound is None or bound != hashlib.sha256(self.dumps()).hexdigest():
            self._digests.clear()
            self.__dict__["_bound"] = hashlib.sha256(self.dumps()).hexdigest()
        return self

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules for calls that fail: `on_error`, or `retry` as its short form."""
        return self.on_error or ((self.retry,) if self.retry else ())

    @property
    def skips(self) -> bool:
        """Whether rows may fail and be null, whatever the backfill's ``on_error``."""
        return any(isinstance(rule, Skip) for rule in self.rules)

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
        if unknown and not self.stateful and all(name in self.defaults for name in unknown):
            return self.without(unknown).with_params(overrides)
        if unknown:
            raise SettingError(
                f"UDF {self.name!r} has no params {', '.join(map(repr, unknown))}; "
                f"it has {', '.join(map(repr, self.params)) or 'none'}"
            )
        # The code's digest is taken over, because its source may not be at hand here.
        made = replace(
            self,
            params={**self.params, **overrides},
            _digests={"code": self.code_digest},
            _reference=self.reference,
        )
        if "_pickled" in self.__dict__:
            made.__dict__["_pickled"] = b""
        return made

    def without(self, columns: Sequence[str]) -> UDF:
        """Return the same UDF with these inputs at their defaults, and all others as columns.

        Those of a function become parameters, which a backfill may override; of an object's call
        only the last inputs can be left out.
        """
        rest = tuple(c for c in self.input_columns if c not in columns)
        if not self.defaults or (self.stateful and rest != self.input_columns[: len(rest)]):
            return self
        became = {} if self.stateful else {name: self.defaults[name] for name in columns}
        return replace(
            self,
            input_columns=rest,
            params={**self.params, **became},
            defaults={},
            _digests={"code": self.code_digest},
            _reference=None if self.stateful else self.reference,
        )

    def instantiate(self) -> Callable[..., Any]:
        """Return a callable that takes just the columns; builds the user's class if stateful.

        One at a time in a process, imports included.
        """
        with BUILDING:
            made = self._made()
            import_ahead(made)
        return made

    def _made(self) -> Callable[..., Any]:
        inputs = self.input_columns
        if self.kind is UdfKind.RECORD_BATCH:
            inputs = inputs[:1]  # they come as one
        if self.stateful:
            bound = inspect.signature(self.target).bind_partial()
            bound.arguments.update(self.params)
            made = self.target(*bound.args, **bound.kwargs)
            return _taking(made, inputs, {})
        return _taking(self.target, inputs, self.params)

    def dumps(self) -> bytes:
        """Pickle the UDF with the user's modules by value.

        Raises
        ------
        UdfError
            If something in it cannot be pickled; the message names it.
        """
        kept = self.__dict__.get("_pickled")
        if kept:
            return kept  # type: ignore[no-any-return]
        data = pickling.dumps(self)
        # Of one that was loaded, which is as it was stored. To pickle it for every backfill takes
        # as long as a small one; large ones would be held twice.
        if kept is not None and len(data) <= _KEPT_PICKLE_BYTES:
            self.__dict__["_pickled"] = data
        return data

    @staticmethod
    def loads(data: bytes) -> UDF:
        """Return the UDF that `dumps` pickled.

        Raises
        ------
        UdfError
            If the bytes come from another minor version of Python, or need what is not here.
        """
        udf = pickling.loads(data, UDF)
        # Not these bytes: those of one UDF bound twice may differ; pickled again, they do not.
        udf.__dict__["_pickled"] = b""
        return udf

    def _own_instance(self) -> Callable[..., Any]:
        if "_built" not in self.__dict__:
            with BUILDING:
                if "_built" not in self.__dict__:
                    self.__dict__["_built"] = self.instantiate()
        return self.__dict__["_built"]  # type: ignore[no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        """Fix digest and reference before pickling; leave the state of this process behind."""
        # Taken here, because neither can be found again where the source is not.
        _ = self.digest, self.reference
        return {name: value for name, value in self.__dict__.items() if name not in _OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore past the freeze."""
        self.__dict__.update({"defaults": {}} | state)  # earlier pickles have none


def _taking(
    target: Callable[..., Any], columns: Sequence[str], params: Mapping[str, Any]
) -> Callable[..., Any]:
    """Return a callable that takes the columns by position, and has the parameters bound."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # of one made of native code
        return functools.partial(target, **params) if params else target
    named = [p for p in parameters if p.name not in params and p.kind not in _MANY]
    used = named[: len(columns)]
    by_position = all(p.kind is not p.KEYWORD_ONLY for p in used) and (
        used == list(parameters)[: len(used)] or not params
    )
    takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if by_position and (takes_more or len(columns) <= len(named)):
        return functools.partial(target, **params) if params else target
    names = [p.name for p in used] + list(columns[len(used) :])

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
    # A UDF or a factory of one; a bare function would lack the settings.
    same = getattr(found, "target", None) is udf.target
    return f"{module_name}:{qualname}" if same else None
