"""Check the arguments of a backfill before anything starts."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from typing import Any

from geneva.errors import SettingError
from geneva.types import Options

_POSITIVE = (
    "concurrency",
    "intra_applier_concurrency",
    "num_frags",
    "commit_granularity",
    "batch_size",
    "checkpoint_size",
)
_CHOICES = {
    "on_error": ("fail", "null"),
    "unverified": ("trust", "recompute"),
    "foreign": ("keep", "recompute"),
    "inputs": ("wait", "as_is"),
}


def chosen_options(names: dict[str, Any]) -> dict[str, Any]:
    """Return the options among a function's local names."""
    return {f.name: names[f.name] for f in dataclass_fields(Options)}


def with_defaults(defaults: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Fill in a function's keyword defaults.

    Raises
    ------
    SettingError
        One argument is unknown.
    """
    known = _keywords(defaults)
    refuse_unknown(defaults, {k: v for k, v in arguments.items() if k not in known})
    return known | arguments


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
    for name in _POSITIVE:
        value = chosen.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise SettingError(f"{name}={value!r} must be a whole number")
        if value is not None and value < 1:
            raise SettingError(f"{name}={value} must be at least 1")
    for name in ("concurrency", "intra_applier_concurrency", "commit_granularity"):
        if chosen.get(name, 1) is None:
            raise SettingError(f"{name}=None must be a whole number")
    for name in ("force", "retry_failed", "include_new"):
        if not isinstance(chosen.get(name, False), bool):
            raise SettingError(f"{name}={chosen[name]!r} must be True or False")
    for name, choices in _CHOICES.items():
        if chosen.get(name, choices[0]) not in choices:
            listed = " or ".join(repr(c) for c in choices)
            raise SettingError(f"{name}={chosen[name]!r} is unknown; choose {listed}")
    for name in ("timeout", "resource_timeout", "max_failures"):
        value = chosen.get(name)
        if value is not None and (not isinstance(value, int | float) or value < 0):
            raise SettingError(f"{name}={value!r} must be a number that is not negative")
    if chosen.get("where") is not None and not isinstance(chosen["where"], str):
        raise SettingError(f"where={chosen['where']!r} must be SQL text")
    if chosen.get("max_failures") is not None and chosen.get("on_error") != "null":
        raise SettingError("max_failures counts the failures that on_error='null' records; set it")
    return Options(**chosen)
