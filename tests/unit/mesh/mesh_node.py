"""A node of the mesh as a program, for tests that kill and freeze one: `mesh_node.py <settings.json>`."""

import asyncio
import sys
from functools import partial
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mesh_network import Member
from mesh_streams import count_for_ever

from felloe.domain.ids import NetworkId
from felloe.mesh.certificates import client_context, hub_tls_name
from felloe.mesh.connection import Connection
from felloe.mesh.credentials import Credential, sign_nonce
from felloe.mesh.exchange import Exchange
from felloe.mesh.roster_service import RosterService
from felloe.mesh.session import Login


async def main() -> None:
    settings = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=dict[str, str])
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(settings["key"]))
    credential = Credential(certificate="", user_token=settings["token"], issued_at=0, expires_at=0)
    member = Member(key, credential)
    connection = Connection(
        [settings["url"]],
        member.id,
        login=lambda: Login(settings["token"], partial(sign_nonce, key)),
        tls=client_context(settings["issuers"]),
        server_name=hub_tls_name(NetworkId(settings["server_name"])),
    )
    exchange = Exchange(connection, member.id)
    exchange.serve(count_for_ever)
    roster = RosterService(connection, member.record(), sign=key.sign)
    await connection.start()
    await exchange.start()
    await roster.start()
    await asyncio.Event().wait()


asyncio.run(main())
