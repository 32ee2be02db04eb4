"""The report as one page that opens offline: `page(...)` is all that the command line needs."""

from itstrace.report.html.page import Assets, Page, page

__all__ = ["Assets", "Page", "page"]
