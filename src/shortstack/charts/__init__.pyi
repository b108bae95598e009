from . import chart as chart
from . import drawing as drawing
from . import picture as picture
from . import rows as rows
from .picture import Picture as Picture
