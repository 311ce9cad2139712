"""Long-context tasks by name, all behind one interface."""

from hata_sglang.evaluation.tasks.base import Sample, Task
from hata_sglang.evaluation.tasks.counting import CommonWords, FrequentWords
from hata_sglang.evaluation.tasks.niah import NIAH_TASKS
from hata_sglang.evaluation.tasks.tracking import VariableTracking

#: RULER (arXiv 2404.06654, table 1) without its two tasks over data sets of questions.
RULER: tuple[Task, ...] = (*NIAH_TASKS, VariableTracking(), CommonWords(), FrequentWords())
TASKS: dict[str, Task] = {task.name: task for task in RULER}

__all__ = ["TASKS", "Sample", "Task"]
