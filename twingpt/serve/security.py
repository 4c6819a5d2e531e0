"""What stands between a browser or a network and the model: who may ask, from where, and how much at once.

Plain ASGI, since it must leave `receive` usable: only there does a server learn that a client has gone away.
"""

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twingpt.core.errors import UsageError
from twingpt.core.language import tr

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
BODY_SECONDS = 30.0
MAX_READING = 256
"""Bodies that are waited for at one time; beyond it whoever has had the longest is refused."""
GUARDED = ("/v1/", "/api/", "/openapi.json")
"""Where an API key is asked for: the page itself is no secret, and has to ask the user for the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """hosts: names that a Host header may carry (lower case, no port). origins: other pages, and programs in a browser,
    that may ask; "*" is every one. api_key: None asks for none.

    A Host other than these is how a web page reaches a server on the reader's own machine through a name of its own
    (DNS rebinding); an Origin other than the Host is a foreign page's request.
    """

    hosts: frozenset[str]
    origins: frozenset[str] = frozenset()
    api_key: str | None = None
    max_body: int = 1 << 20


def allowed_hosts(bind: str, extra: Iterable[str] = ()) -> frozenset[str]:
    """Host names for a server bound to `bind`. An address that means every interface allows any IP address."""
    return LOOPBACK_NAMES | {bind.lower().strip("[]")} | {name.lower().strip("[]") for name in extra}


def allowed_origins(given: Iterable[str], api_key: str | None) -> frozenset[str]:
    """Origins as browsers send them. Raises UsageError for what is none, and for "*" without a key."""
    origins = frozenset(origin.strip().rstrip("/") for origin in given)
    for origin in origins - {"*"}:
        parts = urlsplit(origin)
        if not parts.scheme or not parts.netloc or parts.path or parts.query or parts.fragment:
            raise UsageError(
                tr(
                    "--allow-origin {origin} is no origin: write it as app://obsidian.md or https://example.org",
                    origin=origin,
                )
            )
    if "*" in origins and api_key is None:
        raise UsageError(tr("--allow-origin '*' lets every web page ask that this computer opens: give --api-key too"))
    return origins


def is_loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, object]:
    """An error in OpenAI's shape. Lone surrogates, which JSON can name and UTF-8 cannot carry, become `?`."""
    plain = message.encode("utf-8", errors="replace").decode("utf-8")
    return {"error": {"message": plain, "type": kind, "param": param, "code": code}}


class Guard:
    """Checks Host, Origin, key and body of every request, and adds the security headers to every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._reading: dict[asyncio.Timeout, None] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websocket is served here
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            body = await self._body(scope, receive)
            if isinstance(body, bytes):
                await self._app(scope, _replay(body, receive), send_with_headers)
                return
            refusal = body
        await _refuse(send_with_headers, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        """(status, code, message) if the headers already say no."""
        headers = Headers(scope=scope)
        host = _host_name(headers.get("host", ""))
        if host is None or not self._host_allowed(host):
            return 403, "host_not_allowed", tr("this server does not go by the name in the Host header")
        origins = headers.getlist("origin")
        invited = len(origins) == 1 and bool(self._access.origins & {"*", origins[0]})
        if origins and not invited and origins != [f"{scope['scheme']}://{headers['host']}"]:
            return 403, "origin_not_allowed", tr("requests from other web pages are refused")
        foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if foreign and not invited and scope["method"] != "GET":
            return 403, "origin_not_allowed", tr("requests from other web pages are refused")
        key = self._access.api_key
        if key is not None and scope["path"].startswith(GUARDED):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), key.encode()):
                return 401, "invalid_api_key", tr("send the server's key: Authorization: Bearer KEY")
        length = headers.get("content-length")
        if length is not None and length.isdecimal() and int(length[:20]) > self._access.max_body:
            return self._too_large()
        return None

    def _host_allowed(self, host: str) -> bool:
        hosts = self._access.hosts
        if host in hosts:
            return True
        # Bound to every interface, a server cannot list its addresses; an address is no name that someone could rebind.
        return bool({"0.0.0.0", "::"} & hosts) and _is_address(host)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | tuple[int, str, str]:
        """The whole body, or why not. Read here, in bounded time and size, before any handler waits for it."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return b""
        chunks: list[bytes] = []
        size = 0
        if len(self._reading) >= MAX_READING:
            next(iter(self._reading)).reschedule(asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(BODY_SECONDS) as patience:
                self._reading[patience] = None
                try:
                    while True:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            return 400, "client_gone", "the request ended early"
                        chunks.append(message.get("body", b""))
                        size += len(chunks[-1])
                        if size > self._access.max_body:
                            return self._too_large()
                        if not message.get("more_body", False):
                            return b"".join(chunks)
                finally:
                    del self._reading[patience]
        except TimeoutError:
            return (
                408,
                "body_too_slow",
                tr("the request body did not arrive within {body_seconds:.0f} s", body_seconds=BODY_SECONDS),
            )

    def _too_large(self) -> tuple[int, str, str]:
        return 413, "body_too_large", tr("a request body may have {max_body:,} bytes", max_body=self._access.max_body)


def _host_name(header: str) -> str | None:
    """The name in a Host header, lower case, without port or brackets; None if it is malformed."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
    except ValueError:
        return None
    if parts.path or parts.query or parts.fragment or "@" in header:
        return None
    return parts.hostname


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and then what the client does next: going away."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    body = json.dumps(error_body(message, kind, code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
