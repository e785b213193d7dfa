"""Server-sent events out of byte reads (WHATWG HTML, section 9.2), as far as OpenAI-like servers use them."""


class EventTooLarge(Exception):
    """One event exceeds the limit."""


class EventSplitter:
    """Turns reads of any size into the `data` payloads of whole events; keeps at most `limit` bytes."""

    def __init__(self, limit: int = 8 * 1024 * 1024) -> None:
        self._rest = b""
        self._limit = limit

    @property
    def is_empty(self) -> bool:
        """Whether what comes next begins an event."""
        return not self._rest

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the events that `data` completes. Raises `EventTooLarge`."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if b"\r" in data:
            # A CR at the end may be the first half of a CRLF.
            tail = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(tail)].replace(b"\r\n", b"\n") + tail
        if data.startswith(b"data: ") and data.find(b"\n") == len(data) - 2 and data.endswith(b"\n\n"):
            return [data[6:-2]]  # the usual case: one read, one event, one line
        *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > self._limit:
            raise EventTooLarge
        return [payload for event in events if (payload := _payload(event))]


def _payload(event: bytes) -> bytes:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines: list[bytes] = []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        # `error:` is how some llama.cpp versions report a failure in mid-stream; its value is an ordinary payload.
        if name in (b"data", b"error"):
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines)
