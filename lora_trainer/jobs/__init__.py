"""Work in the background: the queue, the thread that works through it, and what a page shows of it."""

from lora_trainer.jobs.queue import JobQueue, open_queue
from lora_trainer.jobs.table import JOBS
from lora_trainer.jobs.view import JobView

__all__ = ["JOBS", "JobQueue", "JobView", "open_queue"]
