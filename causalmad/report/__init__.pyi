from .contents import Report as Report
from .render import render as render
from .write import report_of as report_of
from .write import report_of_rows as report_of_rows
from .write import write_report as write_report
from .write import write_report_from_rows as write_report_from_rows
