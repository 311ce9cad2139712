"""Long-context tasks by name, all behind one interface."""

from hata_sglang.evaluation.tasks.base import Sample, Task, TaskUnavailable
from hata_sglang.evaluation.tasks.counting import CommonWords, FrequentWords
from hata_sglang.evaluation.tasks.needle import NeedleGrid
from hata_sglang.evaluation.tasks.niah import NIAH_TASKS
from hata_sglang.evaluation.tasks.qa import QuestionAnswering
from hata_sglang.evaluation.tasks.tracking import VariableTracking

#: The thirteen tasks of RULER (arXiv 2404.06654, table 1).
RULER: tuple[Task, ...] = (
    *NIAH_TASKS,
    VariableTracking(),
    CommonWords(),
    FrequentWords(),
    QuestionAnswering("qa_1", "dev-v2.0.json of SQuAD 2.0"),
    QuestionAnswering("qa_2", "hotpot_dev_distractor_v1.json of HotpotQA"),
)
#: Every task this package knows.
TASKS: dict[str, Task] = {task.name: task for task in (*RULER, NeedleGrid())}

__all__ = ["RULER", "TASKS", "Sample", "Task", "TaskUnavailable"]
