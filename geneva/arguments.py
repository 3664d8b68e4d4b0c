"""Check the arguments of a backfill before anything starts."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from datetime import timedelta
from typing import Any

from geneva.appliers.executor import Executor
from geneva.appliers.threads import LocalExecutor
from geneva.column.auto import Auto, read_auto
from geneva.errors import SettingError
from geneva.interrupts import uninterrupted
from geneva.model.types import Options

_POSITIVE = (
    "concurrency",
    "intra_applier_concurrency",
    "num_frags",
    "commit_granularity",
    "batch_size",
    "checkpoint_size",
)
_SWITCHES = ("force", "retry_failed", "include_new")
_AMOUNTS = ("timeout", "resource_timeout", "max_failures")
_OPTIONAL = (
    *("where", "num_frags", "batch_size", "checkpoint_size", "timeout", "max_failures"),
    "fragments",
)
_CHOICES = {
    "on_error": ("fail", "null"),
    "unverified": ("trust", "recompute"),
    "foreign": ("keep", "recompute"),
    "inputs": ("wait", "as_is"),
    "order": ("forward", "backward"),
}


def chosen_options(names: dict[str, Any]) -> dict[str, Any]:
    """Return the options among a function's local names."""
    return _in_seconds({f.name: names[f.name] for f in dataclass_fields(Options)})


def _in_seconds(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with lengths of time as numbers, which can be written down."""
    return {
        name: value.total_seconds() if isinstance(value, timedelta) else value
        for name, value in arguments.items()
    }


def with_defaults(defaults: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Fill in a function's keyword defaults.

    Raises
    ------
    SettingError
        One argument is unknown.
    """
    known = _keywords(defaults)
    refuse_unknown(defaults, {k: v for k, v in arguments.items() if k not in known})
    return known | _in_seconds(arguments)


def refuse_unknown(function: Callable[..., Any], unknown: Mapping[str, Any]) -> None:
    """Refuse arguments that a function does not have, and say which it has.

    Raises
    ------
    SettingError
        There is one.
    """
    for name in sorted(unknown):
        known = list(_keywords(function))
        close = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise SettingError(f"unknown argument {name!r}.{hint} Arguments: {', '.join(known)}")


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def checked_options(arguments: Mapping[str, Any]) -> Options:
    """Check values.

    Raises
    ------
    SettingError
        One makes no sense.
    """
    names = {f.name for f in dataclass_fields(Options)}
    chosen = {k: v for k, v in arguments.items() if k in names}
    if chosen.get("only") is not None:
        chosen["only"] = _checked_rows(chosen["only"])
    for name, value in chosen.items():
        _check_value(name, value)
    if chosen.get("max_failures") is not None and chosen.get("on_error") != "null":
        raise SettingError("max_failures counts the failures that on_error='null' records; set it")
    if chosen.get("fragments") is not None:
        if chosen.get("include_new"):
            raise SettingError("fragments limits the call to what is there; leave out include_new")
        chosen["fragments"] = tuple(sorted(set(chosen["fragments"])))
    return Options(**chosen)


def _check_value(name: str, value: Any) -> None:
    if value is None and name in _OPTIONAL:
        return
    if name in _POSITIVE:
        if isinstance(value, bool) or not isinstance(value, int):
            raise SettingError(f"{name}={value!r} must be a whole number")
        if value < 1:
            raise SettingError(f"{name}={value} must be at least 1")
    elif name in _SWITCHES and not isinstance(value, bool):
        raise SettingError(f"{name}={value!r} must be True or False")
    elif name in _CHOICES and value not in _CHOICES[name]:
        listed = " or ".join(repr(c) for c in _CHOICES[name])
        raise SettingError(f"{name}={value!r} is unknown; choose {listed}")
    elif name in _AMOUNTS and not (_is_number(value) and value >= 0):
        raise SettingError(f"{name}={value!r} must be a number that is not negative")
    elif name == "where" and not isinstance(value, str):
        raise SettingError(f"where={value!r} must be SQL text")
    elif name == "fragments" and not _are_ids(value):
        raise SettingError(f"fragments={value!r} must be a list of fragment ids, such as [0, 3]")


def check_executor_name(executor: Any) -> None:
    """Refuse an executor that a job which runs elsewhere cannot have.

    Raises
    ------
    SettingError
        It is not one of the known names.
    """
    if executor not in (None, "ray", "local"):
        raise SettingError(f"executor={executor!r} is unknown; choose 'ray' or 'local'")


def checked_auto(
    given: bool | str | Mapping[str, Any] | None, defaults: Callable[..., Any]
) -> Auto | None:
    """Read what a user gives as ``auto_backfill``, and check the arguments of its jobs.

    Raises
    ------
    SettingError
        It makes no sense.
    """
    if given is None:
        return None
    auto = read_auto(given)
    if "progress" in auto.arguments:
        raise SettingError("'progress' is no argument of a job that runs elsewhere")
    chosen = with_defaults(defaults, dict(auto.arguments))
    check_executor_name(chosen["executor"])
    checked_options(chosen)
    return auto


def _are_ids(value: Any) -> bool:
    listed = isinstance(value, list | tuple) and len(value) > 0
    return listed and all(type(i) is int and i >= 0 for i in value)


def _checked_rows(only: Any) -> tuple[tuple[int, int, int], ...]:
    """Return ``only`` as tuples; what came through JSON holds lists."""
    listed = isinstance(only, Sequence) and not isinstance(only, str)
    for item in only if listed else [only]:
        fits = isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 3
        if not listed or not fits or any(type(n) is not int or n < 0 for n in item):
            raise SettingError(
                f"only={item!r} must be a list of (fragment, start, stop): physical rows, half-open"
            )
    return tuple((f, start, stop) for f, start, stop in only)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def chosen_executor(
    executor: str | Executor | None, options: Options, ray: Mapping[str, Any]
) -> Executor:
    """Return the executor that the user asked for; ``ray`` is for ``ray.init``."""
    if executor == "local":
        return LocalExecutor()
    if executor is None or executor == "ray":
        with uninterrupted():  # of the import, which takes seconds
            from geneva.appliers.ray.actors import RayExecutor

        return RayExecutor(ray, options.resource_timeout)
    if isinstance(executor, str):
        raise SettingError(f"executor={executor!r} is unknown; choose 'ray' or 'local'")
    return executor
