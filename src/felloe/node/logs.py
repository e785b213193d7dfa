"""Logging: to the terminal in short, to `logs/node.log` in full, bounded in size. No prompt text reaches either."""

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

_FILE_BYTES = 5_000_000
_FILE_COUNT = 3


def start_logging(folder: Path, level: str, *, terminal: bool = True) -> None:
    """Send records of `level` and above to the log file, and warnings to the terminal."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    to_file = RotatingFileHandler(folder / "node.log", maxBytes=_FILE_BYTES, backupCount=_FILE_COUNT, delay=True)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(to_file)
    if terminal:
        to_terminal = logging.StreamHandler()
        to_terminal.setLevel(logging.WARNING)
        to_terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        root.addHandler(to_terminal)
    # These write request lines and headers at their lower levels; nothing of a request belongs into a log.
    for chatty in ("httpx", "httpcore", "asyncio", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(_is_worth_telling)


def _is_worth_telling(record: logging.LogRecord) -> bool:
    # asyncio says this at every TLS connection that its peer closes first; it means nothing.
    return "eof_received()" not in record.getMessage()
