"""The metadata that a LoRA file should have, from what its keys and shapes say: for files made elsewhere, and for edited ones.

The WebUI takes a file with any metadata and no word on its base for SD1, and hides it while another base is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.adapters.container import model_hash, read_array, read_header
from lora_trainer.adapters.inspect import possible_bases, webui_class
from lora_trainer.adapters.keys import FOREIGN_FORMS, foreign_form, group_by_module, kinds_of, part_of
from lora_trainer.adapters.metadata import IMPLEMENTATION, MODELSPEC_VERSION
from lora_trainer.adapters.writing import copy_lora
from lora_trainer.errors import AdapterError
from lora_trainer.models.header import Header

# What the WebUI and other tools read of a base of a class.
BASE_FACTS = {
    "SD1": {"ss_base_model_version": "sd_v1", "ss_v2": "False", "modelspec.architecture": "stable-diffusion-v1/lora"},
    "SD2": {"ss_base_model_version": "sd_v2", "ss_v2": "True", "modelspec.architecture": "stable-diffusion-v2-512/lora"},
    "SDXL": {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    },
}
TEXT_WIDTHS = {768: "SD1", 1024: "SD2"}
_HASHES = ("sshs_model_hash", "sshs_legacy_hash")


@dataclass(frozen=True)
class Repaired:
    """What `repair` did.

    Attributes:
        path: where the file is.
        changes: one "key: old -> new" for each value that was missing or wrong; empty when nothing was, and nothing written.
    """

    path: Path
    changes: tuple[str, ...]


def repair(path: Path, *, base: str | None = None) -> Repaired:
    """Fills in what is missing of a file's metadata and corrects what its layers contradict. The weights stay byte for byte.

    Args:
        path: a file in the WebUI's form, of any kind of LoRA. It is replaced, whole or not at all.
        base: "SD1", "SD2" or "SDXL", for a file whose layers fit more than one and whose metadata do not say.

    Raises:
        AdapterError: it cannot be read, is in another form, or nothing tells its base.
        LoraInUseError: a program holds it; it stays as it was.
    """
    header = read_header(path)
    if form := foreign_form(header.shapes):
        raise AdapterError(f"{path} is in another form ({form}), which metadata do not mend. {FOREIGN_FORMS[form][1]}")
    bases = decide_bases(header)
    if base is not None and base not in bases:
        raise AdapterError(f"base {base!r} does not fit {path.name}, whose layers are those of {' or '.join(bases) or 'none'}.")
    if base is None and len(bases) != 1:
        fitting = " or ".join(bases) or "no Stable Diffusion base"
        raise AdapterError(f"{path.name} fits {fitting}, and nothing in it tells more. Say which base it is for.")
    metadata = complete_metadata(path, base=base or bases[0])
    metadata |= {"ss_output_name": path.stem, "modelspec.title": path.stem}
    stated = header.metadata.get("sshs_model_hash", "")
    before = dict(header.metadata)
    if stated != (actual := model_hash(path)):
        metadata["sshs_model_hash"] = actual
    changed = {key: value for key, value in metadata.items() if before.get(key) != value}
    if not changed:
        return Repaired(path, ())
    changes = tuple(f"{key}: {before.get(key, 'missing')} -> {value}" for key, value in sorted(changed.items()))
    return Repaired(copy_lora(path, path, metadata), changes)


def complete_metadata(path: Path, *, base: str | None = None) -> dict[str, str]:
    """Returns a file's metadata with what can be known added, and the base corrected where the layers contradict it.

    Without hashes, which belong to the bytes. A base that nothing tells stays unsaid.

    Args:
        base: "SD1", "SD2" or "SDXL", of a file that may be for several.
    """
    header = read_header(path)
    own = {key: value for key, value in header.metadata.items() if key not in _HASHES}
    bases = (base,) if base else decide_bases(header)
    facts = BASE_FACTS[bases[0]] if len(bases) == 1 else {}
    known = {"modelspec.sai_model_spec": MODELSPEC_VERSION, "modelspec.implementation": IMPLEMENTATION, **_network_facts(header)}
    if facts and ("ss_base_model_version" not in own or webui_class(own) != bases[0]):
        return {**known, **own, **facts}
    return {**known, **facts, **own}


def decide_bases(header: Header) -> tuple[str, ...]:
    """Returns which of "SD1", "SD2", "SDXL" a file is for: what its layers allow, of several what its metadata say."""
    modules = group_by_module(header.shapes)
    bases = possible_bases(header, {module: keys for module, keys in modules.items() if part_of(module)})
    if len(bases) < 2:
        return bases
    if header.metadata.get("ss_base_model_version") and webui_class(header.metadata) in bases:
        return (webui_class(header.metadata),)
    for module, keys in modules.items():
        down = header.shapes.get(keys.get("lora_down.weight", ""), ())
        if module.startswith("lora_te_") and module.endswith("_self_attn_q_proj") and len(down) >= 2 and down[1] in TEXT_WIDTHS:
            return (TEXT_WIDTHS[down[1]],)
    return bases


def describe_ranks(ranks: Sequence[int], alphas: Sequence[float]) -> dict[str, str]:
    """Returns the metadata of rank and alpha: the most frequent of a file's layers; nothing for what no layer has."""
    facts = {"ss_network_dim": str(_most_frequent(ranks))} if ranks else {}
    return facts | ({"ss_network_alpha": f"{_most_frequent([round(alpha, 6) for alpha in alphas]):g}"} if alphas else {})


def _network_facts(header: Header) -> dict[str, str]:
    kinds = set(kinds_of(header.shapes))
    modules = [keys for keys in group_by_module(header.shapes).values() if header.shapes.get(keys.get("lora_down.weight", ""))]
    arrays = [read_array(header, keys["alpha"]) for keys in modules if "alpha" in keys]
    alphas = [float(array.reshape(-1)[0]) for array in arrays if array is not None and array.size == 1]
    ranks = [header.shapes[keys["lora_down.weight"]][0] for keys in modules]
    return {"ss_network_module": "networks.lora" if kinds <= {"LoRA"} else "lycoris.kohya"} | describe_ranks(ranks, alphas)


def _most_frequent(values: Sequence[float]) -> float:
    return Counter(values).most_common(1)[0][0]
