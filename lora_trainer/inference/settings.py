"""How a picture is drawn, and what is wrong with such settings. Without torch: a page can tell before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from lora_trainer.errors import Problem
from lora_trainer.inference.table import SAMPLERS

SIZE_STEP = 8  # pixels to a latent


@dataclass(frozen=True)
class GenerateSettings:
    """What is drawn, and how.

    Attributes:
        prompt, negative_prompt: what to draw, and what to draw away from.
        width, height: in pixels, multiples of 8 from 64 to 4096.
        steps: of the sampler, 2 to 150. 20 is usual.
        cfg_scale: how closely the prompt is followed, 1 to 30. 1 ignores the negative prompt; 7 is usual.
        seed: of the noise. The same seed and settings give the same picture, as the WebUI's noise source "CPU" does.
        sampler: a name in the table of samplers.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = 512
    height: int = 512
    steps: int = 20
    cfg_scale: float = 7.0
    seed: int = 0
    sampler: str = "euler_a"

    def problems(self) -> list[Problem]:
        """Returns every value that cannot be used."""
        found = []
        for name in ("prompt", "negative_prompt"):
            if any(0xD800 <= ord(character) <= 0xDFFF for character in getattr(self, name)):
                found.append(Problem(name, f"{getattr(self, name)!r} contains half a character. Type it anew."))
        for name in ("width", "height"):
            value = getattr(self, name)
            if value % SIZE_STEP or not 64 <= value <= 4096:
                found.append(Problem(name, f"({value}) must be a multiple of {SIZE_STEP} from 64 to 4096; 512 is usual for SD1."))
        if not 2 <= self.steps <= 150:
            found.append(Problem("steps", f"({self.steps}) must be from 2 to 150; 20 is usual."))
        if not 1 <= self.cfg_scale <= 30:
            found.append(Problem("cfg_scale", f"({self.cfg_scale}) must be from 1 to 30; 7 is usual."))
        if not 0 <= self.seed < 2**63:
            found.append(Problem("seed", f"({self.seed}) must be from 0 to {2**63 - 1}."))
        if self.sampler not in SAMPLERS.names():
            found.append(Problem("sampler", f"{self.sampler!r} does not exist. Known: {', '.join(SAMPLERS.names())}."))
        return found
