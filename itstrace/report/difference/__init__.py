"""Two captures side by side: sections of tables and prose, which become lines here and a page in `difference_html`.

`itstrace.difference` decides what differs and what of it counts; here is only how it is said.
"""

from __future__ import annotations

from itstrace.report.difference.document import SCHEMA, difference_document
from itstrace.report.difference.lines import ROWS_SHOWN, difference_lines
from itstrace.report.difference.sections import sections
from itstrace.report.difference.verdict import overview, verdict

__all__ = [
    "ROWS_SHOWN",
    "SCHEMA",
    "difference_document",
    "difference_lines",
    "overview",
    "sections",
    "verdict",
]
