"""Every error that a person or a program may see: its code, whose fault it is, and what to do next.

The table below is the one catalogue. Code that fails raises `FelloeError(code, detail)`; the edges (gateway,
operator API, command line) turn it into an HTTP answer, a stream event or an exit code.
A `detail` never holds prompt text, answers or secrets.
"""

from enum import StrEnum
from typing import NamedTuple


class Fault(StrEnum):
    """Who can mend it."""

    CALLER = "caller"
    NODE = "node"
    NETWORK = "network"
    UPSTREAM = "upstream"


class ErrorSpec(NamedTuple):
    """One row of the catalogue: HTTP status, whose fault, the `type` OpenAI clients expect, the next step."""

    status: int
    fault: Fault
    type: str
    next_step: str


_BAD = "invalid_request_error"

CATALOGUE: dict[str, ErrorSpec] = {
    # what the caller sent
    "invalid_json": ErrorSpec(400, Fault.CALLER, _BAD, "Send one JSON object in UTF-8."),
    "invalid_type": ErrorSpec(400, Fault.CALLER, _BAD, "Correct the named parameter."),
    "invalid_value": ErrorSpec(400, Fault.CALLER, _BAD, "Correct the named parameter."),
    "unknown_parameter": ErrorSpec(400, Fault.CALLER, _BAD, "Remove the parameter; it is not known here."),
    "unsupported_parameter": ErrorSpec(400, Fault.CALLER, _BAD, "Remove the parameter; it is not supported here."),
    "unsupported_media_type": ErrorSpec(415, Fault.CALLER, _BAD, "Send application/json without content encoding."),
    "body_too_large": ErrorSpec(413, Fault.CALLER, _BAD, "Send a smaller body."),
    "headers_too_large": ErrorSpec(431, Fault.CALLER, _BAD, "Send smaller headers."),
    "invalid_http": ErrorSpec(400, Fault.CALLER, _BAD, "Send well-formed HTTP/1.1."),
    "request_timeout": ErrorSpec(408, Fault.CALLER, _BAD, "Send the whole request without long pauses."),
    "context_length_exceeded": ErrorSpec(400, Fault.CALLER, _BAD, "Shorten the prompt or lower max_tokens."),
    "unsupported_capability": ErrorSpec(400, Fault.CALLER, _BAD, "Choose a model that offers this."),
    "model_not_found": ErrorSpec(404, Fault.CALLER, _BAD, "List the models with GET /v1/models or `felloe models`."),
    "not_found": ErrorSpec(404, Fault.CALLER, _BAD, "Check the path or the name."),
    "method_not_allowed": ErrorSpec(405, Fault.CALLER, _BAD, "Use the method that the Allow header names."),
    "invalid_api_key": ErrorSpec(401, Fault.CALLER, _BAD, "Send `Authorization: Bearer <key>`; see `felloe key`."),
    "forbidden": ErrorSpec(403, Fault.CALLER, _BAD, "Ask the network's owner for the right to do this."),
    "rate_limited": ErrorSpec(429, Fault.CALLER, "rate_limit_error", "Wait, then send again."),
    # this node
    "overloaded": ErrorSpec(503, Fault.NODE, "overloaded_error", "Wait for the seconds in Retry-After, then retry."),
    "draining": ErrorSpec(503, Fault.NODE, "overloaded_error", "Ask another node; this one is stopping."),
    "engine_failed": ErrorSpec(500, Fault.NODE, "server_error", "Look at `felloe doctor` and the engine's log."),
    "engine_start_failed": ErrorSpec(500, Fault.NODE, "server_error", "Look at the engine's log; check the memory."),
    "out_of_memory": ErrorSpec(
        507, Fault.NODE, "server_error", "Unload a model, lower `--context`, or take a smaller one; see `felloe fit`."
    ),
    "already_loaded": ErrorSpec(409, Fault.CALLER, _BAD, "Unload it first, or choose another name."),
    "bad_model_file": ErrorSpec(400, Fault.NODE, _BAD, "Fetch the file again; it is damaged or is not GGUF."),
    "bad_manifest": ErrorSpec(
        400, Fault.NODE, _BAD, "Fetch the model again; update the older side if versions differ."
    ),
    "already_pulling": ErrorSpec(409, Fault.CALLER, _BAD, "Wait until the other pull of the same file has ended."),
    "disk_failed": ErrorSpec(500, Fault.NODE, "server_error", "Check the disk that holds the models."),
    "disk_full": ErrorSpec(507, Fault.NODE, "server_error", "Free some disk space, then try again."),
    "port_taken": ErrorSpec(500, Fault.NODE, "server_error", "Stop the other program or choose another port."),
    "broker_failed": ErrorSpec(500, Fault.NODE, "server_error", "Look at the message server's log; check the disk."),
    "home_in_use": ErrorSpec(
        500, Fault.NODE, "server_error", "Stop the other `felloe`, or choose another FELLOE_HOME."
    ),
    "already_running": ErrorSpec(
        500, Fault.NODE, "server_error", "Stop the other one, or `felloe leave` here and join anew."
    ),
    "bad_state": ErrorSpec(500, Fault.NODE, "server_error", "Restore the named file from a backup or remove it."),
    "bad_config": ErrorSpec(500, Fault.NODE, "server_error", "Correct the named setting."),
    "bad_plan_file": ErrorSpec(400, Fault.CALLER, _BAD, "Correct the file; see docs/placement.md."),
    "not_running": ErrorSpec(503, Fault.NODE, "server_error", "Start the node with `felloe up`."),
    "internal": ErrorSpec(500, Fault.NODE, "server_error", "This is a bug; report the code and the log's line."),
    # the network
    "no_replica": ErrorSpec(503, Fault.NETWORK, "overloaded_error", "Wait until a node serves the model again."),
    "model_loading": ErrorSpec(
        503, Fault.NETWORK, "overloaded_error", "Wait for the seconds in Retry-After, or send `Prefer: wait=<seconds>`."
    ),
    "does_not_fit": ErrorSpec(
        503, Fault.NETWORK, "overloaded_error", "Do what the message names; `felloe plan` shows what is short."
    ),
    "replica_lost": ErrorSpec(503, Fault.NETWORK, "server_error", "Send the request again."),
    "line_lost": ErrorSpec(503, Fault.NETWORK, "server_error", "Send the request again."),
    "resume_diverged": ErrorSpec(502, Fault.NETWORK, "server_error", "Send the request again."),
    "deadline_exceeded": ErrorSpec(504, Fault.NETWORK, "timeout_error", "Allow more time or ask for fewer tokens."),
    "unsealed": ErrorSpec(400, Fault.NETWORK, _BAD, "Fetch the node's current sealing key and seal again."),
    "replayed": ErrorSpec(409, Fault.NETWORK, _BAD, "Seal the request anew."),
    "network_unreachable": ErrorSpec(503, Fault.NETWORK, "server_error", "Check that a hub is up and can be dialled."),
    "not_leader": ErrorSpec(503, Fault.NETWORK, "server_error", "Try again in some seconds; another hub leads now."),
    "node_unreachable": ErrorSpec(
        503, Fault.NETWORK, "server_error", "Start the node, open its ports, then try again."
    ),
    "no_holder": ErrorSpec(
        503, Fault.NETWORK, "server_error", "Start a node that has the model, or pull it from its source."
    ),
    "wrong_node": ErrorSpec(409, Fault.CALLER, _BAD, "Run the command where the message says."),
    "quorum_at_risk": ErrorSpec(409, Fault.CALLER, _BAD, "Promote another node first, or bring the missing hubs back."),
    "bad_token": ErrorSpec(400, Fault.CALLER, _BAD, "Copy the whole token again, or ask for a new one."),
    "token_refused": ErrorSpec(403, Fault.CALLER, _BAD, "Ask for a new token with `felloe invite`."),
    "wrong_network": ErrorSpec(403, Fault.NETWORK, _BAD, "Check the hub's address; it is not the token's network."),
    "trust_refused": ErrorSpec(
        403, Fault.NETWORK, _BAD, "Look at the hub that offered it; this node keeps the trust list that it has."
    ),
    "bad_passphrase": ErrorSpec(403, Fault.CALLER, _BAD, "Type the passphrase that the root was exported with."),
    "version_refused": ErrorSpec(403, Fault.NETWORK, _BAD, "Update the older side; see docs/upgrades.md."),
    # what may be loaded
    "not_approved": ErrorSpec(403, Fault.NETWORK, _BAD, "Have the curators approve it; see docs/approval.md."),
    "model_withdrawn": ErrorSpec(403, Fault.NETWORK, _BAD, "Use another model; `felloe catalog list` shows them."),
    "catalog_expired": ErrorSpec(
        503, Fault.NETWORK, "server_error", "Connect the node to a hub or a peer, and check the clock."
    ),
    "catalog_refused": ErrorSpec(
        403, Fault.NETWORK, _BAD, "Look at who offered it; this node keeps the catalogue that it has."
    ),
    "not_curator": ErrorSpec(403, Fault.CALLER, _BAD, "Run it where a curator's key is; see `felloe curators list`."),
    # another program
    "upstream_failed": ErrorSpec(502, Fault.UPSTREAM, "server_error", "Look at the upstream server's own log."),
    "upstream_refused": ErrorSpec(400, Fault.UPSTREAM, _BAD, "Correct what the upstream server names."),
    # where models come from
    "source_failed": ErrorSpec(502, Fault.UPSTREAM, "server_error", "Pull again later, or from a mirror."),
    "source_refused": ErrorSpec(403, Fault.CALLER, _BAD, "Get access or a new token; see docs/pull.md."),
    "source_not_found": ErrorSpec(404, Fault.CALLER, _BAD, "Correct the reference; see docs/pull.md."),
    "address_refused": ErrorSpec(403, Fault.UPSTREAM, _BAD, "Name the server in [sources] if it is your own."),
}


class FelloeError(Exception):
    """A failure from the catalogue.

    `param` names the request field at fault; `retry_after` is in seconds.
    """

    def __init__(self, code: str, detail: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(detail)
        if code not in CATALOGUE:
            raise ValueError(f"{code!r} is not in the error catalogue")
        self.code = code
        self.detail = detail
        self.param = param
        self.retry_after = retry_after

    @property
    def spec(self) -> ErrorSpec:
        """The catalogue's row for this error."""
        return CATALOGUE[self.code]

    @property
    def status(self) -> int:
        """The HTTP status that stands for this error."""
        return self.spec.status

    def __str__(self) -> str:
        return f"{self.detail} ({self.code}). {self.spec.next_step}"
