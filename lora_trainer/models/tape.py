"""A tape on which a denoiser is walked through: what autograd keeps for the backward pass, in bytes, without a tensor.

Each operation keeps what the operation of that kind keeps, each tensor once however many operations keep it; nothing is kept
before the first trained layer. That is counting, not a table of measurements: `benchmarks/forecast.py` holds it against the
operations themselves.

Shapes: B items, `places` of a tensor are its rows times columns or its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lora_trainer.models.layers import Block, Layer, list_blocks
from lora_trainer.models.sizes import TextSizes, UNetSizes

FP32 = 4
TOKENS = 77
TRANSIENT = 1.5
"""Gradients that are alive at once beside what is kept, in the largest tensor of a place.

The gate of the feed-forward has three of half its input's size, a residual block three of its output's, half its input's.
"""


@dataclass(frozen=True)
class Use:
    """How a model is trained, as far as memory goes.

    Attributes:
        width, height: of the pictures, in pixels.
        batch_size: items of one forward.
        num_bytes: of a number of the frozen base: 2 for bf16 and fp16, 4 for fp32.
        rank: of the LoRA.
        selection: the trained layers, as `target_modules` names them.
        trains_unet, trains_text: which parts have a LoRA.
        checkpoints: whether the denoiser computes its activations again in the backward pass.
        drops: whether the LoRA's inputs are dropped at times; each layer then keeps an input of its own.
        accumulates: whether the gradients of a batch wait for those of another.
    """

    width: int
    height: int
    batch_size: int = 1
    num_bytes: int = 2
    rank: int = 16
    selection: tuple[str, ...] = ("attention",)
    trains_unet: bool = True
    trains_text: bool = False
    checkpoints: bool = False
    drops: bool = False
    accumulates: bool = False


class Value:
    """A tensor on the tape, by its bytes and whether a gradient goes back through it."""

    __slots__ = ("channels", "needs_grad", "num_bytes", "places")

    def __init__(self, places: int, channels: int, num_bytes: int, *, needs_grad: bool) -> None:
        self.places, self.channels, self.num_bytes, self.needs_grad = places, channels, num_bytes, needs_grad


@dataclass
class Tape:
    """What autograd keeps while the walk goes on.

    Attributes:
        use: see there.
        targets: names of the layers with a LoRA.
        layers: all layers by name.
        held: bytes that are kept now.
    """

    use: Use
    targets: frozenset[str]
    layers: Mapping[str, Layer]
    held: int = 0
    _kept: set[Value] = field(default_factory=set)
    _largest: int | None = None
    _trained: int = 0
    _marks: dict[int, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """The most bytes that forward and backward hold at once, with the gradients of the trained weights, which are fp32.

        The backward pass comes to a place of the walk with the gradients of all that lies behind it.
        """
        gradients = FP32 * self._trained
        if self.use.accumulates:
            return gradients + max(self._marks.values(), default=0)
        return max((held + gradients - FP32 * before for before, held in self._marks.items()), default=0)

    def make(self, places: int, channels: int, *, needs_grad: bool) -> Value:
        """Returns a new tensor [B, places, channels]."""
        num_bytes = self.use.batch_size * places * channels * self.use.num_bytes
        value = Value(places, channels, num_bytes, needs_grad=needs_grad)
        if needs_grad:
            self._see(num_bytes)
        return value

    def keep(self, *values: Value) -> None:
        """Keeps tensors for the backward pass, each once."""
        for value in values:
            if value not in self._kept:
                self._kept.add(value)
                self.keep_bytes(value.num_bytes)
                self._see(value.num_bytes)

    def keep_bytes(self, num_bytes: int) -> None:
        self.held += num_bytes

    def checkpoint(self, work: Callable[[], Value], *inputs: Value) -> Value:
        """Walks through `work`; with checkpointing only its inputs stay, and its own are held while it is done again."""
        if not self.use.checkpoints:
            return work()
        before, kept = self.held, set(self._kept)
        self._largest = 0
        result = work()
        inner, largest = self.held - before, self._largest
        self.held, self._kept, self._largest = before, kept, None
        if inner:
            self.keep(*inputs)
        self._mark(inner + round(TRANSIENT * largest))
        return result

    def norm(self, x: Value) -> Value:
        """A group norm or layer norm."""
        if x.needs_grad:
            self.keep(x)
        return self.make(x.places, x.channels, needs_grad=x.needs_grad)

    def silu(self, x: Value) -> Value:
        return self.norm(x)  # it keeps its input alike

    def layer(self, name: str, x: Value, places: int | None = None) -> Value:
        """A linear layer or a convolution, with its LoRA where it has one. `places` of its output; None: those of x."""
        layer = self.layers[name]
        places = x.places if places is None else places
        if name not in self.targets:
            return self.make(places, layer.outputs, needs_grad=x.needs_grad)
        self._trained += layer.lora_numbers(self.use.rank)
        seen = x
        if self.use.drops:
            seen = self.make(x.places, x.channels, needs_grad=True)
            if x.needs_grad:
                self.keep_bytes(x.num_bytes // self.use.num_bytes)  # which ones were dropped, a byte each
        self.keep(seen, self.make(places, self.use.rank, needs_grad=True))
        if self.use.num_bytes < FP32:  # the LoRA's weights, in the base's precision
            self.keep_bytes(self.use.num_bytes * layer.lora_numbers(self.use.rank))
        return self.make(places, layer.outputs, needs_grad=True)

    def convolve(self, name: str, x: Value, places: int | None = None) -> Value:
        """A convolution: it keeps its input, whether its weights are trained or not."""
        if x.needs_grad:
            self.keep(x)
        return self.layer(name, x, places)

    def attend(self, query: Value, key: Value, value: Value, heads: int) -> Value:
        """Attention in one kernel that never holds the matrix of all pairs."""
        needs_grad = query.needs_grad or key.needs_grad or value.needs_grad
        output = self.make(query.places, query.channels, needs_grad=needs_grad)
        if needs_grad:
            self.keep(query, key, value, output)
            self.keep_bytes(self.use.batch_size * heads * query.places * FP32)
        return output

    def join(self, x: Value, other: Value) -> Value:
        """Two tensors side by side in a new one."""
        return self.make(x.places, x.channels + other.channels, needs_grad=x.needs_grad or other.needs_grad)

    def add(self, x: Value, other: Value) -> Value:
        return self.make(x.places, x.channels, needs_grad=x.needs_grad or other.needs_grad)

    def _see(self, num_bytes: int) -> None:
        if self._largest is not None:
            self._largest = max(self._largest, num_bytes)
        else:
            self._mark(round(TRANSIENT * num_bytes))

    def _mark(self, num_bytes: int) -> None:
        """Notes what is held at this place, and that more with it."""
        self._marks[self._trained] = max(self._marks.get(self._trained, 0), self.held + num_bytes)


def walk_unet(sizes: UNetSizes, tape: Tape, text: Value) -> Value:
    """Walks a denoiser's forward pass on a tape, and returns its output."""
    height, width = -(-tape.use.height // 8), -(-tape.use.width // 8)
    areas = [(height, width)]
    for _ in sizes.channels[1:]:
        areas.append((-(-areas[-1][0] // 2), -(-areas[-1][1] // 2)))
    places = [rows * columns for rows, columns in areas]
    x = tape.convolve("conv_in", tape.make(places[0], sizes.in_channels, needs_grad=False))
    skips = [x]
    for block in list_blocks(sizes):
        is_up = block.name.startswith("up")
        for index in range(len(block.resnet_inputs)):
            if is_up:
                x = tape.join(x, skips.pop())
            x = _walk_resnet(tape, f"{block.name}.resnets.{index}", x)
            if index < block.num_attentions:
                x = _walk_transformer(
                    tape, f"{block.name}.attentions.{index}", x, text, block, linear=sizes.uses_linear_projection
                )
            if block.name.startswith("down"):
                skips.append(x)
        if block.resampler.startswith("down"):
            x = tape.convolve(f"{block.name}.{block.resampler}", x, places[block.level + 1])
            skips.append(x)
        elif block.resampler:
            larger = tape.make(places[block.level - 1], x.channels, needs_grad=x.needs_grad)
            x = tape.convolve(f"{block.name}.{block.resampler}", larger)
    return tape.convolve("conv_out", tape.silu(tape.norm(x)))


def walk_text(sizes: TextSizes, tape: Tape) -> Value:
    """Walks a text encoder's forward pass on a tape, and returns its output."""
    x = tape.make(TOKENS, sizes.width, needs_grad=False)
    for index in range(sizes.layers):
        name = f"text_model.encoder.layers.{index}"
        normed = tape.norm(x)
        query, key, value = (tape.layer(f"{name}.self_attn.{end}", normed) for end in ("q_proj", "k_proj", "v_proj"))
        x = tape.add(x, tape.layer(f"{name}.self_attn.out_proj", tape.attend(query, key, value, sizes.heads)))
        inner = tape.layer(f"{name}.mlp.fc1", tape.norm(x))
        output = tape.norm(inner)  # an activation keeps its input as a norm does
        if sizes.activation == "quick_gelu":
            tape.keep(tape.make(inner.places, inner.channels, needs_grad=True))
        x = tape.add(x, tape.layer(f"{name}.mlp.fc2", output))
    return tape.norm(x)


def _walk_resnet(tape: Tape, name: str, x: Value) -> Value:
    def work() -> Value:
        hidden = tape.convolve(f"{name}.conv1", tape.silu(tape.norm(x)))
        hidden = tape.add(hidden, hidden)  # the timestep's
        hidden = tape.convolve(f"{name}.conv2", tape.silu(tape.norm(hidden)))
        shortcut = tape.convolve(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut" in tape.layers else x
        return tape.add(shortcut, hidden)

    return tape.checkpoint(work, x)


def _walk_transformer(tape: Tape, name: str, x: Value, text: Value, block: Block, *, linear: bool) -> Value:
    normed = tape.norm(x)
    hidden = tape.layer(f"{name}.proj_in", normed) if linear else tape.convolve(f"{name}.proj_in", normed)
    for index in range(block.depth):
        hidden = _walk_block(tape, f"{name}.transformer_blocks.{index}", hidden, text, block.heads)
    project = tape.layer if linear else tape.convolve
    return tape.add(x, project(f"{name}.proj_out", hidden))


def _walk_block(tape: Tape, name: str, x: Value, text: Value, heads: int) -> Value:
    def work() -> Value:
        hidden = x
        for attention in ("attn1", "attn2"):
            normed = tape.norm(hidden)
            source = normed if attention == "attn1" else text
            query = tape.layer(f"{name}.{attention}.to_q", normed)
            key, value = (tape.layer(f"{name}.{attention}.{end}", source) for end in ("to_k", "to_v"))
            output = tape.attend(query, key, value, heads)
            hidden = tape.add(hidden, tape.layer(f"{name}.{attention}.to_out.0", output))
        both = tape.layer(f"{name}.ff.net.0.proj", tape.norm(hidden))
        gate = tape.make(both.places, both.channels // 2, needs_grad=both.needs_grad)
        if both.needs_grad:
            tape.keep(gate, both)
        product = tape.make(both.places, both.channels // 2, needs_grad=both.needs_grad)
        return tape.add(hidden, tape.layer(f"{name}.ff.net.2", product))

    return tape.checkpoint(work, x, text)
