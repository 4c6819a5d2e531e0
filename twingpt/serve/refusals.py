"""What a request is refused with, in OpenAI's shape."""

from fastapi.responses import JSONResponse

from twingpt.core.errors import PromptTooLongError, TwinGPTError
from twingpt.serve.security import error_body

TOO_LONG = "context_length_exceeded"
"""The code of every prompt that does not fit, whether its question, its document or its text is too long."""


class RefusalError(Exception):
    """A request that ends in an error of OpenAI's shape."""

    def __init__(self, status: int, message: str, code: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 429 else "server_error"
        return JSONResponse(error_body(str(self), kind, self.code), self.status, headers=self.headers)


def refuse(error: TwinGPTError) -> JSONResponse:
    """A prompt that the tokenizer or the template refuses is the request's mistake."""
    code = TOO_LONG if isinstance(error, PromptTooLongError) else "invalid_prompt"
    return JSONResponse(error_body(error.problem, "invalid_request_error", code), 400)
