from . import grid as grid
from . import runner as runner
from . import status as status
from . import workers as workers
from .grid import read_study as read_study
from .runner import run_study as run_study
from .status import plan_study as plan_study
from .status import study_status as study_status
