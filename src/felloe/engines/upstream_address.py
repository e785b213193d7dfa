"""Where an upstream server is and what opens it, from its owner's settings."""

import os
import ssl
import stat
from pathlib import Path
from urllib.parse import urlsplit

from felloe.domain.errors import FelloeError
from felloe.engines.http_client import TcpAddress
from felloe.engines.options import Upstream

_KEY_LIMIT = 4096


def address_of(upstream: Upstream) -> tuple[TcpAddress, str]:
    """The server's address and the path before `/models`; raises `bad_config`."""

    def bad(reason: str) -> FelloeError:
        return FelloeError("bad_config", f"the upstream {upstream.name}: {reason}", param="base_url")

    try:
        url = urlsplit(upstream.base_url)
        port = url.port
    except ValueError as error:
        raise bad("its base_url is no URL") from error
    if url.scheme not in ("http", "https") or not url.hostname:
        raise bad("its base_url does not begin with http:// or https:// and a host")
    if url.username or url.password or url.query or url.fragment:
        raise bad("its base_url holds more than a host and a path")
    if any(character <= " " or character == "\x7f" for character in upstream.base_url):
        raise bad("its base_url holds white space")
    tls = ssl.create_default_context() if url.scheme == "https" else None
    return TcpAddress(url.hostname, port or (443 if tls else 80), tls), url.path.rstrip("/")


def key_of(upstream: Upstream) -> str:
    """The API key, or nothing; raises `bad_config`, never quoting it."""
    if upstream.key_variable and upstream.key_file:
        raise FelloeError("bad_config", f"the upstream {upstream.name} names two API keys", param="key_file")
    if upstream.key_variable:
        key = os.environ.get(upstream.key_variable, "")
        if not key:
            detail = f"the upstream {upstream.name}: the variable {upstream.key_variable} is not set"
            raise FelloeError("bad_config", detail, param="key_variable")
    elif upstream.key_file is not None:
        key = _read_key(upstream.name, upstream.key_file)
    else:
        return ""
    if not key.isascii() or not key.isprintable() or len(key) > _KEY_LIMIT:
        raise FelloeError("bad_config", f"the API key of the upstream {upstream.name} is no key")
    return key


def _read_key(name: str, path: Path) -> str:
    try:
        with path.open("rb") as stream:
            if stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o077:
                detail = f"the upstream {name}: others may read {path}; use mode 0600"
                raise FelloeError("bad_config", detail, param="key_file")
            return stream.read(_KEY_LIMIT + 2).decode("ascii", errors="replace").strip()
    except OSError as error:
        raise FelloeError("bad_config", f"the upstream {name}: cannot read {path}", param="key_file") from error
