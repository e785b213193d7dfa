"""What an owner's own load will probably take up, so that no planned replica is given the same memory meanwhile."""

import logging
from collections.abc import Mapping
from pathlib import Path

from felloe.catalog.sources.front import layout_of_file
from felloe.domain.errors import FelloeError
from felloe.domain.fleet import Machine
from felloe.domain.models import Model
from felloe.domain.plan import Part
from felloe.engines.options import DEFAULT_CONTEXT_LIMIT, EngineOptions
from felloe.host.budget import free_bytes
from felloe.placement.settings import Settings
from felloe.placement.shape import shape_of
from felloe.placement.split import split_over

logger = logging.getLogger(__name__)


async def promised(
    model: Model, path: Path, options: EngineOptions, machine: Machine, held: Mapping[str, int]
) -> tuple[Part, ...]:
    """The parts of the file at `path`, loaded as `options` say, over what is free; empty when that cannot be told.

    llama.cpp chooses by itself where the layers of such a load lie; it fills the GPUs first, as is assumed here.
    """
    try:
        shape = shape_of(await layout_of_file(path))
        settings = Settings(
            context=options.context or min(model.context or DEFAULT_CONTEXT_LIMIT, DEFAULT_CONTEXT_LIMIT),
            slots=options.slots,
            kv_type=options.kv_type,
            embedding=options.embedding,
        )
        free = free_bytes(machine, held)
        room = [(device, free[device.id]) for device in machine.devices]
        return split_over(shape, settings, room, offload=True) or ()
    except (FelloeError, OSError) as error:
        logger.info("what %s will take up is not known before it is loaded: %s", model.name, error)
        return ()
