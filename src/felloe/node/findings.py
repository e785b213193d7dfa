"""What a check of `felloe doctor` finds, and what several checks look at."""

import socket
from typing import Literal

from msgspec import Struct

Verdict = Literal["ok", "warning", "failed"]


class Finding(Struct, frozen=True):
    """The result of one check."""

    check: str
    verdict: Verdict
    detail: str
    next_step: str = ""


def can_listen(host: str, port: int) -> bool:
    """Whether nothing else listens there. Raises `OSError` for what is no address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            return False
    return True
