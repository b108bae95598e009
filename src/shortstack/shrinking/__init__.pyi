from . import clock as clock
from . import demo as demo
from . import line as line
from . import result as result
from .line import shrink as shrink
from .line import shrink_each as shrink_each
from .options import ShrinkOptions as ShrinkOptions
from .result import Shrunk as Shrunk
