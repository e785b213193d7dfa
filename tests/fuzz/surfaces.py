"""Every way in that is fuzzed, by name."""

from fuzz.catalogues import CATALOGUE
from fuzz.gguf import GGUF
from fuzz.manifests import MANIFEST
from fuzz.sources import ADDRESS, ARTEFACT, CHALLENGE, LISTING, REFERENCE
from fuzz.transfers import TRANSFER

SURFACES = {
    surface.name: surface
    for surface in (GGUF, MANIFEST, REFERENCE, LISTING, ARTEFACT, CHALLENGE, ADDRESS, CATALOGUE, TRANSFER)
}
