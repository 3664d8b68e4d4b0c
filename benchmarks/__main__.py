"""``python -m benchmarks [names] [--quick] [--out FILE]``: ask the questions, print one table."""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from benchmarks import plots
from benchmarks.measure import Answer, Scale

QUESTIONS = (
    "roofline",
    "throughput",
    "peers",
    "vectors",
    "where",
    "fragments",
    "scale",
    "noop",
    "checkpoints",
    "concurrency",
    "appliers",
    "skew",
    "resume",
    "startup",
    "memory",
    "service",
    "windows",
)

_BY_NAME = ("gpu",)  # what most machines cannot answer
_NOT_ASKED = "COULD NOT BE ASKED"


def main() -> int:
    """Ask, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", help=f"of {', '.join(QUESTIONS)}; all by default, or gpu"
    )
    parser.add_argument("--quick", action="store_true", help="small data, to try the code out")
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds per question")
    parser.add_argument(
        "--out",
        type=Path,
        help="also write table and plots: a Markdown file, with pictures beside it",
    )
    arguments = parser.parse_args()
    names = arguments.names or list(QUESTIONS)
    known = (*QUESTIONS, *_BY_NAME)
    if unknown := [n for n in names if n not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
    scale = Scale(arguments.quick, arguments.rounds)
    answers: list[tuple[str, Answer]] = []
    started = time.monotonic()
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = [(name, a) for a in _ask(name, scale)]
        print("\n".join(list(_table(found))[2:]), file=sys.stderr, flush=True)
        answers += found
    minutes = (time.monotonic() - started) / 60
    text = "\n".join(_table(answers))
    print(f"\n{text}\n\n{_verdict(answers)} ({minutes:.1f} minutes)")
    if arguments.out:
        drawn = plots.draw([c for _, a in answers for c in a.curves], arguments.out.parent)
        arguments.out.write_text(_page(answers, scale, minutes, drawn))
    return int(_broken(answers) > 0)


def _ask(name: str, scale: Scale) -> list[Answer]:
    """A question that breaks is an answer too: it must not hide the others."""
    try:
        return list(importlib.import_module(f"benchmarks.{name}").run(scale))
    except Exception as error:
        traceback.print_exc()
        return [Answer(name, "", f"{_NOT_ASKED}: {type(error).__name__}", None, str(error))]


def _met(answer: Answer) -> str:
    return {True: "met", False: "MISSED", None: ""}[answer.met]


def _table(answers: Sequence[tuple[str, Answer]]) -> Iterator[str]:
    head = ("question", "bar", "figure", "")
    rows = [head, *((a.question, a.bar, a.figure, _met(a)) for _, a in answers)]
    widths = [max(len(r[k]) for r in rows) for k in range(len(head))]
    for k, row in enumerate(rows):
        yield "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        if not k:
            yield "  ".join("-" * w for w in widths)


def _verdict(answers: Sequence[tuple[str, Answer]]) -> str:
    judged = [a for _, a in answers if a.met is not None]
    broken = _broken(answers)
    met = f"{sum(bool(a.met) for a in judged)} of {len(judged)} bars met"
    return f"{met}; {broken} questions could not be asked" if broken else met


def _broken(answers: Sequence[tuple[str, Answer]]) -> int:
    return sum(_NOT_ASKED in a.figure for _, a in answers)


def _left_out(asked: Set[str]) -> str:
    names = [n for n in QUESTIONS if n not in asked]
    return f" Not asked in this run: {', '.join(names)}." if names else ""


def _page(
    answers: Sequence[tuple[str, Answer]],
    scale: Scale,
    minutes: float,
    drawn: Sequence[tuple[str, str]],
) -> str:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; do not edit. R is the roofline loop (`benchmarks/roofline.py`): "
        "scan, x*2, one column file per fragment, one commit, in one thread and with nothing "
        "else. Sides of a comparison alternate; figures are medians of their rounds in one run. "
        "Checkpoints are on and Ray is warm unless the question says otherwise.",
        "",
        f"{today}, {_machine()}, {_versions()}; {scale.rounds} rounds, {minutes:.1f} minutes"
        f"{'; **quick: small data, figures mean little**' if scale.quick else ''}. "
        f"**{_verdict(answers)}.**{_left_out({name for name, _ in answers})}",
        "",
        "| question | bar | figure | |",
        "|---|---|---|---|",
        *(f"| {a.question} | {a.bar} | {a.figure} | {_bold(_met(a))} |" for _, a in answers),
        "",
        *(f"![{title}]({file})" for title, file in drawn),
        "",
        "## Behind the figures",
        "",
        *(f"- **{a.question}** (`{name}.py`): {a.details}" for name, a in answers if a.details),
        "",
    ]
    return "\n".join(lines)


def _bold(text: str) -> str:
    return f"**{text}**" if text == "MISSED" else text


def _machine() -> str:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {gib:.0f} GiB, "
        f"load {load:.1f} at the end, Python {platform.python_version()}"
    )


def _versions() -> str:
    from importlib.metadata import version

    return ", ".join(f"{p} {version(p)}" for p in ("lancedb", "pylance", "pyarrow", "ray"))


if __name__ == "__main__":
    sys.exit(main())
