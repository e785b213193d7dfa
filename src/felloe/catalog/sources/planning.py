"""What a reference stands for, whichever kind of source it names, and which servers may be asked for it."""

from collections.abc import Mapping

from felloe.catalog.sources.address_rules import AddressRules
from felloe.catalog.sources.credentials import HUGGING_FACE_VARIABLE, REGISTRIES_VARIABLE, registry_logins
from felloe.catalog.sources.file import plan_file
from felloe.catalog.sources.https import plan_web
from felloe.catalog.sources.huggingface import plan_hugging_face
from felloe.catalog.sources.oci import plan_oci, registry_url
from felloe.catalog.sources.ollama import plan_ollama
from felloe.catalog.sources.plan import Plan
from felloe.catalog.sources.reference import (
    FileReference,
    HuggingFaceReference,
    OciReference,
    OllamaReference,
    Reference,
)
from felloe.catalog.sources.settings import SourceSettings
from felloe.catalog.sources.web import Anonymous, Credentials, Web


def address_rules(settings: SourceSettings) -> AddressRules:
    """Public servers may be asked, and those that the owner named."""
    mirrors = (settings.huggingface, settings.ollama, *settings.oci.values())
    defaults = SourceSettings()
    public = (defaults.huggingface, defaults.ollama)
    return AddressRules((*settings.allow, *(url for url in mirrors if url not in public)))


async def plan_reference(
    reference: Reference, web: Web, settings: SourceSettings, environment: Mapping[str, str]
) -> tuple[Plan, Credentials]:
    """The files to fetch and who this node is to their server; `environment` holds the secrets."""
    if isinstance(reference, FileReference):
        return await plan_file(reference), Anonymous()
    if isinstance(reference, HuggingFaceReference):
        token = environment.get(HUGGING_FACE_VARIABLE, "").strip()
        return await plan_hugging_face(reference, web, settings.huggingface.rstrip("/"), token)
    if isinstance(reference, OllamaReference):
        return await plan_ollama(reference, web, settings.ollama.rstrip("/"))
    if isinstance(reference, OciReference):
        login = registry_logins(environment.get(REGISTRIES_VARIABLE, "")).get(reference.host)
        return await plan_oci(reference, web, registry_url(reference.host, settings.oci), login)
    return plan_web(reference), Anonymous()
