"""What becomes of a captioner's words before they are saved: replaced, cleaned, joined with the caption that is there.

The caption that is there stays to the letter; only what the captioner wrote is replaced in and cleaned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lora_trainer.dataset.bulk import put_trigger_first, remove_words, replace_words

Mode = Literal["missing", "overwrite", "prepend", "append"]
MODES: tuple[Mode, ...] = ("missing", "overwrite", "prepend", "append")


@dataclass(frozen=True)
class Wording:
    """How a caption is made of a captioner's words.

    Attributes:
        mode: "missing" leaves captions that are there alone, "overwrite" writes all anew, "prepend" and "append" put the new
            words before or behind those that are there, with a comma between.
        trigger: comes first, once; "" for none.
        banned: words and phrases that are taken out.
        replacements: words and phrases by what comes in their place. Done before `banned`.
    """

    mode: Mode = "missing"
    trigger: str = ""
    banned: tuple[str, ...] = ()
    replacements: Mapping[str, str] = field(default_factory=dict)

    def compose(self, written: str, present: str) -> str:
        """Returns the caption of a picture.

        Args:
            written: by the captioner.
            present: the caption that is there, "" for none.
        """
        (cleaned,) = remove_words(self.banned)(replace_words(self.replacements)([written]))
        joined = self._join(cleaned.strip(" ,"), present)
        if not self.trigger:
            return joined
        (with_trigger,) = put_trigger_first(self.trigger)([joined])
        return with_trigger

    def _join(self, new: str, present: str) -> str:
        if self.mode not in ("prepend", "append") or not present or not new:
            return new or (present if self.mode in ("prepend", "append") else "")
        return f"{new}, {present.lstrip(' ,')}" if self.mode == "prepend" else f"{present.rstrip(' ,')}, {new}"
