"""`python -m itstrace.cli`: the program, where it is not installed."""

from itstrace.cli import script

script()
