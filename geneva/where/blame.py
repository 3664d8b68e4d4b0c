"""Which characters of a filter a message speaks of; the parsers give a position only sometimes."""

from __future__ import annotations

import re

_PLACE = re.compile(r"at Line: (\d+), Column: (\d+)")
_AT_END = re.compile(r"found: EOF")
_NAMED = re.compile(r"'([^']+)'|(\w+)\(\)")
_TOKEN = re.compile(r"'(?:[^']|'')*'?|\"[^\"]*\"?|`[^`]*`?|\w+|\S")


def blamed(message: str, text: str) -> tuple[int, int] | None:
    """Return which characters of a filter are wrong, half-open.

    Parameters
    ----------
    message
        What was found wrong: it holds a line and a column, says that the text ended too early,
        or names the column, function or value in quotes.
    text
        The filter.
    """
    if place := _PLACE.search(message):
        return _token_at(text, *(int(n) - 1 for n in place.groups()))
    if _AT_END.search(message):
        end = len(text.rstrip())
        return end, end
    for quoted, called in _NAMED.findall(message):
        name = quoted or called
        for token in _TOKEN.finditer(text):
            if token[0].strip("'\"`").lower() == name.lower():
                return token.span()
    return None


def _token_at(text: str, line: int, column: int) -> tuple[int, int]:
    """Return the token that begins at a place, counted from zero."""
    lines = text.splitlines(keepends=True)[:line]
    start = min(sum(map(len, lines)) + column, len(text))
    token = _TOKEN.match(text, start)
    return token.span() if token else (start, start)
