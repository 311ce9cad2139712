"""RULER's eight needle tasks by name; its other tasks run in lm-evaluation-harness."""

from hata_sglang.evaluation.tasks.base import Sample
from hata_sglang.evaluation.tasks.niah import NIAH_TASKS, NeedleTask

TASKS: dict[str, NeedleTask] = {task.name: task for task in NIAH_TASKS}

__all__ = ["TASKS", "Sample"]
