"""What an applier reserves, and what makes one fit for another job."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from geneva.storage.lance import TableStorage
from geneva.udf import UDF


def udf_names(pickled: Mapping[str, bytes]) -> dict[str, str]:
    """Name the UDF of each column by what it is; two columns of equal UDFs have one each.

    A column that was dropped and bound anew finds its UDF warm, with the model that it loaded.
    """
    seen: Counter[str] = Counter()
    names = {}
    for column, data in pickled.items():
        digest = hashlib.sha256(data).hexdigest()
        names[column] = f"{digest}.{seen[digest]}"
        seen[digest] += 1
    return names


def applier_key(storage: TableStorage, names: Collection[str], udf: UDF) -> str:
    """Return what appliers must share to take over each other's jobs."""
    what = [
        storage.uri,
        sorted((storage.options or {}).items()),
        udf.runtime_env,
        reservation(udf),
        udf.memory,
        sorted(names),
    ]
    text = json.dumps(what, default=repr, sort_keys=True)
    return hashlib.sha256(text.encode() + repr(type(storage)).encode()).hexdigest()


def actor_options(udf: UDF) -> dict[str, Any]:
    """Return what Ray is told of an applier."""
    options = {
        "num_cpus": udf.num_cpus,
        "num_gpus": udf.num_gpus,
        "memory": udf.memory,
        "resources": dict(udf.resources) if udf.resources else None,
        "runtime_env": udf.runtime_env,
    }
    return {k: v for k, v in options.items() if v is not None}


def lacking(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> str:
    """Return why none of some nodes can ever hold an applier, or an empty text.

    Parameters
    ----------
    nodes, needs
        What each node has and what an applier reserves, as Ray names it.
    """
    if any(all(n.get(r, 0.0) >= v for r, v in needs.items()) for n in nodes):
        return ""
    most = {r: max((n.get(r, 0.0) for n in nodes), default=0.0) for r in needs}
    short = [
        f"{v:g} {r} (the largest node has {most[r]:g})" for r, v in needs.items() if most[r] < v
    ]
    wanted = ", ".join(short) or "the combination of " + ", ".join(
        f"{v:g} {r}" for r, v in needs.items()
    )
    return f"no node of the Ray cluster can hold an applier: the UDF asks for {wanted}"


def slots(nodes: Sequence[Mapping[str, float]], needs: Mapping[str, float]) -> int:
    """Return how many appliers with these needs some nodes hold in all."""
    return sum(int(min(has.get(r, 0.0) // n for r, n in needs.items())) for has in nodes)


def reservation(udf: UDF) -> dict[str, float]:
    """Return the resources of one applier, as Ray names them."""
    needs = {"CPU": float(udf.num_cpus), "GPU": float(udf.num_gpus)}
    needs |= {"memory": float(udf.memory or 0)}
    needs |= {k: float(v) for k, v in (udf.resources or {}).items()}
    return {k: v for k, v in needs.items() if v} or {"CPU": 0.001}
