"""How nodes become one network and talk: keys and certificates, joining, the nats-server child, connections, roster.

Owns the network's keys, its invitations and its list of members (on hubs), this node's credential, and the roster
snapshot. It must not know what a prompt, an engine or an API key is: it carries sealed bytes.
"""
