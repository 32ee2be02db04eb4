"""Findings and tables to a reader: a terminal, JSON. Formats, never decides."""
