"""What the commands take: `geneva.Table.backfill`'s arguments, as options of a shell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from geneva.errors import SettingError

TableName = Annotated[str, typer.Argument(metavar="TABLE", help="Name of the table.")]
Columns = Annotated[list[str], typer.Argument(metavar="COLUMN...", help="Computed columns.")]
Db = Annotated[
    str,
    typer.Option(
        "--db", metavar="URI", envvar="GENEVA_DB", help="A directory, s3://, gs:// or az://."
    ),
]
StorageOptions = Annotated[
    list[str] | None,
    typer.Option("--storage-option", metavar="KEY=VALUE", help="As lancedb takes them; repeat."),
]
RayOptions = Annotated[
    list[str] | None,
    typer.Option("--ray", metavar="KEY=VALUE", help="For ray.init, values as JSON; repeat."),
]
JobsUrl = Annotated[
    str | None,
    typer.Option(
        "--jobs",
        metavar="URL",
        envvar="GENEVA_JOBS",
        help="Record the job in sqlite:///FILE or postgresql://..., or have the service at "
        "http://... carry it out.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Where = Annotated[
    str | None,
    typer.Option(
        metavar="SQL",
        help="Compute the rows for which this is true, also those that hold a value. "
        "Without it: rows that are missing or stale.",
    ),
]
Concurrency = Annotated[int, typer.Option(help="Applier processes; what fits starts at once.")]
IntraApplierConcurrency = Annotated[int, typer.Option(help="UDF calls at once in each applier.")]
NumFrags = Annotated[
    int | None, typer.Option(help="At most so many fragments that need work; the rest later.")
]
CommitGranularity = Annotated[int, typer.Option(help="Fragments per intermediate commit.")]
BatchSize = Annotated[int | None, typer.Option(help="Rows per UDF call; default: measured.")]
CheckpointSize = Annotated[int | None, typer.Option(help="Rows per checkpoint record.")]
OnError = Annotated[
    Literal["fail", "null"],
    typer.Option(help="Stop at the first failing row, or store null and record it."),
]
MaxFailures = Annotated[
    float | None,
    typer.Option(help="With --on-error null: more (a count, or a fraction below 1) stop the job."),
]
Force = Annotated[bool, typer.Option("--force", help="Compute whatever was recorded.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try rows again that failed earlier.")
]
Unverified = Annotated[
    Literal["trust", "recompute"], typer.Option(help="Values whose history is gone.")
]
Foreign = Annotated[
    Literal["keep", "recompute"], typer.Option(help="Values that somebody else wrote.")
]
Inputs = Annotated[
    Literal["wait", "as_is"],
    typer.Option(help="Rows whose computed input is missing or stale: leave them, or pass it."),
]
IncludeNew = Annotated[
    bool, typer.Option("--include-new", help="Also rows that are appended while the job runs.")
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param", metavar="KEY=VALUE", help="Override a parameter of the UDF; JSON; repeat."
    ),
]
Timeout = Annotated[float | None, typer.Option(help="Seconds after which the job stops.")]
ResourceTimeout = Annotated[float, typer.Option(help="Seconds to wait for the first applier.")]
Order = Annotated[
    Literal["forward", "backward"], typer.Option(help="Begin with the oldest or newest fragments.")
]
Fragments = Annotated[
    list[int] | None,
    typer.Option("--fragment", metavar="ID", help="Only this fragment; repeat for several."),
]
ExecutorName = Annotated[
    Literal["ray", "local"], typer.Option(help="Ray actors, or threads of this process.")
]
ShowProgress = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        help="A bar on a terminal, else a line every few seconds. [default: bar on a terminal]",
        show_default=False,
    ),
]


def pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """Read repeated ``KEY=VALUE``."""
    pairs = dict(text.partition("=")[::2] for text in given or ())
    for text in given or ():
        if "=" not in text or text.startswith("="):
            shown = "" if option == "--storage-option" else f" {text!r}"  # it may be a secret
            raise SettingError(f"{option}{shown} is not KEY=VALUE")
    return pairs


def values(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Read values as JSON; what is no JSON is text, so that quotes are rarely needed."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    return {k: value(v) for k, v in pairs(given, option).items()}


_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration_s(text: str) -> float:
    """Read ``7d``, ``12h``, ``30m``, ``90s`` or plain seconds."""
    unit = _UNITS_S.get(text[-1:])
    try:
        seconds = float(text[:-1] if unit else text) * (unit or 1)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise SettingError(f"--older-than {text!r} is no duration; examples: 0, 90s, 30m, 12h, 7d")
    return seconds
