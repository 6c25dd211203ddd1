"""The thread that sends, so that training never waits for a tracking server."""

from __future__ import annotations

import logging
import threading

from moram_dist.redaction import clean_address, without_secrets
from moram_dist.tracking.names import text
from moram_dist.tracking.replay import MlflowReplay

logger = logging.getLogger(__name__)

SEND_EVERY_S = 2.0
"""Seconds for which points of curves are gathered into one request."""

LONGEST_PAUSE_S = 60.0
"""Seconds between two tries while a server is away; they grow up to here."""


class Sender:
    """Sends a run's spools again and again until ``close``.

    Every exception counts as an outage: a server can fail in many ways, none is worth the training
    run, and what it refuses today it may take once it is mended. A warning says when one begins,
    and when it is over.
    """

    def __init__(self, replay: MlflowReplay) -> None:
        self._replay = replay
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._failed = False
        # A daemon: a request that hangs must not keep the process from leaving.
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Send what is left, for at most ``timeout_s``. Whether the store now has everything."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._replay.complete()

    def _run(self) -> None:
        pause = SEND_EVERY_S
        while True:
            last = self._closing.is_set()  # looked at first: what was spooled before it is sent
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
            "MLflow at %s does not take what it is sent; training continues, and all is kept "
            "and sent once it does: %s",
            clean_address(self._replay.uri),
            text(without_secrets(reason), 300),
        )

    def _answers(self) -> None:
        if self._failed:
            logger.warning("MLflow at %s has caught up", clean_address(self._replay.uri))
        self._failed = False
