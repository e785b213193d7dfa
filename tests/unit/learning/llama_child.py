"""Asks llama.cpp, in a process of its own, for what it makes of a model; a server cannot be closed safely.

Reads {"model": path, "requests": [[path, body], ...]} from standard input; prints the list of the answers.
"""

import json
import sys
import urllib.request


def main() -> None:
    import xllamacpp

    job = json.load(sys.stdin)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = job["model"]
    parameters.n_ctx = 512
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    answers = [_ask(server.listening_address + path, body) for path, body in job["requests"]]
    print(json.dumps(answers), flush=True)


def _ask(url: str, body: object) -> object:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main()
