"""The server on a socket, until Ctrl-C."""

import asyncio
import logging
import math
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr
from twingpt.serve.worker import Worker

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30.0
"""For what is being written when the server ends; then each answer is told so, and LAST_WORDS_SECONDS later cut off."""

LAST_WORDS_SECONDS = 5
MAX_CONNECTIONS = 1024
BACKLOG = 512
KEEP_ALIVE_SECONDS = 65
"""Longer than clients keep an idle connection: if the server closed first, a request could meet a closing one."""

SILENT_SECONDS = 65.0
MAX_IDLE = 512
"""Connections on which nothing is answered. One more takes the place of the one that was silent for the longest."""


class HTTPProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Closes a connection on which no request came for SILENT_SECONDS, or only a part of one, or for less than that
    where there are too many of them.

    uvicorn's own limit begins when the first has been answered, so that silent connections could take all there are,
    and who opens them again as they are closed would hold them for good.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._make_room()
        super().connection_made(transport)
        self._seen: Any = None
        self._since = self.loop.time()
        self._look_again()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self) -> None:
        silent = [one for one in self.connections if one.idle and not one.transport.is_closing()]
        if len(silent) >= MAX_IDLE:
            # Those that never asked for anything go first.
            min(silent, key=lambda one: (one.cycle is not None, one._since)).transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(SILENT_SECONDS, self._look)

    def _look(self) -> None:
        if self.idle and self.cycle is self._seen:
            self.transport.close()
            return
        self._seen = self.cycle
        self._look_again()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises TwinGPTError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        # From here on whoever connects waits until the model is loaded, and is not turned away.
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise TwinGPTError(
            tr(
                "{host}:{port} cannot be served ({reason}): give another --port or --host",
                host=host,
                port=port,
                reason=os_reason(error),
            )
        ) from None
    return listening


class Server(uvicorn.Server):
    """Finishes what is being written before it ends, for GRACE_SECONDS; a second Ctrl-C ends it at once."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        load = self._worker.load
        if under_way := load.active + load.waiting:
            logger.info(
                tr("finishing %d answers, for at most %.0f s; Ctrl-C again ends at once"), under_way, GRACE_SECONDS
            )
        # Streams then end with an error event, and not in the middle of a line.
        timer = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._worker.close)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def configured(app: FastAPI) -> Server:
    config = uvicorn.Config(
        app,
        http=HTTPProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(GRACE_SECONDS) + LAST_WORDS_SECONDS,
    )
    return Server(config, app.state.worker)


def serve_forever(app: FastAPI, listening: socket.socket) -> None:
    """Returns after an orderly end; Ctrl-C raises KeyboardInterrupt as everywhere."""
    configured(app).run(sockets=[listening])
