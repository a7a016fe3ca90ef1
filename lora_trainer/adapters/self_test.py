"""The self-test of a LoRA file: would the WebUI apply all of it to this base? One check per trap of the WebUI's loader.

The WebUI drops what it cannot place without a word and still lists the file's hash, so looking at its output proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.adapters.container import read_header
from lora_trainer.adapters.inspect import WEBUI_FORM, FileReport, inspect_file
from lora_trainer.adapters.keys import FOREIGN_FORMS, group_by_module, incomplete_attentions
from lora_trainer.models.header import Header

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Check:
    """One check. `detail` says what was found; for a failed one also what it means in the WebUI and what to do."""

    name: str
    passed: bool
    detail: str


def self_test(path: Path, webui_layers: Shapes | None = None) -> list[Check]:
    """Returns the checks of a file, in the order in which a reader wants them.

    Args:
        path: the file.
        webui_layers: the base's layers and the shapes of their weights by the WebUI's key, from `models.webui.webui_layers`.
            Without it the check of the layers is left out.

    Raises:
        AdapterError: the file cannot be read at all.
    """
    report = inspect_file(path)
    header = read_header(path)
    modules = group_by_module(header.shapes)
    checks = [_check_form(report)]
    if report.form != WEBUI_FORM:
        return checks
    if webui_layers is not None:
        checks.append(_check_layers(header, modules, webui_layers))
    checks += [
        _check_open_clip(report, modules),
        _check_effect(report),
        _check_finite(report),
        _check_class(report),
        _check_alias(report),
        _check_hash(report),
    ]
    return checks


def _check_form(report: FileReport) -> Check:
    if report.form == WEBUI_FORM:
        return Check("form of the keys", True, f"the WebUI's own, {' and '.join(report.kinds) or 'kind unknown'}")
    return Check(
        "form of the keys",
        False,
        f"{report.form}. AUTOMATIC1111's WebUI loads such a file without an error, and the picture does not change. "
        + FOREIGN_FORMS.get(report.form, ("", "Ask its maker for the file in the WebUI's form, that is kohya's key names."))[1],
    )


def _check_layers(header: Header, modules: Mapping[str, Mapping[str, str]], layers: Shapes) -> Check:
    unknown = [module for module in modules if module not in layers]
    misfits = [
        problem
        for module, keys in modules.items()
        if module in layers and (problem := _find_misfit(header, module, keys, layers[module]))
    ]
    if not unknown and not misfits:
        return Check("layers of this base", True, f"all {len(modules)} are in it, with fitting shapes")
    found = []
    if unknown:
        found.append(f"{len(unknown)} of {len(modules)} are not in this base (first: {unknown[0]})")
    if misfits:
        found.append(f"{len(misfits)} do not fit (first: {misfits[0]})")
    return Check(
        "layers of this base",
        False,
        f"{'; '.join(found)}. The WebUI leaves them out without a word. Use the file with the base that it was trained on.",
    )


def _find_misfit(header: Header, module: str, keys: Mapping[str, str], weight: tuple[int, ...]) -> str | None:
    """Returns how a pair does not fit the layer's weight [out, in, ...]; None when it does, or is of another kind."""
    if "lora_up.weight" not in keys and "lora_down.weight" not in keys:
        return None
    lacking = [ending for ending in ("lora_up.weight", "lora_down.weight") if ending not in keys]
    if lacking:
        return f"{module} lacks {lacking[0]}"
    up, down = (header.shapes[keys[ending]] for ending in ("lora_up.weight", "lora_down.weight"))
    if len(up) < 2 or len(down) < 2 or math.prod(up[1:]) != down[0]:
        return f"{module}: up {list(up)} and down {list(down)} do not multiply"
    has_middle = "lora_mid.weight" in keys
    if up[0] != weight[0] or down[1] != weight[1] or (math.prod(down[1:]) != math.prod(weight[1:]) and not has_middle):
        return f"{module}: up {list(up)} and down {list(down)} are not for a weight of {list(weight)}"
    return None


def _check_open_clip(report: FileReport, modules: Mapping[str, Mapping[str, str]]) -> Check:
    is_sd2 = report.webui_class == "SD2" or report.possible_bases == ("SD2",)
    incomplete = sorted(incomplete_attentions(modules, is_sd2=is_sd2))
    if not incomplete:
        return Check("OpenCLIP attention", True, "each has all four of q, k, v and out, or the file has none")
    return Check(
        "OpenCLIP attention",
        False,
        f"{len(incomplete)} have not all four of q_proj, k_proj, v_proj, out_proj (first: {incomplete[0]}). The WebUI then "
        "leaves out the others as well, without a word. Export the file again here: pairs of zeros complete it.",
    )


def _check_effect(report: FileReport) -> Check:
    if report.has_effect is None:
        return Check("effect", True, "not examined for this kind of LoRA")
    if report.has_effect:
        return Check("effect", True, "the weights are not zero")
    return Check(
        "effect",
        False,
        "every pair of matrices multiplies to zero, so the picture does not change at any weight. The training made no step, or "
        "its learning rate was 0: look at the loss and at unet_lr, text_encoder_lr.",
    )


def _check_finite(report: FileReport) -> Check:
    if not report.non_finite:
        return Check("finite numbers", True, "no NaN or infinity")
    return Check(
        "finite numbers",
        False,
        f"NaN or infinity in {len(report.non_finite)} layers (first: {report.non_finite[0]}). Pictures turn black, or the "
        "WebUI stops with a NaN error. Take an earlier step of the run, and train with a lower learning_rate.",
    )


def _check_class(report: FileReport) -> Check:
    possible = " or ".join(report.possible_bases) or "no Stable Diffusion"
    if report.webui_class in report.possible_bases or report.webui_class == "Unknown":
        return Check("class of the card", True, f"{report.webui_class}; the layers allow {possible}")
    return Check(
        "class of the card",
        False,
        f"the metadata says {report.webui_class}, the layers are those of {possible}. The WebUI hides the card while "
        "the right base is loaded. Set 'sd version' on the card, or export the file again here.",
    )


def _check_alias(report: FileReport) -> Check:
    if report.alias == report.path.stem:
        return Check("alias", True, f"<lora:{report.alias}:1>")
    return Check(
        "alias",
        False,
        f"the file is named {report.path.stem!r} and calls itself {report.alias!r}: a click on the card writes "
        f"<lora:{report.alias}:1>, and a second file of that alias makes it match nothing. Name the file as it calls itself.",
    )


def _check_hash(report: FileReport) -> Check:
    if report.hash_state != "wrong":
        return Check(
            "hash", True, f"{report.hash_state}" + ("; the WebUI computes its own" if report.hash_state == "missing" else "")
        )
    return Check(
        "hash",
        False,
        "sshs_model_hash is not that of the weights. The WebUI trusts it, so pictures would carry the hash of another "
        "file. The file was changed after it was written: get it again.",
    )
