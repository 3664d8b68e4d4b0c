"""Whether the settings of a declaration make sense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from geneva.errors import SettingError
from geneva.udf.retry import Retry, checked_rules


def seconds_of(length: Any) -> float | None:
    """Return a length of time above 0 in seconds; ``None`` for anything else."""
    value = length.total_seconds() if isinstance(length, timedelta) else length
    return float(value) if _is_number(value, int | float) and value > 0 else None


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `SettingError` for the first setting of ``@udf`` whose value makes no sense."""
    for key in ("batch_size", "memory"):
        _require(
            settings, key, "a whole number of at least 1", lambda v: _is_number(v, int) and v >= 1
        )
    for key in ("num_cpus", "num_gpus"):
        _require(
            settings, key, "a number of at least 0", lambda v: _is_number(v, int | float) and v >= 0
        )
    _require(
        settings,
        "resources",
        "a mapping of names that Ray does not know itself to numbers above 0",
        lambda v: isinstance(v, Mapping) and all(_is_resource(*i) for i in v.items()),
    )
    _require(settings, "instances", '"applier" or "thread"', lambda v: v in ("applier", "thread"))
    _require(settings, "retry", "a Retry(...)", lambda v: isinstance(v, Retry))
    if settings["on_error"] is not None:
        checked_rules(settings["on_error"])
        if settings["retry"] is not None:
            raise SettingError("@udf(retry=) is short for on_error=[Retry(...)]; give one of them")
    _require(
        settings,
        "timeout",
        "a number of seconds above 0, or a timedelta",
        lambda v: seconds_of(v) is not None,
    )
    for key in ("params", "runtime_env"):
        _require(settings, key, "a mapping", lambda v: isinstance(v, Mapping))
    _require(
        settings,
        "field_metadata",
        "a mapping of texts to texts, of which none is Geneva's own",
        lambda v: isinstance(v, Mapping) and all(map(_is_note, v.items())),
    )
    for key in ("version", "name"):
        _require(settings, key, "a text", lambda v: isinstance(v, str) and bool(v))


def _is_note(item: tuple[Any, Any]) -> bool:
    return all(isinstance(part, str) for part in item) and not item[0].startswith("geneva")


def _require(
    settings: Mapping[str, Any], key: str, what: str, is_right: Callable[[Any], bool]
) -> None:
    value = settings[key]
    if (value is not None or key in _NEEDED) and not is_right(value):
        raise SettingError(f"@udf({key}=) is {what}, not {value!r}")


_NEEDED = {"num_cpus", "num_gpus", "instances"}


def _is_resource(name: Any, amount: Any) -> bool:
    own = isinstance(name, str) and name not in ("", "CPU", "GPU", "memory")
    return own and _is_number(amount, int | float) and amount > 0


def _is_number(value: Any, kinds: Any) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
