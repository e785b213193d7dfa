"""How large llama.cpp's buffers for computing become: an estimate of its allocator's result, from a model's lengths.

The allocator reuses memory once a tensor is no longer needed, so a buffer is as large as the tensors that live at one
time, not as their sum. Which live together at each step's peak was read off the engine's log for models made to have
one step larger than the others; benchmarks/memory.py holds the whole against the log.
"""

from felloe.domain.batches import batch_tokens
from felloe.domain.fleet import DeviceKind
from felloe.placement.cache import cells_of, window_cells_of
from felloe.placement.settings import Settings
from felloe.placement.shape import Shape

_FLOAT = 4
_HALF = 2
_COPIES = 4
"""With several GPUs llama.cpp keeps as many copies of each step's input, to fill one GPU while another computes."""

_FLASH_LENGTHS = frozenset((40, 64, 72, 80, 96, 112, 128, 256))
"""Head lengths for which the GPU kernels need no table of every token against every other (`fattn.cu`)."""


def compute_bytes(shape: Shape, settings: Settings, kind: DeviceKind, *, last: bool, gpus: int) -> int:
    """The buffer on a device that holds layers; `last`: the output too; `gpus`: over how many GPUs the layers go."""
    batch = _batch(settings)
    busy = _FLOAT * batch * max(_feed_forward(shape), _attention(shape), _recurrent(shape))
    busy += settings.slots * max((layer.state for layer in shape.layers), default=0)
    if kind != "cpu" and not _is_flash(shape):
        busy += 2 * _FLOAT * batch * shape.heads * cells_of(settings)
    words = output_bytes(shape, settings) + 3 * _FLOAT * batch * shape.width if last else 0
    inputs = mask_bytes(shape, settings)
    if kind != "cpu" and gpus > 1:
        inputs = _COPIES * (inputs + _FLOAT * batch * shape.width)
    return max(busy, words) + inputs


def _feed_forward(shape: Shape) -> int:
    """Numbers a token: the way up, its gate, their product, and the layer's own rows."""
    if not shape.gated:
        return 2 * shape.feed_forward + (5 if any(layer.key for layer in shape.layers) else 2) * shape.width
    wide = max(shape.feed_forward, shape.experts_used * shape.expert_length)
    return 3 * wide + (6 if shape.parallel else 5) * shape.width


def _attention(shape: Shape) -> int:
    """Numbers a token: queries, their turned copy and the answer; keys and values; latent ones as long as the rank."""
    if shape.latent:
        return shape.heads * (3 * shape.latent + shape.rope_length)
    kept = max((layer.key + layer.value for layer in shape.layers), default=0)
    return 3 * shape.heads * shape.key_length + kept + shape.width if kept else 0


def _recurrent(shape: Shape) -> int:
    return 7 * shape.inner + shape.width if shape.inner else 0


def _is_flash(shape: Shape) -> bool:
    return bool(shape.latent) or shape.key_length in _FLASH_LENGTHS or not any(layer.key for layer in shape.layers)


def mask_bytes(shape: Shape, settings: Settings) -> int:
    """Which cells each token of a batch may see: one mask for the whole cache, one for the windowed layers'."""
    full = any(layer.key and not layer.windowed for layer in shape.layers)
    windowed = any(layer.windowed for layer in shape.layers)
    cells = (cells_of(settings) if full else 0) + (window_cells_of(shape, settings) if windowed else 0)
    if not cells and not shape.inner:
        cells = _batch(settings)  # without a cache the tokens of a batch see each other
    return _HALF * _batch(settings) * cells


def staging_bytes(shape: Shape, settings: Settings) -> int:
    """The machine's own buffer where all layers lie on GPUs: the embedded batch and the masks on their way."""
    return _FLOAT * _batch(settings) * shape.width + mask_bytes(shape, settings)


def output_bytes(shape: Shape, settings: Settings) -> int:
    """What the engine keeps, in the machine's memory, of the last step's results: how likely each word is."""
    return _FLOAT * shape.vocabulary * settings.slots


def _batch(settings: Settings) -> int:
    return batch_tokens(settings.context, settings.slots, embedding=settings.embedding)
