"""How often and how patiently a failing call is tried again."""

from __future__ import annotations

from dataclasses import dataclass

from geneva.errors import SettingError


@dataclass(frozen=True, slots=True)
class Retry:
    """Try a failing call again, with its inputs as the table holds them.

    Parameters
    ----------
    attempts
        Calls in total, the first one included.
    wait, backoff, max_wait
        Seconds before the second call; the factor by which each further wait grows; its limit.
    on
        Exception types worth another attempt; any other fails at once.

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
    wait: float = 1.0
    on: tuple[type[BaseException], ...] = (Exception,)
    backoff: float = 2.0
    max_wait: float = 60.0

    def __post_init__(self) -> None:
        """Refuse values that make no sense; accept one type in place of a tuple."""
        if isinstance(self.on, type):
            object.__setattr__(self, "on", (self.on,))
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
        ):
            # `not >=` also refuses NaN.
            if not isinstance(value, int | float) or not value >= least:
                raise SettingError(f"Retry({name}=) is a number of at least {least}, not {value!r}")
        if not isinstance(self.on, tuple) or not self.on:
            raise SettingError(f"Retry(on=) is a tuple of exception types, not {self.on!r}")
        for kind in self.on:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise SettingError(f"Retry(on=) takes subclasses of Exception, not {kind!r}")

    def waits_s(self) -> tuple[float, ...]:
        """Return the seconds to wait before each further call."""
        waits, wait = [], float(self.wait)
        for _ in range(self.attempts - 1):
            waits.append(min(wait, float(self.max_wait)))
            wait = min(wait * self.backoff, float(self.max_wait))
        return tuple(waits)
