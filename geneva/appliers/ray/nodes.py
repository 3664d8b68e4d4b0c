"""Print the resources of the nodes that appliers would run on: a program of its own.

A service asks it at a submit, so that Ray is never in the service's own process:
``python -m geneva.appliers.ray.nodes '{"address": "..."}'`` prints
``{"nodes": [...], "grows": ...}``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from geneva.appliers.ray.actors import start_ray
from geneva.appliers.ray.cluster import autoscaling, host_resources, nodes


def report(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resources of each node, and whether there may be more of them later.

    Parameters
    ----------
    options
        For ``ray.init``. Without an address they are those of a Ray that is to be started here.
    """
    address = options.get("address") or os.environ.get("RAY_ADDRESS")
    if address in (None, "local"):
        return {"nodes": [host_resources(options)], "grows": False}
    start_ray({"address": address, "log_to_driver": False})
    return {"nodes": nodes(), "grows": autoscaling()}


if __name__ == "__main__":
    print(json.dumps(report(json.loads(sys.argv[1]))))
