from . import cut_families as cut_families
from . import fold_points as fold_points
from . import repairer as repairer
from .repairer import Repair as Repair
