"""The table of hosts, and how the one that we live in is told: by the modules that its process has loaded."""

from __future__ import annotations

import sys

from lora_trainer.host.base import Host
from lora_trainer.registry import Entry, Registry

HOSTS = Registry(
    "host",
    (
        Entry("a1111", "AUTOMATIC1111", "AUTOMATIC1111's Stable Diffusion WebUI.", "lora_trainer.host.a1111:A1111"),
        Entry("forge", "Forge", "Stable Diffusion WebUI Forge.", "lora_trainer.host.forge:Forge"),
        Entry("reforge", "reForge", "reForge, and Forge as it was before its own backend.", "lora_trainer.host.forge:ReForge"),
        Entry("forge_neo", "Forge Neo", "The Neo branch of Forge Classic.", "lora_trainer.host.forge:ForgeNeo"),
        Entry("standalone", "Stand-alone", "No WebUI: a page of our own.", "lora_trainer.host.standalone:Standalone"),
    ),
)


def detect_host() -> str:
    """Returns the name, in the table, of the program whose process this is."""
    if "modules.shared" not in sys.modules:
        return "standalone"
    if "backend.memory_management" in sys.modules:
        version = getattr(sys.modules.get("modules_forge.forge_version"), "version", "")
        return "forge_neo" if version == "neo" else "forge"
    return "reforge" if "ldm_patched.modules.model_management" in sys.modules else "a1111"


def find_host() -> Host:
    """Returns the host that we live in."""
    host: Host = HOSTS.get(detect_host()).load()()
    return host
