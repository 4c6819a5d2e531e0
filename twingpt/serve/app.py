"""The application: the OpenAI routes, what the page reads, and the page."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from twingpt import __version__
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.serve import api
from twingpt.serve.headers import TOLD
from twingpt.serve.pages import Page, load_pages
from twingpt.serve.refusals import RefusalError, refuse
from twingpt.serve.request_log import RequestLog, current_request
from twingpt.serve.run_view import MetricsChunk
from twingpt.serve.security import Access, Guard, error_body
from twingpt.serve.service import Service

logger = logging.getLogger(__name__)


def create_app(service: Service, access: Access) -> FastAPI:
    """The service over HTTP. Its worker is stopped when the application ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.worker.stop)

    app = FastAPI(
        title="twingpt",
        version=__version__,
        description="One model, trained from scratch, behind the OpenAI API.",
        lifespan=lifespan,
        # Their pages load scripts from outside hosts; the schema stays at /openapi.json.
        docs_url=None,
        redoc_url=None,
    )
    app.state.worker = service.worker
    app.add_middleware(Guard, access=access)
    if access.origins:
        # Outside of Guard, so that a page that may ask can also read why it is refused.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=TOLD,
        )
    app.add_middleware(RequestLog)
    app.include_router(api.routes(service))
    _add_run_routes(app, service)
    _add_page_routes(app, load_pages())
    _add_error_handlers(app)
    return app


def _add_run_routes(app: FastAPI, service: Service) -> None:
    @app.get("/api/run", tags=["page"])
    def run() -> dict[str, Any]:
        """The model, the server's load, and how the run was set up."""
        return service.describe()

    @app.get("/api/metrics", tags=["page"], responses={400: api.REFUSALS[400]})
    def metrics(
        file: Annotated[str, Query(max_length=64)] = "", offset: Annotated[int, Query(ge=0, le=2**53)] = 0
    ) -> MetricsChunk:
        """What metrics.jsonl has gained since `offset` of `file`, both from the answer before; none at first."""
        return service.view.metrics(file, offset)

    @app.get("/health", tags=["OpenAI"], responses={503: api.REFUSALS[503]})
    async def health() -> dict[str, str]:
        """Whether requests are answered, for those who watch over it; asks for no key."""
        if not service.worker.ready and service.worker.loading is None:
            raise RefusalError(503, service.worker.problem, "no_model", retry_after=10)
        return {"status": "ok"}

    @app.post("/api/reload", tags=["page"], responses={status: api.REFUSALS[status] for status in (400, 503)})
    async def reload() -> dict[str, Any]:
        """Load the newest checkpoint, once the answers under way are complete."""
        try:
            # Shielded, since the worker goes on loading when nobody waits for it any more.
            await asyncio.shield(asyncio.wrap_future(service.worker.reload()))
        except TwinGPTError as error:
            raise RefusalError(503, error.problem, "reload_failed") from None
        return {"loaded_step": service.describe()["loaded_step"]}


def _add_page_routes(app: FastAPI, pages: dict[str, Page]) -> None:
    def answer(name: str, request: Request) -> Response:
        page = pages.get(name)
        if page is None:
            raise HTTPException(404, "Not Found")
        headers = {"etag": page.etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == page.etag:
            return Response(status_code=304, headers=headers)
        return Response(page.content, media_type=page.type, headers=headers)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return answer("index.html", request)

    @app.get("/static/{name:path}", include_in_schema=False)
    async def static(name: str, request: Request) -> Response:
        return answer(name, request)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RefusalError)
    async def refusal(_: Request, error: RefusalError) -> JSONResponse:
        return error.response()

    @app.exception_handler(TwinGPTError)
    async def mistake(_: Request, error: TwinGPTError) -> JSONResponse:
        return refuse(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # Where and what, but never what was sent: it may be long, and need not be text.
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = first["msg"].removeprefix("Value error, ")
        if where and not message.startswith(where):
            message = f"{where}: {message}"
        return JSONResponse(error_body(message, "invalid_request_error", "invalid_request", where or None), 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(
            error_body(message, "invalid_request_error", str(error.status_code)),
            error.status_code,
            headers=error.headers,
        )

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        logger.error("%s failed", current_request(), exc_info=error)
        return JSONResponse(error_body(tr("the server failed; its terminal says how"), "server_error", "internal"), 500)
