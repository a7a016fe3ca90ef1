"""The layers of a Stable Diffusion model, and the number of its weights, from its sizes alone.

Names are diffusers' and transformers' own. Standard library only; a test holds them against the modules themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from lora_trainer.models.sizes import TextSizes, UNetSizes, VaeSizes


@dataclass(frozen=True)
class Layer:
    """A layer that a LoRA can go into: "linear" or "conv", numbers of an input of its matrix, and of an output."""

    kind: str
    inputs: int
    outputs: int

    def lora_numbers(self, rank: int) -> int:
        return rank * (self.inputs + self.outputs)


@dataclass(frozen=True)
class Block:
    """One block of a denoiser, by diffusers' name.

    Attributes:
        level: 0 is the outermost.
        channels: of its outputs.
        resnet_inputs: channels that each residual block gets.
        num_attentions: how many of them an attention follows, counted from the first.
        depth: transformer blocks of each attention.
        heads: of each attention.
        resampler: name of its down- or up-sampler's convolution; "" for none.
    """

    name: str
    level: int
    channels: int
    resnet_inputs: tuple[int, ...]
    num_attentions: int
    depth: int
    heads: int
    resampler: str = ""


def unet_layers(sizes: UNetSizes) -> dict[str, Layer]:
    """Returns the layers of a denoiser that a LoRA can go into, by diffusers' names."""
    width, condition = 4 * sizes.channels[0], sizes.condition_width
    layers = {
        "conv_in": _conv(sizes.in_channels, sizes.channels[0]),
        "time_embedding.linear_1": Layer("linear", sizes.channels[0], width),
        "time_embedding.linear_2": Layer("linear", width, width),
        "conv_out": _conv(sizes.channels[0], 4),
    }
    if condition is not None:
        layers["add_embedding.linear_1"] = Layer("linear", condition, width)
        layers["add_embedding.linear_2"] = Layer("linear", width, width)
    for block in list_blocks(sizes):
        for index, inputs in enumerate(block.resnet_inputs):
            name = f"{block.name}.resnets.{index}"
            layers[f"{name}.conv1"] = _conv(inputs, block.channels)
            layers[f"{name}.time_emb_proj"] = Layer("linear", width, block.channels)
            layers[f"{name}.conv2"] = _conv(block.channels, block.channels)
            if inputs != block.channels:
                layers[f"{name}.conv_shortcut"] = Layer("conv", inputs, block.channels)
        for index in range(block.num_attentions):
            layers |= _transformer_layers(f"{block.name}.attentions.{index}", block, sizes.context_width)
        if block.resampler:
            layers[f"{block.name}.{block.resampler}"] = _conv(block.channels, block.channels)
    return layers


def text_layers(sizes: TextSizes) -> dict[str, Layer]:
    """Returns the layers of a text encoder that a LoRA can go into."""
    layers = {}
    for index in range(sizes.layers):
        name = f"text_model.encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layers[f"{name}.self_attn.{projection}"] = Layer("linear", sizes.width, sizes.width)
        layers[f"{name}.mlp.fc1"] = Layer("linear", sizes.width, sizes.inner_width)
        layers[f"{name}.mlp.fc2"] = Layer("linear", sizes.inner_width, sizes.width)
    return layers


def list_blocks(sizes: UNetSizes) -> list[Block]:
    """Returns a denoiser's blocks in the order of its forward pass."""
    channels, last = sizes.channels, len(sizes.channels) - 1
    blocks = []
    skips, before = [channels[0]], channels[0]
    for level, (width, depth) in enumerate(zip(channels, sizes.depths, strict=True)):
        resampler = "downsamplers.0.conv" if level < last else ""
        inputs = (before, *[width] * (sizes.layers - 1))
        attentions = sizes.layers if depth else 0
        blocks.append(Block(f"down_blocks.{level}", level, width, inputs, attentions, depth, sizes.heads[level], resampler))
        skips += [width] * (sizes.layers + bool(resampler))
        before = width
    width = channels[-1]
    blocks.append(Block("mid_block", last, width, (width, width), 1, sizes.mid_depth, sizes.heads[-1]))
    for number, level in enumerate(reversed(range(last + 1))):
        width, depth = channels[level], sizes.depths[level]
        inputs = []
        for _ in range(sizes.layers + 1):
            inputs.append(before + skips.pop())
            before = width
        attentions = len(inputs) if depth else 0
        resampler = "upsamplers.0.conv" if level else ""
        blocks.append(Block(f"up_blocks.{number}", level, width, tuple(inputs), attentions, depth, sizes.heads[level], resampler))
    return blocks


