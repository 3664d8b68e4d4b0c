"""The rules for a call that fails, tried in order."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Literal, assert_never

from geneva.errors import SettingError

Kinds = type[BaseException] | str | tuple[type[BaseException] | str, ...]
_JITTER = 0.5  # of waits that grow by themselves: those who failed together do not come back so


@dataclass(frozen=True, slots=True)
class Retry:
    """Try a failing call again, with its inputs as the table holds them.

    Parameters
    ----------
    attempts
        Calls in total, the first one included.
    wait, backoff, max_wait
        Seconds before the second call, or ``"exponential"`` (1 s, twice as long each time, with
        jitter); the factor by which each further wait grows; its limit.
    on
        Exception types worth another attempt, or their names; any other is for the next rule.
    match
        Regular expression that is to be found in the exception's text.
    jitter
        Part of each wait, from 0 to 1, by which it is made shorter or longer at random.

    Raises
    ------
    SettingError
        If a value makes no sense.

    Examples
    --------
    >>> Retry(attempts=4, wait=1.0, backoff=3.0, max_wait=5.0).waits_s()
    (1.0, 3.0, 5.0)
    """

    attempts: int = 3
    wait: float | Literal["exponential"] = 1.0
    on: Kinds = (Exception,)
    backoff: float = 2.0
    max_wait: float = 60.0
    match: str | None = None
    jitter: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that make no sense; accept one type in place of a tuple."""
        if self.jitter is None:
            object.__setattr__(self, "jitter", _JITTER if self.wait == "exponential" else 0.0)
        if self.wait == "exponential":
            object.__setattr__(self, "wait", 1.0)
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int):
            raise SettingError(f"Retry(attempts=) is a whole number, not {self.attempts!r}")
        if self.attempts < 1:
            raise SettingError(
                f"Retry(attempts=) counts all calls: at least 1, not {self.attempts}"
            )
        for name, value, least in (
            ("wait", self.wait, 0.0),
            ("backoff", self.backoff, 1.0),
            ("max_wait", self.max_wait, 0.0),
            ("jitter", self.jitter, 0.0),
        ):
            # `not >=` also refuses NaN.
            if not isinstance(value, int | float) or not value >= least:
                raise SettingError(f"Retry({name}=) is a number of at least {least}, not {value!r}")
        if self.jitter is not None and self.jitter > 1:
            raise SettingError(
                f"Retry(jitter=) is a part of the wait: at most 1, not {self.jitter}"
            )
        _check_match(self)

    def __setstate__(self, state: Sequence[Any]) -> None:
        """Restore; pickles of earlier versions hold the first five values."""
        for part, value in zip(fields(self), (*state, None, 0.0), strict=False):
            object.__setattr__(self, part.name, value)

    def waits_s(self) -> tuple[float, ...]:
        """Return the seconds to wait before each further call, before they are jittered."""
        waits, wait = [], float(self.wait)
        for _ in range(self.attempts - 1):
            waits.append(min(wait, float(self.max_wait)))
            wait = min(wait * self.backoff, float(self.max_wait))
        return tuple(waits)


@dataclass(frozen=True, slots=True)
class Skip:
    """Store null for a row that fails so, and record it as failed, whatever the call says.

    Parameters
    ----------
    on
        Exception types, or their names.
    match
        Regular expression that is to be found in the exception's text.

    Raises
    ------
    SettingError
        If a value makes no sense.

    Examples
    --------
    >>> Skip(on=ValueError, match="corrupt").match
    'corrupt'
    """

    on: Kinds = (Exception,)
    match: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that make no sense; accept one type in place of a tuple."""
        _check_match(self)


@dataclass(frozen=True, slots=True)
class Fail:
    """Stop the job at a row that fails so, whatever the call says.

    Parameters
    ----------
    on
        Exception types, or their names.
    match
        Regular expression that is to be found in the exception's text.

    Raises
    ------
    SettingError
        If a value makes no sense.

    Examples
    --------
    >>> Fail(on="AuthenticationError").on
    ('AuthenticationError',)
    """

    on: Kinds = (Exception,)
    match: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that make no sense; accept one type in place of a tuple."""
        _check_match(self)


Rule = Retry | Skip | Fail


class RetryVerdict(StrEnum):
    """The fate of a row that failed for good."""

    SKIP = "skip"
    FAIL = "fail"
    AS_CALLED = "as called"


class Course:
    """The course of the rules over the errors of one row or batch."""

    __slots__ = ("_repeats", "_rules")

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._repeats = [0] * len(rules)

    def next(self, error: BaseException) -> float | RetryVerdict:
        """Return the seconds to wait before the next call, or the fate of the row."""
        for k, rule in enumerate(self._rules):
            if not applies(rule, error):
                continue
            match rule:
                case Skip():
                    return RetryVerdict.SKIP
                case Fail():
                    return RetryVerdict.FAIL
                case Retry():
                    waits = rule.waits_s()
                    if self._repeats[k] < len(waits):
                        self._repeats[k] += 1
                        return _jittered(waits[self._repeats[k] - 1], rule.jitter or 0.0)
                case unknown:
                    assert_never(unknown)
        return RetryVerdict.AS_CALLED


def applies(rule: Rule, error: BaseException) -> bool:
    """Whether a rule is about an error."""
    kinds: Any = rule.on
    if not any(_is_a(error, kind) for kind in kinds):
        return False
    if rule.match is None:
        return True
    try:
        return re.search(rule.match, str(error)) is not None
    except Exception:  # of its own text
        return False


def checked_rules(given: Any) -> tuple[Rule, ...]:
    """Return the argument of ``@udf(on_error=)`` as rules.

    Raises
    ------
    SettingError
        It is something else.
    """
    rules = (given,) if isinstance(given, Rule) else given
    listed = isinstance(rules, list | tuple)
    if not listed or not all(isinstance(rule, Rule) for rule in rules):
        raise SettingError(f"@udf(on_error=) is a list of Retry, Skip and Fail, not {given!r}")
    return tuple(rules)


def _is_a(error: BaseException, kind: type[BaseException] | str) -> bool:
    if not isinstance(kind, str):
        return isinstance(error, kind)
    names = ((c.__name__, f"{c.__module__}.{c.__qualname__}") for c in type(error).__mro__)
    return any(kind in both for both in names)


def _jittered(wait_s: float, jitter: float) -> float:
    return wait_s * (1 + jitter * random.uniform(-1, 1)) if jitter else wait_s


def _check_match(rule: Rule) -> None:
    name = type(rule).__name__
    if isinstance(rule.on, type | str):
        object.__setattr__(rule, "on", (rule.on,))
    if not isinstance(rule.on, tuple) or not rule.on:
        raise SettingError(f"{name}(on=) is a tuple of exception types, not {rule.on!r}")
    for kind in rule.on:
        named = isinstance(kind, str) and bool(kind)
        if not named and not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise SettingError(f"{name}(on=) takes subclasses of Exception, not {kind!r}")
    if rule.match is not None:
        try:
            re.compile(rule.match)
        except (re.error, TypeError) as error:
            raise SettingError(
                f"{name}(match=) is a regular expression, not {rule.match!r}: {error}"
            ) from error
