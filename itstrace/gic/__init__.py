"""The architecture as the documents give it: commands, registers, tables, LPI bytes, error codes.

Standard library only, no I/O. Nothing here knows what a command does: that is `itstrace.model`.
"""
