"""What an engine keeps for its slots: keys and values by token, states by request. Exact."""

from felloe.domain.batches import CELLS, batch_tokens
from felloe.domain.plan import KvType
from felloe.placement.settings import Settings
from felloe.placement.shape import LayerShape, Shape

_BLOCK: dict[KvType, tuple[int, int]] = {"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}

_MOST_CHECKPOINTS = 32
_CHECKPOINT_TOKENS = 8192


def cells_of(settings: Settings) -> int:
    """Cells of one slot's cache."""
    return _padded(settings.context)


def window_cells_of(shape: Shape, settings: Settings) -> int:
    """Cells of one slot's cache in a windowed layer: the window and one batch more, never above the whole context."""
    batch = batch_tokens(settings.context, settings.slots, embedding=settings.embedding)
    return min(cells_of(settings), _padded(shape.window + batch))


def cache_bytes(shape: Shape, settings: Settings, layer: LayerShape) -> int:
    """What one layer keeps for all slots."""
    cells = window_cells_of(shape, settings) if layer.windowed else cells_of(settings)
    elements, size = _BLOCK[settings.kv_type]
    numbers = (layer.key // elements + layer.value // elements) * size
    return settings.slots * (cells * numbers + layer.state)


def checkpoint_bytes(shape: Shape, settings: Settings) -> int:
    """Copies of what windowed and recurrent layers hold, kept in the machine's memory to go back to in a prompt.

    The server takes one every 8,192 tokens and two near a prompt's end, at most 32 a slot; an upper estimate.
    """
    elements, size = _BLOCK[settings.kv_type]
    windowed = sum((layer.key // elements + layer.value // elements) * size for layer in shape.layers if layer.windowed)
    once = windowed * window_cells_of(shape, settings) + sum(layer.state for layer in shape.layers)
    return settings.slots * min(_MOST_CHECKPOINTS, 2 + settings.context // _CHECKPOINT_TOKENS) * once


def _padded(cells: int) -> int:
    return -(-cells // CELLS) * CELLS