def count_unet(sizes: UNetSizes) -> int:
    """Returns the number of a denoiser's weights."""
    layers = unet_layers(sizes)
    # Queries, keys and values have no bias.
    total = sum(layer.inputs * layer.outputs for layer in layers.values())
    total += sum(layer.outputs for name, layer in layers.items() if not name.endswith((".to_q", ".to_k", ".to_v")))
    total += 2 * sizes.channels[0]
    for block in list_blocks(sizes):
        total += sum(2 * (inputs + block.channels) for inputs in block.resnet_inputs)
        total += block.num_attentions * 2 * block.channels * (1 + 3 * block.depth)
    return total


def count_text(sizes: TextSizes) -> int:
    """Returns the number of a text encoder's weights, its unused last layer included."""
    layers = text_layers(sizes).values()
    norms = 2 * sizes.width * (2 * sizes.layers + 1)
    embeddings = (sizes.vocabulary + sizes.positions) * sizes.width
    projection = sizes.width * (sizes.pooled_width or 0)
    return sum(layer.inputs * layer.outputs + layer.outputs for layer in layers) + norms + embeddings + projection


def count_vae(sizes: VaeSizes) -> int:
    """Returns the number of an autoencoder's weights."""
    channels, deepest = sizes.channels, sizes.channels[-1]
    middle = 2 * _count_resnet(deepest, deepest) + 4 * (deepest * deepest + deepest) + 2 * deepest
    encoder = _count_conv(3, channels[0]) + middle + 2 * deepest + _count_conv(deepest, 8)
    decoder = _count_conv(4, deepest) + middle + 2 * channels[0] + _count_conv(channels[0], 3)
    before = channels[0]
    for level, width in enumerate(channels):
        encoder += _count_resnet(before, width) + (sizes.layers - 1) * _count_resnet(width, width)
        encoder += _count_conv(width, width) if level < len(channels) - 1 else 0
        before = width
    before = deepest
    for level, width in enumerate(reversed(channels)):
        decoder += _count_resnet(before, width) + sizes.layers * _count_resnet(width, width)
        decoder += _count_conv(width, width) if level < len(channels) - 1 else 0
        before = width
    return encoder + decoder + (8 * 8 + 8) + (4 * 4 + 4)


def _transformer_layers(name: str, block: Block, context_width: int) -> dict[str, Layer]:
    width = block.channels
    layers = {f"{name}.{end}": Layer("linear", width, width) for end in ("proj_in", "proj_out")}
    for index in range(block.depth):
        inner = f"{name}.transformer_blocks.{index}"
        for attention, source in (("attn1", width), ("attn2", context_width)):
            layers[f"{inner}.{attention}.to_q"] = Layer("linear", width, width)
            layers[f"{inner}.{attention}.to_k"] = Layer("linear", source, width)
            layers[f"{inner}.{attention}.to_v"] = Layer("linear", source, width)
            layers[f"{inner}.{attention}.to_out.0"] = Layer("linear", width, width)
        layers[f"{inner}.ff.net.0.proj"] = Layer("linear", width, 8 * width)
        layers[f"{inner}.ff.net.2"] = Layer("linear", 4 * width, width)
    return layers


def _conv(inputs: int, outputs: int) -> Layer:
    return Layer("conv", 9 * inputs, outputs)


def _count_conv(inputs: int, outputs: int) -> int:
    return 9 * inputs * outputs + outputs


def _count_resnet(inputs: int, outputs: int) -> int:
    shortcut = inputs * outputs + outputs if inputs != outputs else 0
    return _count_conv(inputs, outputs) + _count_conv(outputs, outputs) + 2 * (inputs + outputs) + shortcut
