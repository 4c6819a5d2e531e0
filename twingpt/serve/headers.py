"""What an answer tells beside its body: fields without effect, and a length that was cut to what there is room for."""

from collections.abc import Iterable

IGNORED = "x-twingpt-ignored"
MAX_TOKENS = "x-twingpt-max-tokens"
REQUEST_ID = "x-request-id"
TOLD = (IGNORED, MAX_TOKENS, REQUEST_ID)
"""Those that a web page of another origin may read too."""


def told(ignored: Iterable[str], max_tokens: int | None = None) -> dict[str, str]:
    """max_tokens: how many were given where more were asked for."""
    headers = {IGNORED: ", ".join(ignored)}
    if max_tokens is not None:
        headers[MAX_TOKENS] = str(max_tokens)
    return {name: value for name, value in headers.items() if value}
