"""How much memory a Stable Diffusion model takes while a LoRA is trained in it, counted from its sizes alone.

Not counted: what kernels take inside themselves. Standard library only, so that a page can ask at every keystroke.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_trainer.models.detect import Detection
from lora_trainer.models.layers import count_text, count_unet, count_vae, text_layers, unet_layers
from lora_trainer.models.recognise import StableDiffusionFacts
from lora_trainer.models.sizes import TextSizes, VaeSizes
from lora_trainer.models.tape import FP32, TOKENS, Tape, Use, walk_text, walk_unet
from lora_trainer.models.targets import select_layers

STANDARD_VAE = VaeSizes(channels=(128, 256, 512, 512), layers=2)
"""Of every SD1, SD2 and SDXL; for checkpoints without one."""


@dataclass(frozen=True)
class Footprint:
    """Bytes by what they are for.

    Attributes:
        unet, text_encoders, vae: weights of the frozen base.
        lora_numbers: trained numbers, of all parts.
        lora_sides: their rows and columns, which is what Adafactor's state grows with.
        activations: what forward and backward hold at their peak, the gradients of the trained weights included.
        encoding: what the VAE holds while it encodes one picture.
        decoding: while it decodes one.
    """

    unet: int
    text_encoders: int
    vae: int
    lora_numbers: int
    lora_sides: int
    activations: int
    encoding: int
    decoding: int


def measure(detection: Detection, use: Use) -> Footprint:
    """Returns the footprint of training in a base.

    Raises:
        ConfigError: the selection names no layer of the model.
    """
    facts: StableDiffusionFacts = detection.facts
    layers = {"unet": unet_layers(facts.unet)}
    for index, sizes in enumerate(facts.text_encoders):
        layers["text_encoder_2" if index else "text_encoder"] = text_layers(sizes)
    kinds = {part: {name: layer.kind for name, layer in found.items()} for part, found in layers.items()}
    trained = {part: use.trains_unet if part == "unet" else use.trains_text for part in layers}
    targets = {part: frozenset(select_layers(part, kinds, use.selection)) if trained[part] else frozenset() for part in layers}
    adapted = [layers[part][name] for part, names in targets.items() for name in names]
    tape = Tape(use, targets["unet"], layers["unet"])
    text = tape.make(TOKENS, facts.unet.context_width, needs_grad=use.trains_text)
    text_bytes = sum(
        count_text_training(sizes, use, targets[part])
        for part, sizes in zip(list(layers)[1:], facts.text_encoders, strict=True)
        if targets[part]
    )
    walk_unet(facts.unet, tape, text)
    vae = facts.vae or STANDARD_VAE
    return Footprint(
        unet=use.num_bytes * count_unet(facts.unet),
        text_encoders=use.num_bytes * sum(map(count_text, facts.text_encoders)),
        vae=FP32 * count_vae(vae),
        lora_numbers=sum(layer.lora_numbers(use.rank) for layer in adapted),
        lora_sides=sum(2 * use.rank + layer.inputs + layer.outputs for layer in adapted),
        activations=tape.peak + text_bytes,
        encoding=FP32 * use.width * use.height * _encoder_channels(vae),
        decoding=FP32 * use.width * use.height * _decoder_channels(vae),
    )


def count_text_training(sizes: TextSizes, use: Use, targets: frozenset[str]) -> int:
    """Returns what a text encoder with a LoRA holds, until the denoiser's backward pass has come to it."""
    tape = Tape(use, targets, text_layers(sizes))
    walk_text(sizes, tape)
    return tape.held


def _encoder_channels(sizes: VaeSizes) -> int:
    """Returns the channels at full size that are alive at once: a residual block's input, and four tensors of its output."""
    return 5 * sizes.channels[0]


def _decoder_channels(sizes: VaeSizes) -> int:
    """The same of the decoder, whose outermost level begins with the channels of the next."""
    outer, inner = sizes.channels[0], sizes.channels[min(1, len(sizes.channels) - 1)]
    return max(3 * inner, inner + 4 * outer)
