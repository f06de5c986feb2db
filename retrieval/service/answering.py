"""The recommender of one replica: answers batches of requests, can be replaced while it answers, samples its recall."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence

from models.errors import UserError
from retrieval.answers import Answer, Frame, Influence, Recommendation
from retrieval.recommender import Recommender
from retrieval.service.measures import Measures
from retrieval.service.schema import Item, RecommendRequest, SimilarQuery

_LOG = logging.getLogger("mealrec.service")
#: one question of so many is ranked exactly too, where an index answers
_SAMPLE = 256


class UnknownItem(UserError):
    """An item that is asked about, and that the model does not know."""


class Answering:
    """load: makes the recommender. histories: the history of a known user by id, or None if no users are known.

    `histories` raises UserError for a user that is unknown. Raises what `load` raises.
    """

    def __init__(
        self, load: Callable[[], Recommender], histories: Callable[[str], Sequence[str]] | None, measures: Measures
    ) -> None:
        self._load, self.histories, self._measures = load, histories, measures
        #: replaced as a whole by `reload`; each request reads it once
        self.recommender = load()
        #: why the last reload failed
        self.trouble = ""
        self._asked = itertools.count(1)
        self._recalls, self._found_exactly = 0, 0.0
        self._reloading = threading.Lock()

    def reload(self) -> bool:
        """Load the model anew and answer with it from then on; the old one answers until then, and if that fails.

        Whether it could be loaded.
        """
        with self._reloading:
            try:
                self.recommender = self._load()
            except Exception as error:  # whatever is wrong with the new model, the old one is still good
                self.trouble = str(error)
                self._measures.reloads.labels("failed").inc()
                _LOG.exception("the model could not be loaded anew; the old one goes on")
            else:
                self.trouble = ""
                self._measures.reloads.labels("done").inc()
        return not self.trouble

    def answer(self, questions: Sequence[RecommendRequest]) -> list[tuple[Answer, str] | Exception]:
        """For each question its answer and the checksum of the model that gave it, or the error for its asker."""
        self._measures.batch.observe(len(questions))
        recommender = self.recommender
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, asked in enumerate(questions):
            among = None if asked.among is None else tuple(asked.among)
            alike = (asked.k, tuple(asked.exclude), among, asked.exclude_history, asked.popular_instead)
            groups.setdefault(alike, []).append(number)
        replies: dict[int, tuple[Answer, str] | Exception] = {}
        for numbers in groups.values():
            replies |= zip(numbers, self._of_group(recommender, [questions[n] for n in numbers]), strict=True)
        return [replies[number] for number in range(len(questions))]

    def _of_group(
        self, recommender: Recommender, alike: Sequence[RecommendRequest]
    ) -> list[tuple[Answer, str] | Exception]:
        first = alike[0]
        try:
            for asked in alike:
                _require_so_many(recommender, asked)
            answers = recommender.recommend_all(
                [self._history(asked) for asked in alike], first.k, exclude=first.exclude, among=first.among,
                exclude_history=first.exclude_history, popular_instead=first.popular_instead,
            )  # fmt: skip
        except UserError as error:
            if len(alike) == 1:
                return [error]
            # one of them is at fault, and the message is about it alone
            return [reply for asked in alike for reply in self._of_group(recommender, [asked])]
        if recommender.by_index and first.among is None and next(self._asked) % _SAMPLE == 1:
            self._sample(recommender, first, answers[0])
        return [(answer, recommender.card.checksum) for answer in answers]

    def _history(self, asked: RecommendRequest) -> Sequence[str]:
        if asked.user is None:
            return asked.history or []
        if self.histories is None:
            raise UserError("this service knows no users; give history, or start it with --data")
        try:
            return self.histories(asked.user)
        except UserError:  # which names the dataset's folder and another user, neither of them for a client
            raise UserError(f"this service knows no user {asked.user!r}; give history instead") from None

    def _sample(self, recommender: Recommender, asked: RecommendRequest, answer: Answer) -> None:
        """Compare an answer of the index with the exact one, for the metric of recall."""
        exact = recommender.exactly().recommend_all(
            [self._history(asked)], asked.k, exclude=asked.exclude, exclude_history=asked.exclude_history
        )[0]
        wanted = {each.item for each in exact.recommendations}
        if wanted:
            found = {each.item for each in answer.recommendations}
            self._recalls, self._found_exactly = (
                self._recalls + 1,
                self._found_exactly + len(wanted & found) / len(wanted),
            )
            self._measures.recall.set(self._found_exactly / self._recalls)

    def similar(self, asked: SimilarQuery) -> tuple[list[Recommendation], str]:
        """The nearest items and the model's checksum. Raises UnknownItem; UserError for a baseline, or for k."""
        recommender = self._knowing(asked.item)
        _require_so_many(recommender, asked)
        return recommender.similar(asked.item, asked.k), recommender.card.checksum

    def explain(self, history: Sequence[str], items: Sequence[str]) -> tuple[list[list[Influence]], list[Frame], str]:
        """What each item of the history adds to each of `items`, which frames of its last video are kept, and the
        checksum. Raises UnknownItem, UserError."""
        recommender = self._knowing(*items)
        influences = recommender.explain_all(history, items)
        return influences, recommender.frames(history), recommender.card.checksum

    def item(self, item: str) -> Item:
        """An item by its id. Raises UnknownItem."""
        recommender = self._knowing(item)
        return Item(item=item, title=recommender.items.titles[recommender.row(item) - 1])

    def _knowing(self, *items: str) -> Recommender:
        recommender = self.recommender
        try:
            for item in items:
                recommender.row(item)
        except UserError as error:
            raise UnknownItem(str(error)) from None
        return recommender

    def find(self, text: str, most: int) -> list[Item]:
        """Items whose id is the text, then those whose title or id holds it, in any case of letters."""
        items, wanted = self.recommender.items, text.casefold()
        found = (
            Item(item=name, title=title)
            for name, title in zip(items.ids, items.titles, strict=True)
            if name != text and (wanted in name.casefold() or (title and wanted in title.casefold()))
        )
        known = [self.item(text)] if items.row(text) is not None else []
        return [*known, *itertools.islice(found, most - len(known))]


def _require_so_many(recommender: Recommender, asked: RecommendRequest | SimilarQuery) -> None:
    """Refuse a k above the catalogue; one that nobody gave asks for what there is."""
    if "k" in asked.model_fields_set and asked.k > len(recommender.items):
        raise UserError(f"k: {asked.k:,} items were asked for, and the catalogue has {len(recommender.items):,}")
