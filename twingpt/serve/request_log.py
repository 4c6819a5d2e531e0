"""A line of the log for each request, with the id by which its client, and every other line, names it too."""

import logging
import re
import time
import uuid
from contextvars import ContextVar
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twingpt.serve.headers import REQUEST_ID

logger = logging.getLogger(__name__)

QUIET = ("/static/", "/api/run", "/api/metrics", "/health")
"""What the page and watchers ask for again and again is logged only where it fails."""

_USABLE = re.compile(r"[A-Za-z0-9._:-]{1,100}")
_current: ContextVar[str] = ContextVar("request", default="-")


def current_request() -> str:
    """The id of the request that is being answered; "-" outside of one."""
    return _current.get()


class RequestLog:
    """Gives each request an id, its client's own where that is usable, and logs how the request ended.

    What was asked and answered stands in no line: a log is read by others than those who ask.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request = given if _USABLE.fullmatch(given) else f"req-{uuid.uuid4().hex[:16]}"
        _current.set(request)
        started = time.monotonic()
        status, whole = 0, False

        async def noted(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request
            elif message["type"] == "http.response.body":
                whole = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            path = scope["path"]
            failed = not whole or status >= 400
            if failed or (path != "/" and not path.startswith(QUIET)):
                # Quoted, since a path may hold a line end.
                logger.info(
                    "%s %s %s %s %.3f s%s",
                    request,
                    scope["method"],
                    quote(path)[:200],
                    status or "-",
                    time.monotonic() - started,
                    "" if whole else " (ended early)",
                )


def log_to_terminal() -> None:
    """Lines of the server go to the standard error, each with its time."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    ours = logging.getLogger("twingpt.serve")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
