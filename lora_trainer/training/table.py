"""The tables of optimizers and schedules. An entry is light; the functions are in `optimizers.py` and `schedules.py`.

Options of an optimizer: "rates", the learning rates between which it is no surprise; "usual", the words for what most people
take; "one_rate", whether all parts must have the same rate; "schedule", the only schedule that it is made for; "state_bytes", of
its state for each trained number, and "state_bytes_per_side" for each row and column of a trained matrix.
"""

from __future__ import annotations

from lora_trainer.registry import Entry, Registry

_OPTIMIZERS = "lora_trainer.training.optimizers"
_SCHEDULES = "lora_trainer.training.schedules"

OPTIMIZERS = Registry(
    "optimizer",
    (
        Entry(
            "adamw",
            "AdamW",
            "Right for almost everything. Learning rate 1e-4 to 2e-4.",
            f"{_OPTIMIZERS}:build_adamw",
            options={"rates": (1e-5, 5e-4), "usual": "1e-4 to 2e-4", "state_bytes": 8},
        ),
        Entry(
            "adamw8bit",
            "AdamW, 8 bit",
            "AdamW with a quarter of its memory, for high ranks on a small card. Learning rate 1e-4 to 2e-4.",
            f"{_OPTIMIZERS}:build_adamw8bit",
            package="bitsandbytes",
            options={"rates": (1e-5, 5e-4), "usual": "1e-4 to 2e-4", "state_bytes": 2},
        ),
        Entry(
            "adafactor",
            "Adafactor",
            "Next to no memory of its own and no further package; somewhat slower to learn than AdamW. "
            "Learning rate 1e-4 to 4e-4.",
            f"{_OPTIMIZERS}:build_adafactor",
            options={"rates": (1e-5, 1e-3), "usual": "1e-4 to 4e-4", "state_bytes": 0, "state_bytes_per_side": 4},
        ),
        Entry(
            "lion",
            "Lion",
            "Half of AdamW's memory, and steps of one size for every weight; for batches of 4 and more. "
            "A third to a tenth of AdamW's learning rate: 2e-5 to 5e-5.",
            f"{_OPTIMIZERS}:build_lion",
            options={"rates": (1e-6, 1.5e-4), "usual": "2e-5 to 5e-5", "state_bytes": 4},
        ),
        Entry(
            "prodigy",
            "Prodigy",
            "Finds the size of its steps by itself, when the right learning rate is not known. Learning rate 1, with a "
            "constant or cosine schedule; twice AdamW's memory.",
            f"{_OPTIMIZERS}:build_prodigy",
            package="prodigyopt",
            options={"rates": (0.1, 4.0), "usual": "1", "one_rate": True, "state_bytes": 16},
        ),
        Entry(
            "schedule_free",
            "Schedule-free AdamW",
            "Averages the weights instead of lowering the rate, when it is not known how long to train: every file is a "
            "finished one. Constant schedule, learning rate 2e-4 to 1e-3.",
            f"{_OPTIMIZERS}:build_schedule_free",
            package="schedulefree",
            options={"rates": (5e-5, 5e-3), "usual": "2e-4 to 1e-3", "schedule": "constant", "state_bytes": 8},
        ),
    ),
)

SCHEDULES = Registry(
    "schedule",
    (
        Entry("constant", "Constant", "The same rate throughout; choose among the step files.", f"{_SCHEDULES}:constant"),
        Entry("cosine", "Cosine", "Falls to zero along a half cosine; the last steps settle fine tones.", f"{_SCHEDULES}:cosine"),
        Entry("linear", "Linear", "Falls evenly to zero; calmer than cosine from the first step on.", f"{_SCHEDULES}:linear"),
        Entry(
            "polynomial",
            "Polynomial",
            "Falls with the square of what is left: fast at first, long and small at the end.",
            f"{_SCHEDULES}:polynomial",
        ),
        Entry(
            "cosine_with_restarts",
            "Cosine with restarts",
            "Several cosines, one after the other (lr_restarts): a settled file at the end of each to choose from.",
            f"{_SCHEDULES}:cosine_with_restarts",
        ),
        Entry(
            "rex",
            "REX",
            "Stays high for long and falls steeply at the end: the most learning in a short run.",
            f"{_SCHEDULES}:rex",
        ),
    ),
)
