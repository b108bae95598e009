from . import comparison as comparison
from .baselines import Calibration as Calibration
from .comparison import Comparison as Comparison
from .comparison import Judging as Judging
from .comparison import compare as compare
