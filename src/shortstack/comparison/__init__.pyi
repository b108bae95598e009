from . import baselines as baselines
from . import comparison as comparison
from .baselines import Calibration as Calibration
from .comparison import Comparison as Comparison
from .comparison import EvaluationSpec as EvaluationSpec
from .comparison import compare as compare
from .comparison import judge_tasks as judge_tasks
