"""The server on a socket, until Ctrl-C."""

import socket

import uvicorn
from fastapi import FastAPI

from twingpt.core.errors import TwinGPTError

GRACE_SECONDS = 5
MAX_CONNECTIONS = 1024
BACKLOG = 512
KEEP_ALIVE_SECONDS = 65
"""Longer than clients keep an idle connection: if the server closed first, a request could meet a closing one."""


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


def serve_forever(app: FastAPI, listening: socket.socket) -> None:
    """Returns after an orderly end; Ctrl-C raises KeyboardInterrupt as everywhere."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listening])
