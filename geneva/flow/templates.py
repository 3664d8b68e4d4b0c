"""Templates in a flow: ``{{ name }}`` filled in from parameters, in a sandbox.

A text that is one ``{{ ... }}`` and nothing else keeps the type of its value. Names that are not
there are errors; so is what would take unbounded memory or time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

from geneva.errors import FlowError

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

_ALONE = re.compile(r"\{\{((?:(?!\{\{|\}\}).)*)\}\}", re.DOTALL)
_LONGEST = 100_000  # characters of a template and of what it becomes


def is_template(value: object) -> bool:
    """Say whether a value is a text with something to fill in."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def render(value: object, names: Mapping[str, object]) -> Any:
    """Fill in a template, or every template in a list or a mapping; other values stay.

    Raises
    ------
    FlowError
        The template does not parse, names what is not there, or becomes too large.
    """
    if isinstance(value, Mapping):
        return {key: render(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [render(item, names) for item in value]
    return _render_text(value, names) if isinstance(value, str) and is_template(value) else value


def _render_text(text: str, names: Mapping[str, object]) -> object:
    from jinja2 import TemplateError, UndefinedError

    if len(text) > _LONGEST:
        raise FlowError(f"a template of {len(text)} characters is longer than {_LONGEST}")
    environment = _environment()
    try:
        if alone := _ALONE.fullmatch(text.strip()):
            made = environment.compile_expression(alone[1], undefined_to_none=False)(**names)
            if environment.undefined and isinstance(made, environment.undefined):
                str(made)  # StrictUndefined raises, with the name
            return made
        made = environment.from_string(text).render(**names)
    except UndefinedError as error:
        known = ", ".join(sorted(names)) or "none"
        raise FlowError(f"{text!r}: {error.message}; the names here are {known}") from None
    except TemplateError as error:
        raise FlowError(f"{text!r} is no template: {error}") from None
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise FlowError(f"{text!r}: {type(error).__name__}: {error}") from None
    if len(made) > _LONGEST:
        raise FlowError(f"{text!r} becomes {len(made)} characters; at most {_LONGEST} are allowed")
    return made


@functools.cache
def _environment() -> SandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import SandboxedEnvironment

    class Bounded(SandboxedEnvironment):
        """A sandbox in which no operator can make something huge."""

        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and not (_small(left, 10**6) and _small(right, 64)):
                raise SecurityError(f"{left!r:.20} ** {right!r:.20} may be too large")
            if operator == "*" and any(isinstance(x, str | list | tuple) for x in (left, right)):
                size = len(left) * right if isinstance(right, int) else len(right) * left
                if size > _LONGEST:
                    raise SecurityError(f"a repetition of {size} items is too large")
            return super().call_binop(context, operator, left, right)

    made = Bounded(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    made.finalize = _text_of
    return made


def _text_of(value: object) -> object:
    """Return the text of a value within a template: dates as ISO 8601, others as JSON."""
    if isinstance(value, datetime):
        return value.isoformat()
    return value.isoformat() if isinstance(value, date) else value


def _small(value: object, most: int) -> bool:
    return isinstance(value, int | float) and abs(value) <= most


def truth(value: object, names: Mapping[str, object]) -> bool:
    """Evaluate a condition: a boolean, or the text true or false in any case.

    Raises
    ------
    FlowError
        It is neither.
    """
    made = render(value, names)
    if isinstance(made, bool):
        return made
    if isinstance(made, str) and made.strip().lower() in ("true", "false"):
        return made.strip().lower() == "true"
    raise FlowError(f"the condition {value!r} is {made!r}, neither true nor false")
