"""The table of samplers.

An entry's target is `build(schedule: NoiseSchedule) -> scheduler`. Its options `sampler` and `schedule_type` are the WebUI's
words for it, as they stand in a picture's parameters.
"""

from __future__ import annotations

from lora_trainer.registry import Entry, Registry

_BUILDERS = "lora_trainer.inference.samplers"

SAMPLERS = Registry(
    "sampler",
    (
        Entry(
            name="euler_a",
            label="Euler a",
            help="Adds fresh noise at every step: soft, varied pictures; the WebUI's old default.",
            target=f"{_BUILDERS}:build_euler_a",
            options={"sampler": "Euler a", "schedule_type": "Automatic"},
        ),
        Entry(
            name="dpmpp_2m_karras",
            label="DPM++ 2M Karras",
            help="Settles quickly: 20 steps give a finished picture; the WebUI's default.",
            target=f"{_BUILDERS}:build_dpmpp_2m_karras",
            options={"sampler": "DPM++ 2M", "schedule_type": "Karras"},
        ),
        Entry(
            name="ddim",
            label="DDIM",
            help="The plain one: even steps, no fresh noise. Good for comparing.",
            target=f"{_BUILDERS}:build_ddim",
            options={"sampler": "DDIM", "schedule_type": "Automatic"},
        ),
    ),
)
