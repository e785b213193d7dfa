"""What has been delivered of one answer, and how another replica goes on from there."""

import hashlib

from felloe.domain.requests import Piece, ReplayResume, TokenResume

_MOST_UNHASHED_BYTES = 64 * 1024


class Progress:
    """Counts the pieces delivered. Answers whose tokens all have ids resume by them, others by a digest of their bytes.

    Whether the digest is needed is known only when a replica is lost, and most answers are never resumed. So frames
    are kept as they are and hashed only then, or when there are so many that keeping them costs too much memory.
    """

    __slots__ = ("_by_ids", "_digest", "_length", "_unhashed", "_unhashed_bytes", "ids", "number")

    def __init__(self) -> None:
        self.number = 0
        self.ids: list[int] = []
        self._by_ids = True
        self._length = 0
        self._digest = hashlib.blake2b(digest_size=32)
        self._unhashed: list[bytes] = []
        self._unhashed_bytes = 0

    @property
    def begun(self) -> bool:
        """Whether anything has been delivered."""
        return bool(self._unhashed or self._length)

    def take(self, piece: Piece) -> None:
        """Count `piece` as delivered."""
        self.number = piece.number
        self.ids += piece.ids
        frames = piece.frames
        self._unhashed.append(frames)
        self._unhashed_bytes += len(frames)
        if self._unhashed_bytes > _MOST_UNHASHED_BYTES:
            self._hash()

    def resume(self) -> TokenResume | ReplayResume | None:
        """Where the next replica goes on; None to start from the beginning.

        A stream that broke after the role frame and before the first token is replayed: that frame is the same on
        every replica, whereas "after no tokens" could not say whether it has been delivered.
        """
        if not self.begun:
            return None
        if self._by_ids and self.ids and len(self.ids) == self.number:
            return TokenResume(ids=tuple(self.ids))
        # A replayed answer is cut at a byte; which ids belong to what is left of a piece is known only at its start.
        self._by_ids = self.number == 0
        self._hash()
        return ReplayResume(length=self._length, digest=self._digest.digest())

    def _hash(self) -> None:
        self._digest.update(b"".join(self._unhashed))
        self._unhashed.clear()
        self._length += self._unhashed_bytes
        self._unhashed_bytes = 0
