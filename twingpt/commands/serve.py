"""`twingpt serve`: a run behind the OpenAI API, and the page."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from twingpt.commands.options import AnyBackend
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import tr


def serve(
    run: Annotated[
        Path,
        typer.Argument(help="A run's folder, also of one that is still training; or one checkpoint.", metavar="RUN"),
    ],
    backend: AnyBackend = None,
    device: Annotated[
        Literal["auto", "gpu", "cpu"], typer.Option(help="auto: Metal, else CUDA, else the CPU.")
    ] = "auto",
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this computer only with --api-key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on. 0: any free one.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="TWINGPT_API_KEY",
            help="Key that every request must carry: Authorization: Bearer KEY.",
            show_default="none",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name that this server is reached by.", metavar="NAME")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Another program in a browser that may ask, such as app://obsidian.md; '*' with --api-key: every one.",
            metavar="ORIGIN",
        ),
    ] = None,
    slots: Annotated[int, typer.Option(help="Answers written side by side.", min=1, max=1024)] = 8,
    queue: Annotated[int, typer.Option(help="Requests that may wait for a slot.", min=0)] = 128,
    max_tokens: Annotated[
        int, typer.Option(help="Longest answer that a request may ask for, in tokens.", min=1)
    ] = 1024,
    timeout: Annotated[float, typer.Option(help="Seconds from a request to its last token.", min=1)] = 600.0,
    max_body: Annotated[int, typer.Option(help="Largest request, in KiB.", min=1)] = 1024,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Answer questions over the OpenAI API and on a page, and show the run as it trains."""
    from twingpt.core.engines import find_engine
    from twingpt.serve.service import Limits, open_service, require_packages

    require_packages()
    from rich.console import Console

    from twingpt.serve.app import create_app
    from twingpt.serve.request_log import log_to_terminal
    from twingpt.serve.security import Access, allowed_hosts, allowed_origins, is_loopback
    from twingpt.serve.server import bind, serve_forever

    if api_key is not None and not api_key.strip():
        raise UsageError(tr("--api-key is empty"))
    if not is_loopback(host) and api_key is None:
        raise UsageError(
            tr(
                "--host {host} can be reached from other computers: give --api-key (or TWINGPT_API_KEY), "
                "or listen on 127.0.0.1",
                host=host,
            )
        )
    origins = allowed_origins(allow_origin or (), api_key)
    listening = bind(host, port)
    limits = Limits(max_tokens=max_tokens, max_waiting=queue, seconds=timeout)
    try:
        service = open_service(run, backend, device, slots=slots, limits=limits)
    except TwinGPTError:
        listening.close()
        raise
    access = Access(
        hosts=allowed_hosts(host, allow_host or ()),
        origins=origins,
        api_key=api_key and api_key.strip(),
        max_body=max_body * 1024,
    )
    console = Console()
    shown = f"[{host}]" if ":" in host else host
    base = f"http://{shown}:{listening.getsockname()[1]}"
    model = service.model.loaded
    what = tr("no checkpoint yet")
    if model is not None:
        what = tr(
            "step {step}, {title} on {device}",
            step=model.step,
            title=find_engine(model.engine.name).title,
            device=model.engine.device,
        )
    console.print(f"{service.name}: {what}", markup=False, highlight=False)
    console.print(tr("page    {base}/", base=base), markup=False, highlight=False)
    console.print(
        tr("API     {base}/v1   (model {service!r})", base=base, service=service.name), markup=False, highlight=False
    )
    if not is_loopback(host):
        console.print(
            tr("warning: HTTP is not encrypted: beyond a network you trust, put a TLS proxy in front"), markup=False
        )
    console.print(tr("Ctrl-C ends it"), highlight=False)
    if open_page:
        import webbrowser

        # It is listening already: a browser that is quicker than the server waits.
        webbrowser.open(f"{base}/")
    log_to_terminal()
    serve_forever(create_app(service, access), listening)
