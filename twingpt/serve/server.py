"""The server on a socket, until Ctrl-C."""

import asyncio
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from twingpt.core.errors import TwinGPTError

GRACE_SECONDS = 5
MAX_CONNECTIONS = 1024
BACKLOG = 512
KEEP_ALIVE_SECONDS = 65
"""Longer than clients keep an idle connection: if the server closed first, a request could meet a closing one."""

SILENT_SECONDS = 65.0


class HTTPProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Closes a connection on which no request came for SILENT_SECONDS, or only a part of one.

    uvicorn's own limit begins when the first has been answered, so that silent connections could take all there are.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._seen: Any = None
        self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look_again(self) -> None:
        self._timer = self.loop.call_later(SILENT_SECONDS, self._look)

    def _look(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering and self.cycle is self._seen:
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
            f"{host}:{port} cannot be served ({error.strerror or error}): give another --port or --host"
        ) from None
    return listening


def configured(app: FastAPI) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=HTTPProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def serve_forever(app: FastAPI, listening: socket.socket) -> None:
    """Returns after an orderly end; Ctrl-C raises KeyboardInterrupt as everywhere."""
    configured(app).run(sockets=[listening])
