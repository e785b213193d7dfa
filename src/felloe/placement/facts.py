"""What a plan must know of a model before it can place it."""

from typing import Literal

from msgspec import Struct

from felloe.domain.ids import ContentId
from felloe.placement.shape import Shape


class ModelFacts(Struct, frozen=True, kw_only=True):
    """One variant of a model. `content` names its approved files, empty on paper.

    `quality` weighs it against the other variants of its model, from 0 (exclusive) to 1; 0: by its place among them.
    """

    shape: Shape
    content: ContentId | Literal[""] = ""
    quality: float = 0.0
