"""`felloe upstream list|add|remove`"""

from typing import Annotated

import typer

from felloe.cli.client import OperatorClient
from felloe.cli.output import JsonOption, print_json, print_table, say
from felloe.console.messages import NameRequest, Nothing, UpstreamRequest, UpstreamRow

app = typer.Typer(
    help="Servers of your own that speak the OpenAI API: Ollama, LM Studio, llama-server, vLLM.", no_args_is_help=True
)


@app.command("list")
def list_upstreams(json: JsonOption = False) -> None:
    """List the servers in use, and those found on this machine that are not."""
    rows = OperatorClient().ask("/upstreams", list[UpstreamRow])
    if json:
        print_json(rows)
        return
    print_table(
        ["NAME", "URL", "STATE", "MODELS", ""],
        [[row.name, row.url, row.state, ", ".join(row.models) or "-", row.detail] for row in rows],
    )


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="A name for it; `ollama` and `lmstudio` need no URL when found.")],
    url: Annotated[str, typer.Argument(help="Its base URL, for example http://127.0.0.1:8000/v1")] = "",
    key_env: Annotated[str, typer.Option(help="The environment variable of the node that holds its API key.")] = "",
    slots: Annotated[int, typer.Option(help="Requests it may get at once.")] = 4,
) -> None:
    """Serve the models of such a server to the network, now and at each start."""
    row = OperatorClient().tell("/upstreams/add", UpstreamRequest(name, url, key_env, slots), UpstreamRow)
    say(f"{row.name}: {', '.join(row.models) or 'no models yet'}")


@app.command("remove")
def remove(name: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Stop serving the models of a server."""
    OperatorClient().tell("/upstreams/remove", NameRequest(name), Nothing)
    say(f"removed: {name}")
