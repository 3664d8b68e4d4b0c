"""What an applier reserves, and what makes one fit for another job."""

from __future__ import annotations

import hashlib
import json

from geneva.storage.lance import TableStorage
from geneva.udf import UDF


def applier_key(storage: TableStorage, pickled: bytes, udf: UDF) -> str:
    """Return what appliers must share to take over each other's jobs."""
    what = [
        storage.uri,
        sorted((storage.options or {}).items()),
        udf.runtime_env,
        reservation(udf),
        udf.memory,
    ]
    text = json.dumps(what, default=repr, sort_keys=True)
    return hashlib.sha256(pickled + text.encode() + repr(type(storage)).encode()).hexdigest()


def reservation(udf: UDF) -> dict[str, float]:
    """Return the resources of one applier, as Ray names them."""
    needs = {"CPU": float(udf.num_cpus), "GPU": float(udf.num_gpus)}
    needs |= {"memory": float(udf.memory or 0)}
    return {k: v for k, v in needs.items() if v} or {"CPU": 0.001}
