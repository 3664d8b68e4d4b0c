"""A driver: the process that carries out one job, for as long as its lease lasts.

It runs the ordinary backfill. Neither the service nor whoever submitted the job takes it down.
Its environment, which appliers inherit and UDFs see, names its claim and holds no secret: what else
the scheduler tells it comes by a pipe.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from geneva.appliers.prints import keep_prints
from geneva.engine.control import Control, Wanted
from geneva.engine.process import end_marked, this_process
from geneva.errors import GenevaError, LeaseLostError, ServiceError
from geneva.jobs.backfills import Backfill
from geneva.jobs.run_outcome import error_state
from geneva.jobs.store.leases import Leases
from geneva.jobs.store.models import JobRow
from geneva.jobs.store.opening import open_store
from geneva.jobs.store.queue import QueueClaim
from geneva.jobs.store.store_recorder import LEASE_S, StoreRecorder
from geneva.model.types import JobState, Progress
from geneva.service.handover import Orders
from geneva.service.logs import DRIVER, JobLog, Printer, bounded
from geneva.service.opened_tables import Databases
from geneva.service.service_settings import DRIVER_CLAIM

_LOG = logging.getLogger("geneva.driver")


def main() -> int:
    """Carry out the job that the environment names; return the exit code."""
    keep_prints()  # before a handler takes the streams as they are
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.simplefilter("default")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C of a terminal is for the service
    job_id, _, epoch = os.environ[DRIVER_CLAIM].rpartition(":")
    claim = QueueClaim(job_id, int(epoch))
    orders = Orders.receive()
    store = open_store(orders.url)
    leases = Leases(store.database)
    try:
        job = leases.attach(claim, this_process(), LEASE_S)
    except LeaseLostError as error:
        _LOG.info("%s", error)
        return 3
    _LOG.info("job %s, driver %s: %s of %s", job.id, claim.epoch, job.columns, job.table_uri)
    folder = Path(orders.logs)

    def leave() -> None:
        _LOG.info("stopped, as was wanted, before the first task")
        with contextlib.suppress(ServiceError):  # untold, it is found gone all the same
            leases.stop(claim, Progress(job.id, tuple(job.columns), JobState.STARTING))
        _exit(0)

    if Wanted(job.wanted) is not Wanted.RUN:
        leave()
    keep = Printer(folder)
    recorder = StoreRecorder(store, claim, scheduled=True, keep=keep, leave=leave)
    with bounded(JobLog(folder, DRIVER)):
        return _drive(recorder, job, Databases(tuple(orders.allowed)))


def _drive(recorder: StoreRecorder, job: JobRow, databases: Databases) -> int:
    control = Control(job.id, tuple(job.columns), None)
    control.report(replace(control.progress, reason="loading the table and the UDF"))

    def begin() -> Backfill:
        table = databases.table(job.db, job.table, job.ray)
        return table.prepare_backfill(job.columns, job.arguments, job.id)

    try:
        _LOG.info("%s", recorder.carry_out(control, begin))
    except LeaseLostError as error:
        _LOG.warning("%s", error)
        return 3
    except BaseException as error:
        if recorder.lost:
            _LOG.warning("another driver has the job: %s", error)
            return 3
        if error_state(error) is JobState.CANCELLED:
            _LOG.info("%s", error)
            return 0
        _LOG.error("the backfill ended: %s", error, exc_info=not isinstance(error, GenevaError))
        return 1
    return 0


def _exit(code: int) -> NoReturn:
    """End this process with its own Ray, or leave the cluster that it was connected to.

    Ray takes more than a second to end its processes politely, and whoever paused or cancelled the
    job waits for that. Nothing is in their hands by now, so those that are known are killed.
    """
    logging.shutdown()
    sys.stdout.flush()
    if not end_marked(DRIVER_CLAIM, os.environ[DRIVER_CLAIM]):
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            ray.shutdown()
    os._exit(code)  # threads that are stuck in a UDF end with the process


if __name__ == "__main__":
    _exit(main())
