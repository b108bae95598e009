from . import reporter as reporter
from .reporter import Report as Report
from .reporter import write_report as write_report
