"""What the network wants served, as this node last heard it, and the way to ask for a model that is not loaded."""

import logging
from collections.abc import Awaitable, Callable

from felloe.domain.errors import FelloeError
from felloe.domain.ids import ModelName
from felloe.domain.plan import DesiredModel
from felloe.domain.serving import DemandAnswer, DemandQuestion, Serving, decode_serving

logger = logging.getLogger(__name__)


class Wanted:
    """Follows the topic of models to serve. `ask` brings a question to the leading hub and its answer back."""

    def __init__(self, ask: Callable[[DemandQuestion], Awaitable[DemandAnswer]]) -> None:
        self._ask = ask
        self._serving = Serving()
        self._names: frozenset[ModelName] = frozenset()

    @property
    def models(self) -> tuple[DesiredModel, ...]:
        """All that is wanted; empty until a hub has told it."""
        return self._serving.models

    def serving_changed(self, value: bytes) -> None:
        """A hub told what is wanted now. What cannot be read changes nothing."""
        try:
            self._serving = decode_serving(value)
        except FelloeError as error:
            logger.warning("%s", error)
            return
        self._names = frozenset(desired.model for desired in self._serving.models)

    def is_wanted(self, model: ModelName) -> bool:
        """Whether the network wants `model` served."""
        return model in self._names

    async def ask_for(self, model: ModelName) -> DemandAnswer:
        """Tell the leading hub that somebody waits for `model`. Raises what the hub or the way to it fails with."""
        return await self._ask(DemandQuestion(model))
