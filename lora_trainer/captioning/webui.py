"""The captioner of the WebUI that we live in, through its host: its weights, its settings, under its lock."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

import torch
from PIL import Image

from lora_trainer.captioning.captioner import CaptionerSettings
from lora_trainer.errors import HostError


def load(settings: CaptionerSettings) -> WebUICaptioner:
    """Returns the captioner; nothing is read before it is entered."""
    return WebUICaptioner(settings)


class WebUICaptioner:
    """See `captioner.Captioner`. A prompt stands before each caption; beams and lengths are those of the WebUI's settings."""

    def __init__(self, settings: CaptionerSettings) -> None:
        self._settings = settings
        self._stack = ExitStack()

    def __enter__(self) -> WebUICaptioner:
        """Has the WebUI load its model.

        Raises:
            HostError: there is no WebUI, or it cannot load it.
        """
        if self._settings.host is None:
            raise HostError("There is no WebUI here whose captioner could be used. Choose blip.")
        self._own = self._stack.enter_context(self._settings.host.captioner())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def caption(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Returns a caption for each RGB picture, in order; the WebUI looks at them one by one."""
        prompt = f"{self._settings.prompt.strip()} " if self._settings.prompt.strip() else ""
        return [prompt + " ".join(self._own.describe(picture).split()) for picture in pictures]

    def move(self, device: torch.device) -> None:
        self._own.move(device.type != "cpu")
