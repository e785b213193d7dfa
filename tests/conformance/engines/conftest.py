"""The engines that every test of the suite may ask."""

from engine_house import llama, subject, upstream, upstream_child

__all__ = ["llama", "subject", "upstream", "upstream_child"]
