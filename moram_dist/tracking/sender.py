"""A thread that sends records, so that training never waits for a tracking server."""

from __future__ import annotations

import logging
import threading

from moram_dist.redaction import clean_address, without_secrets
from moram_dist.tracking.names import text
from moram_dist.tracking.replay import MlflowReplay

logger = logging.getLogger(__name__)

SEND_EVERY_S = 2.0
"""Seconds during which points of curves are collected into one request."""

LONGEST_PAUSE_S = 60.0
"""Upper limit of the growing pause between two attempts while a server is unreachable."""


class Sender:
    """Sends a run's spools again and again until ``close``.

    Every exception counts as an outage: a server can fail in many ways, none of which may stop
    training, and it may accept the same request after a repair. Warnings report the beginning and
    the end of an outage.
    """

    def __init__(self, replay: MlflowReplay) -> None:
        self._replay = replay
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._failed = False
        # A daemon: a request that hangs must not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Send the rest within ``timeout_s``. Returns whether the store now has everything."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._replay.complete()

    def _run(self) -> None:
        pause = SEND_EVERY_S
        while True:
            last = self._closing.is_set()  # read before sending, so that no record is missed
            try:
                self._replay.send()
            except Exception as error:
                self._away(error)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                self._answers()
                pause = SEND_EVERY_S
            if last:
                return
            self._wake.wait(pause)

    def _away(self, error: Exception) -> None:
        if self._failed:
            return
        self._failed = True
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning(
            "MLflow at %s does not accept data; training continues, and everything is kept and "
            "sent once it does: %s",
            clean_address(self._replay.uri),
            text(without_secrets(reason), 300),
        )

    def _answers(self) -> None:
        if self._failed:
            logger.warning("MLflow at %s has caught up", clean_address(self._replay.uri))
        self._failed = False
