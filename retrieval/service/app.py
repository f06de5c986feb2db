"""The service as an ASGI application: recommendations, similar items and explanations as JSON over HTTP.

Every error is `{"error": "a sentence"}`: 401 without the token, 404 for an unknown item, 413 and 429 beyond the limits,
422 for a question that cannot be answered. Nothing here knows Ray: `cluster.serving` runs it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from retrieval.answers import Answer
from retrieval.recommender import Recommender
from retrieval.service.answering import Answering
from retrieval.service.batcher import Batcher
from retrieval.service.errors import answer_errors
from retrieval.service.guard import Guard, Limits
from retrieval.service.measures import Measures
from retrieval.service.page import whole_page
from retrieval.service.schema import (
    DenoisedFrame,
    ErrorResponse,
    ExplainRequest,
    ExplainResponse,
    FoundResponse,
    Influenced,
    InfluencesRequest,
    InfluencesResponse,
    Item,
    ItemQuery,
    ItemsQuery,
    ModelResponse,
    NothingAsked,
    RecommendRequest,
    RecommendResponse,
    Scored,
    SimilarQuery,
    SimilarResponse,
    ThumbnailQuery,
)
from retrieval.service.thumbnails import Thumbnails
from retrieval.service.watched import POLL_S, Identity, Watched

_NO_CONTENT = 204
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (401, 404, 413, 422, 429, 503)
}


class Service:
    """One replica. asgi: the application. Raises what `load` raises.

    load: makes the recommender, again at each `reload`. histories: see `Answering`. watch: tells models apart, asked
    every `poll_s` seconds; if another model has taken the place of the first, it is loaded. thumbnails: pictures of
    items for the page.
    """

    def __init__(
        self,
        load: Callable[[], Recommender],
        histories: Callable[[str], Sequence[str]] | None = None,
        limits: Limits | None = None,
        watch: Identity | None = None,
        poll_s: float = POLL_S,
        thumbnails: Thumbnails | None = None,
    ) -> None:
        measures = Measures()
        watched = None if watch is None else Watched(watch)  # before it is loaded, so that no change is missed
        self._answering = Answering(load, histories, measures)
        if watched is not None:
            threading.Thread(target=watched.follow, args=(self.reload, poll_s), daemon=True, name="watch").start()
        self.asgi = Guard(_application(self._answering, measures, thumbnails), limits or Limits(), measures)

    def reload(self) -> bool:
        """Load the model anew; requests are answered meanwhile. Whether it could be; else the old one goes on."""
        return self._answering.reload()


def _application(answering: Answering, measures: Measures, thumbnails: Thumbnails | None) -> FastAPI:
    # no pages that fetch scripts from elsewhere; /openapi.json is the schema
    app = FastAPI(title="MealRec", version="1", docs_url=None, redoc_url=None, responses=_ERRORS)
    _add_questions(app, answering, Batcher[RecommendRequest, tuple[Answer, str]](answering.answer))
    _add_catalogue(app, answering, thumbnails)
    _add_page(app)
    _add_operations(app, measures)
    answer_errors(app)
    return app


def _add_questions(app: FastAPI, answering: Answering, batcher: Batcher[RecommendRequest, tuple[Answer, str]]) -> None:
    @app.post("/v1/recommend")
    async def recommend(asked: RecommendRequest) -> RecommendResponse:
        """The best items for a history, or for a user that the service knows."""
        answer, model = await batcher.ask(asked)
        scored = [Scored(**asdict(each)) for each in answer.recommendations]
        return RecommendResponse(recommendations=scored, unknown=answer.unknown, note=answer.note, model=model)

    @app.post("/v1/explain")
    async def explain(asked: ExplainRequest) -> ExplainResponse:
        """By how much each item of a history raises the score of an item."""
        (found,), frames, model = await asyncio.to_thread(answering.explain, asked.history, [asked.item])
        return ExplainResponse(
            influences=[Influenced(**asdict(each)) for each in found],
            frames=[DenoisedFrame(**asdict(each)) for each in frames], model=model,
        )  # fmt: skip

    @app.post("/v1/influences")
    async def influences(asked: InfluencesRequest) -> InfluencesResponse:
        """By how much each item of a history raises the scores of several items."""
        found, frames, model = await asyncio.to_thread(answering.explain, asked.history, asked.items)
        return InfluencesResponse(
            influences=[[Influenced(**asdict(each)) for each in row] for row in found],
            frames=[DenoisedFrame(**asdict(each)) for each in frames], model=model,
        )  # fmt: skip

    @app.get("/v1/similar")
    async def similar(asked: Annotated[SimilarQuery, Query()]) -> SimilarResponse:
        """The items whose vectors are nearest to the item's."""
        found, model = await asyncio.to_thread(answering.similar, asked)
        return SimilarResponse(similar=[Scored(**asdict(each)) for each in found], model=model)


def _add_catalogue(app: FastAPI, answering: Answering, thumbnails: Thumbnails | None) -> None:
    @app.get("/v1/item")
    async def item(asked: Annotated[ItemQuery, Query()]) -> Item:
        """An item by its id."""
        return answering.item(asked.id)

    @app.get("/v1/items")
    async def items(asked: Annotated[ItemsQuery, Query()]) -> FoundResponse:
        """Items whose id or title holds a text."""
        return FoundResponse(items=await asyncio.to_thread(answering.find, asked.text, asked.most))

    @app.get("/v1/thumbnail", response_class=Response)
    async def thumbnail(asked: Annotated[ThumbnailQuery, Query()]) -> Response:
        """The picture of an item, or of one of its frames; 204, without content, where none is known."""
        found = await asyncio.to_thread(thumbnails.of, asked.id, asked.frame) if thumbnails else None
        if found is None:
            return Response(status_code=_NO_CONTENT)
        return Response(found.content, media_type=found.media_type, headers={"cache-control": "private, max-age=3600"})

    @app.get("/v1/model")
    async def model(asked: Annotated[NothingAsked, Query()]) -> ModelResponse:
        """What is served."""
        del asked
        recommender = answering.recommender
        card = recommender.card
        return ModelResponse(
            system=card.system, items=len(recommender.items), model=card.checksum,
            ranked_by=recommender.description, knows_users=answering.histories is not None, metrics=card.metrics,
            run=str(card.provenance.get("run", "")), thumbnails=thumbnails is not None, trouble=answering.trouble,
        )  # fmt: skip


def _add_page(app: FastAPI) -> None:
    html, policy = whole_page()
    headers = {"content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)


def _add_operations(app: FastAPI, measures: Measures) -> None:
    @app.get("/health", include_in_schema=False)
    async def health() -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    @app.get("/ready", include_in_schema=False)
    async def ready() -> PlainTextResponse:
        return PlainTextResponse("ready\n")  # a replica takes requests only once its model is loaded

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(measures.text(), media_type="text/plain; version=0.0.4")
