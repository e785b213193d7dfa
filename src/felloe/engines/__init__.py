"""Inference engines: a model file in a llama.cpp child process, or an upstream server that speaks the OpenAI API.

Owns the child processes, their sockets, logs and restarts, and what each replica of this node can hold. Every engine
answers the same port (`domain.ports.Replicas`) with the same frames. Must not know other nodes, API keys, queues or
which replica a request should go to.
"""
