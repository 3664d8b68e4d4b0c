"""The process of one job of a flow: ``python -m geneva.jobs.flows.entry``.

1. Its first line of input is the work: a function with its arguments, or a command.
2. Its input stays open while its flow lives. When that ends, the job ends: a flow that was killed
   leaves nothing behind that writes.
3. An exception is written into the report, so that a failure is told from a death.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from geneva.errors import FlowError
from geneva.flow.reports import PLACE, log


def main() -> int:
    """Do the work; return the exit code."""
    work = pickle.loads(bytes.fromhex(sys.stdin.readline()))  # of the flow that started this
    threading.Thread(target=_leave_with_the_flow, daemon=True).start()
    if "command" in work:
        return subprocess.run(work["command"], cwd=work["folder"], check=False).returncode
    try:
        _report(_function(work["call"])(**work["inputs"]))
    except BaseException as error:
        traceback.print_exc()
        _failed(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _leave_with_the_flow() -> None:
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def _function(call: str) -> Any:
    module, _, name = call.partition(":")
    sys.path.insert(0, os.getcwd())
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _report(result: object) -> None:
    if isinstance(result, Mapping):
        log(outputs=result)
    elif result is not None:
        log(outputs={"result": result})


def _failed(text: str) -> None:
    with open(os.environ[PLACE], "a", encoding="utf-8") as file:
        file.write(json.dumps({"failure": {"text": text}}) + "\n")


if __name__ == "__main__":
    try:
        code = main()
    except FlowError as error:
        print(error, file=sys.stderr)
        code = 1
    sys.exit(code)
