"""What real loads taught about the price of a model: per model, engine and kind of device."""

from collections.abc import Mapping

from msgspec import Struct

from felloe.domain.fleet import DeviceKind


class Correction(Struct, frozen=True, kw_only=True):
    """By how much estimates were off: compute buffers by a factor, overhead by bytes to add."""

    compute: float = 1.0
    overhead: int = 0


class Corrections(Struct, frozen=True, kw_only=True):
    """What is known of one model on one engine, by kind of device."""

    kinds: Mapping[DeviceKind, Correction] = {}

    def of(self, kind: DeviceKind) -> Correction:
        """What is known for devices of this kind."""
        return self.kinds.get(kind, _NONE)


_NONE = Correction()
NO_CORRECTIONS = Corrections()
