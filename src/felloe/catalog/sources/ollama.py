"""Models of Ollama's registry: a manifest whose layers are the GGUF file, its template, parameters and licences.

Ollama's templates are Go templates, which no engine here can read. They are kept with the model as a file; the chat
template that counts is the one inside the GGUF file. Parameters and the system prompt are taken over.
"""

import contextlib
import re

import msgspec

from felloe.catalog.sources.plan import Plan, RemoteFile
from felloe.catalog.sources.reference import OllamaReference
from felloe.catalog.sources.registry import DOCKER_MANIFEST, OCI_MANIFEST, Descriptor, Manifest, Repository
from felloe.catalog.sources.web import Anonymous, Web
from felloe.domain.errors import FelloeError
from felloe.domain.manifest import Parameter, Role

_KIND = "application/vnd.ollama.image."
_WEIGHTS: dict[str, Role] = {"model": "model", "projector": "projector"}
_PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MOST_PARAMETERS, _MOST_STOPS, _MOST_PARAMETER_CHARACTERS = 64, 64, 4096
_MOST_NUMBER = 2**53


async def plan_ollama(reference: OllamaReference, web: Web, base_url: str) -> tuple[Plan, Anonymous]:
    """What the registry holds under the name. Raises `source_failed` for what is no GGUF model."""
    credentials = Anonymous()
    name = f"{reference.namespace}/{reference.name}"
    repository = Repository(web, base_url, name, credentials, reference.text)
    manifest, digest = await repository.manifest(reference.tag, f"{DOCKER_MANIFEST}, {OCI_MANIFEST}")
    parameters = await _parameters(repository, _layers(manifest, "params"), _layers(manifest, "system"))
    plan = Plan(
        files=_files(repository, manifest, reference),
        source=reference.text,
        revision=digest,
        parameters=parameters,
        licence=await _licence(repository, _layers(manifest, "license")),
    )
    return plan, credentials


def _layers(manifest: Manifest, kind: str) -> list[Descriptor]:
    return [layer for layer in manifest.layers if layer.kind == _KIND + kind]


def _files(repository: Repository, manifest: Manifest, reference: OllamaReference) -> tuple[RemoteFile, ...]:
    if len(_layers(manifest, "model")) != 1:
        raise FelloeError("source_failed", f"{reference.text} is not one GGUF file, so it cannot be used here")
    if _layers(manifest, "adapter"):
        raise FelloeError("source_failed", f"{reference.text} is an adapter for another model, not a model")
    stem = f"{reference.name}-{reference.tag}"
    names = {"model": f"{stem}.gguf", "projector": f"mmproj-{stem}.gguf"}
    files = [
        repository.file(layer, names[kind], role)
        for kind, role in _WEIGHTS.items()
        for layer in _layers(manifest, kind)[:1]
    ]
    files += [repository.file(layer, "template.gotmpl", "template") for layer in _layers(manifest, "template")[:1]]
    licences = enumerate(_layers(manifest, "license"), 1)
    files += [repository.file(layer, f"LICENSE-{number}", "licence") for number, layer in licences]
    return tuple(files)


async def _parameters(
    repository: Repository, layers: list[Descriptor], system: list[Descriptor]
) -> dict[str, Parameter]:
    """The parameters and the system prompt, as far as they are of a kind that requests here can have."""
    found: dict[str, Parameter] = {}
    for layer in layers[:1]:
        for key, value in (await repository.json(layer, dict[str, object])).items():
            with contextlib.suppress(msgspec.ValidationError):
                found[key] = msgspec.convert(value, str | int | float | bool | tuple[str, ...])
    for layer in system[:1]:
        found["system"] = await repository.text(layer)
    return {key: value for key, value in list(found.items())[:_MOST_PARAMETERS] if _fits(key, value)}


def _fits(key: str, value: Parameter) -> bool:
    texts = (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ()
    short = len(texts) <= _MOST_STOPS and all(len(text) <= _MOST_PARAMETER_CHARACTERS for text in texts)
    finite = not isinstance(value, int | float) or abs(value) <= _MOST_NUMBER
    return _PARAMETER.fullmatch(key) is not None and short and finite


async def _licence(repository: Repository, layers: list[Descriptor]) -> str:
    """The first line of each licence's text; the whole texts come as files."""
    texts = [await repository.text(layer) for layer in layers[:8]]
    return "; ".join(line.strip()[:100] for text in texts for line in [text.strip().partition("\n")[0]] if line.strip())
