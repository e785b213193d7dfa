"""The OpenAI-compatible edge: who may ask, what they may ask, and how answers look on the wire.

Owns the listening sockets, the API keys' file and the counters behind /metrics. Must not know how an answer is found or
made: it reaches models, nodes and engines only through the ports that it is given. Never logs or keeps prompt text.
"""

from felloe.gateway.config import GatewayConfig, Limits, ListedModel, Listener, NodeStatus
from felloe.gateway.keys import ApiKeys, KeyRecord
from felloe.gateway.metrics import Metrics
from felloe.gateway.server import Gateway

__all__ = [
    "ApiKeys",
    "Gateway",
    "GatewayConfig",
    "KeyRecord",
    "Limits",
    "ListedModel",
    "Listener",
    "Metrics",
    "NodeStatus",
]
