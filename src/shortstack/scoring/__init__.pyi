from . import measurement as measurement
from . import metrics as metrics
from . import scores as scores
from .depth_curve import Sweep as Sweep
from .depth_curve import sweep as sweep
from .metrics import METRICS as METRICS
from .scorer import score as score
from .scores import Scores as Scores
