"""Greedy streams against one API until the time is up; one line of JSON with every wait, in milliseconds.

`python benchmarks/stream_load.py URL MODEL STREAMS SECONDS`: the child of `transfer_latency.py`, which starts it on the
machine that is measured.
"""

import http.client
import json
import sys
import threading
import time
from urllib.parse import urlsplit

_TOKENS = 64
_WARM_UP_SECONDS = 2.0


class Waits:
    """Waits for the first piece of an answer, and between two pieces, in milliseconds."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.gap: list[float] = []
        self.failed = 0

    def read(self, response: http.client.HTTPResponse, asked: float, begin: float) -> None:
        """One answer to its end; what came before `begin` does not count."""
        last, waits = asked, self.first
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            if last >= begin:
                waits.append((now - last) * 1e3)
            last, waits = now, self.gap


def stream(host: str, model: str, headers: dict[str, str], waits: Waits, begin: float, end: float, number: int) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Write a parser in Python, number {number}."}],
        "max_tokens": _TOKENS,
        "temperature": 0,
        "stream": True,
    }
    while time.perf_counter() < end:
        connection = http.client.HTTPConnection(host, timeout=60)
        asked = time.perf_counter()
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise OSError(response.read(500).decode(errors="replace"))
            waits.read(response, asked, begin)
        except (OSError, http.client.HTTPException) as error:
            print(error, file=sys.stderr)
            waits.failed += 1
            time.sleep(0.2)  # a node that refuses is not to be asked in a tight loop
        finally:
            connection.close()


def main() -> None:
    url, model, streams, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    headers = {"Content-Type": "application/json"}
    begin = time.perf_counter() + _WARM_UP_SECONDS
    every = [Waits() for _ in range(streams)]
    threads = [
        threading.Thread(
            target=stream, args=(urlsplit(url).netloc, model, headers, waits, begin, begin + seconds, number)
        )
        for number, waits in enumerate(every)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gathered = {
        "first": [wait for waits in every for wait in waits.first],
        "gap": [wait for waits in every for wait in waits.gap],
        "failed": sum(waits.failed for waits in every),
    }
    print(json.dumps(gathered))


if __name__ == "__main__":
    main()
