"""The watchdog of a Celery worker: one that takes no tasks any more ends itself, so that it is started again.

Seen with Redis as the broker: a consumer that doesn't consume after a reconnect, an embedded scheduler that has died, a
worker that stops after an error of its transport and never gets to its end. Tasks that hang are not its business: their
time limits end them.
"""

import logging
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import billiard
from celery import Celery
from celery.bootsteps import CLOSE, TERMINATE  # type: ignore[attr-defined]
from celery.worker import state
from django.conf import settings
from kombu import Connection

from config.workerhealth import Pulse

logger = logging.getLogger(__name__)

CHECKS = 20  # in the time after which a worker counts as stuck
PROBE = "config.probe"
LIMIT_MARGIN = 10.0  # seconds from a task's time limit to its process's end
STUCK = "No task has finished for %.0f s although the broker answers: the worker ends to be started again"
GAVE_UP = "The worker stops by itself and doesn't come to an end (%.0f s): it is ended to be started again"


def _is_stopping() -> bool:
    """Whether this worker was told to stop: it takes nothing new and may finish what it has begun."""
    asked = [getattr(state, name) for name in ("should_stop", "should_terminate")]  # an exit status when it was
    return any(status is not None and status is not False for status in asked)


class Watchdog:
    """Watches one worker from a thread of its main process.

    Args:
        app: the Celery application.
        worker: its `WorkController`.
        pulse: when it last finished a task.
    """

    def __init__(self, app: Celery, worker: Any, pulse: Pulse) -> None:
        self._app = app
        self._worker = worker
        self._pulse = pulse
        self._broker: Connection | None = None
        self._patience = 2.0 * settings.WORKER_STUCK_SECONDS

    def start(self) -> None:
        """Watch from now on."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        """Count the time in which tasks could have finished and none did.

        With the broker out of reach it begins anew: a worker needs its time to connect again. Time in which this
        process itself stood still counts as one pause.
        """
        stuck, pause, ending = 0.0, self._patience / CHECKS, 0.0
        seen = self._last()
        while stuck < self._patience:
            time.sleep(pause)
            ending = ending + pause if self._gave_up() else 0.0
            if ending > pause:
                self._end(GAVE_UP, ending)
            last = self._last()
            if last != seen or _is_stopping() or self._is_busy() or not self._broker_answers():
                seen, stuck = last, 0.0
                continue
            stuck += pause
            if stuck >= self._patience / 2 and not self._has_scheduler():
                self._probe()
        self._end(STUCK, stuck)

    def _gave_up(self) -> bool:
        """Whether it stops and nobody asked: Celery does after an error that it can't recover from."""
        return self._worker.blueprint.state in {CLOSE, TERMINATE} and not _is_stopping()

    def _last(self) -> float:
        """A worker with the scheduler inside must finish periodic tasks; another isn't to blame for a scheduler."""
        return self._pulse.last(periodic=self._has_scheduler())

    def _has_scheduler(self) -> bool:
        return getattr(self._worker, "beat", None) is not None

    def _is_busy(self) -> bool:
        """Whether every process of the pool works on a task that is within its time limit."""
        try:
            running = [request for request in tuple(state.active_requests) if request.time_start]
        except RuntimeError:  # it changed while we looked, so something happens
            return True
        now = time.time()
        within = [one for one in running if now - one.time_start < (one.task.time_limit or 0) + LIMIT_MARGIN]
        return len(within) >= int(self._worker.concurrency)

    def _broker_answers(self) -> bool:
        """PING over a connection of our own."""
        try:
            if self._broker is None:
                self._broker = self._app.connection_for_write()
                self._broker.ensure_connection(max_retries=1, timeout=5)
            self._broker.default_channel.client.ping()  # type: ignore[attr-defined]
        except Exception as exc:  # whatever the transport raises
            logger.debug("The broker doesn't answer the watchdog (%s)", type(exc).__name__)
            self._let_go()
            return False
        return True

    def _let_go(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            with suppress(Exception):
                broker.release()

    def _probe(self) -> None:
        """Send a task that does nothing: where the scheduler runs elsewhere, there may just have been none."""
        with suppress(Exception):
            self._app.send_task(PROBE, connection=self._broker, expires=self._patience, retry=False)

    def _end(self, text: str, seconds: float) -> None:
        logger.error(text, seconds)
        for child in billiard.active_children():
            if child.pid is not None:
                with suppress(OSError):
                    os.kill(child.pid, signal.SIGKILL)
        os._exit(os.EX_SOFTWARE)
