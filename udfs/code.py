"""UDFs of program text."""

from __future__ import annotations

import ast
import warnings

import geneva


@geneva.udf
def function_count(source: str | None) -> int | None:
    r"""Count the functions and methods that a Python source defines.

    Fails on what this Python cannot parse (templates, sources of Python 2): give the backfill
    ``on_error="null"`` to store null there and list those rows.

    Parameters
    ----------
    source
        A whole module.

    Returns
    -------
    int
        ``None`` for ``None``.

    Raises
    ------
    SyntaxError
        It is not Python.

    Examples
    --------
    >>> function_count("def f(): pass\nclass C:\n    async def g(self): pass\n")
    2
    >>> function_count("print 'hello'")
    Traceback (most recent call last):
    SyntaxError: Missing parentheses in call to 'print'. Did you mean print(...)?
    """
    if source is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the parsed source, not of this program
        tree = ast.parse(source)
    return sum(isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(tree))
