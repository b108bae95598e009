from . import pruner as pruner
from . import verification as verification
from .pruner import prune as prune
from .verification import Verification as Verification
from .verification import verify as verify
