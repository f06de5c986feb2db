"""Errors of the service as JSON: `{"error": "a sentence"}`, in one line and of a length that a person reads."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from models.errors import UserError
from retrieval.service.answering import UnknownItem

_UNREADABLE, _NOT_FOUND, _NOT_ALLOWED, _UNPROCESSABLE = 400, 404, 405, 422
#: letters of a sentence, and of the name of a field in it: clients may send long ones
_LONGEST, _LONGEST_NAME = 500, 60
#: where pydantic's sentence speaks of Python, or says nothing
_SENTENCES = {
    "extra_forbidden": "there is no such field; see /openapi.json",
    "missing": "this is missing; see /openapi.json",
    "model_attributes_type": "the body is to be a JSON object, sent as application/json",
    "string_unicode": "this is no text in Unicode",
}


def answer_errors(app: FastAPI) -> None:
    """Answer what goes wrong in `app`: 404 for an unknown item or path, 422 for a question that has no answer."""
    for kind, handler in ((UserError, _user_error), (RequestValidationError, _invalid), (HTTPException, _http_error)):
        app.add_exception_handler(kind, handler)


def _error(status: int, sentence: str) -> JSONResponse:
    line = " ".join("".join(each if each.isprintable() else " " for each in sentence).split())
    return JSONResponse({"error": _cut(line, _LONGEST)}, status)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


async def _user_error(request: Request, error: Exception) -> JSONResponse:
    del request
    return _error(_NOT_FOUND if isinstance(error, UnknownItem) else _UNPROCESSABLE, str(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        return _error(_UNPROCESSABLE, f"the body is not JSON: {first['ctx']['error']}")
    names = [str(part) for part in first["loc"][1:] if not isinstance(part, int)]
    place = _cut(".".join(names), _LONGEST_NAME) or "the request"
    more = f" ({len(others)} more are wrong)" if others else ""
    return _error(_UNPROCESSABLE, f"{place}: {_sentence(first)}{more}")


def _sentence(found: dict[str, Any]) -> str:
    return _SENTENCES.get(found["type"]) or str(found["msg"]).removeprefix("Value error, ")


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == _NOT_FOUND:
        return _error(_NOT_FOUND, f"there is nothing at {_cut(request.url.path, 100)}; see /openapi.json")
    if error.status_code == _NOT_ALLOWED:
        return _error(_NOT_ALLOWED, f"{request.url.path} is not for {_cut(request.method, 20)}; see /openapi.json")
    if error.status_code == _UNREADABLE:  # neither bytes of Unicode, nor numbers and depths that can be read
        return _error(_UNPROCESSABLE, "the body is not JSON that can be read")
    return _error(error.status_code, str(error.detail))
