"""UDFs of program text."""

from __future__ import annotations

import ast
import contextlib
import warnings

import geneva

# Threads that parse at the same time may disturb each other: where one is interrupted by the
# garbage collector, "AST constructor recursion depth mismatch" (Python 3.11.7, its gh-106905).
_ATTEMPTS = 50


@geneva.udf(params={"python": None})
def function_count(source: str | None, python: str | None = None) -> int | None:
    r"""Count the functions and methods that a Python source defines.

    Fails on what cannot be parsed (templates, other versions' syntax): give the backfill
    ``on_error="null"`` to store null there and list those rows.

    Parameters
    ----------
    source
        A whole module.
    python
        Accept the syntax of this version only, such as ``"3.7"``, as far as Python's parser
        knows it; ``None`` for the running one.

    Returns
    -------
    int
        ``None`` for ``None``.

    Raises
    ------
    SyntaxError
        It is not Python, or not that Python.

    Examples
    --------
    >>> function_count("def f(): pass\nclass C:\n    async def g(self): pass\n")
    2
    >>> function_count("print 'hello'")
    Traceback (most recent call last):
    SyntaxError: Missing parentheses in call to 'print'. Did you mean print(...)?
    >>> function_count("if (n := 1): pass", python="3.7")
    Traceback (most recent call last):
    SyntaxError: Assignment expressions are only supported in Python 3.8 and greater
    """
    if source is None:
        return None
    accepted = tuple(map(int, python.split("."))) if python is not None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parsed source, not of this program
        tree = _parsed(source, accepted)
    return sum(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(tree))


def _parsed(source: str, accepted: tuple[int, ...] | None) -> ast.AST:
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(SystemError):
            return ast.parse(source, feature_version=accepted)  # type: ignore[arg-type]
    return ast.parse(source, feature_version=accepted)  # type: ignore[arg-type]
