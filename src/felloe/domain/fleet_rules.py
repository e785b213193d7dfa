"""What a machine in a fleet may look like, whoever tells of it."""

import math

from felloe.domain.fleet import RAM, Device, Machine
from felloe.domain.sizes import MOST_BYTES

MOST_DEVICES = 64
MOST_TEXT = 128
_MOST_BANDWIDTH = 1e15


def check_machine(machine: Machine) -> str:
    """Why this is no machine, in words that fit behind its name; empty when it can be one."""
    if not machine.devices or machine.devices[0].id != RAM or machine.devices[0].kind != "cpu":
        return "does not begin with its own memory (`ram`)"
    if len(machine.devices) > MOST_DEVICES:
        return f"has more than {MOST_DEVICES} devices"
    ids = [device.id for device in machine.devices]
    if twice := next((one for one in ids if ids.count(one) > 1), ""):
        return f"has {_shown(twice)} twice"
    return next((problem for problem in map(_check_device, machine.devices) if problem), "")


def _check_device(device: Device) -> str:
    texts = (device.id, device.name)
    if not device.id or "/" in device.id or not all(text.isprintable() and len(text) <= MOST_TEXT for text in texts):
        return "has a device whose name cannot be shown"
    if device.id != RAM and device.kind == "cpu":
        return f"has {device.id}, which is neither its own memory nor a GPU"
    if not 0 <= device.memory <= MOST_BYTES:
        return f"has {device.id} with {device.memory} bytes, which no device has"
    if not math.isfinite(device.bandwidth) or not 0 <= device.bandwidth <= _MOST_BANDWIDTH:
        return f"has {device.id} with an impossible bandwidth"
    return ""


def _shown(text: str) -> str:
    return repr(text[:MOST_TEXT])
