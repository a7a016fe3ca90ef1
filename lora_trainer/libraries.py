"""Imports the model libraries ahead, in a thread of its own: the longest part of a start, and nobody has to wait for it.

It begins when somebody means to train (a base model is chosen on the page, or the command is given) and goes on while the form is
filled in, pictures are scanned and weights are read. Not at the start of a WebUI, whose users mostly do not train. Standard
library only, as far as this file goes.
"""

from __future__ import annotations

import importlib
import logging
import threading

# In the order of need. What each brings along, the next finds there.
LIBRARIES = (
    "torch",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "transformers.models.clip.modeling_clip",
    "peft.tuners.lora",
)

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_thread: threading.Thread | None = None


def load_ahead() -> None:
    """Begins with the imports, once a process. Returns at once."""
    global _thread
    with _lock:
        if _thread is None:
            _thread = threading.Thread(target=_import_all, name="lora_trainer libraries", daemon=True)
            _thread.start()


def wait_for_libraries() -> None:
    """Returns when imports that were begun are done, so that no two threads are in the midst of one library."""
    if _thread is not None and _thread is not threading.current_thread():
        _thread.join()


def _import_all() -> None:
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError as error:  # whoever needs it says so, with what to do
            _logger.info("%s could not be imported ahead: %s", name, error)
