"""Room that is kept for a file on its way in."""

from abc import ABC, abstractmethod


class Promised(ABC):
    """A file on its way in, and the bytes that were promised room with it and behind it."""

    def __init__(self) -> None:
        self._promised = 0

    @property
    @abstractmethod
    def length(self) -> int:
        """Bytes that are here."""

    @property
    def coming(self) -> int:
        """Bytes that were promised room and are not here yet."""
        return max(0, self._promised - self.length)

    def promise(self, size: int) -> None:
        """`size` bytes more are going to come, with this file and behind it, and have their room."""
        self._promised = self.length + size
