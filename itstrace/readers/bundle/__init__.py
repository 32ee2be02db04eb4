"""Folders and tars as captures: scan.py for what they hold, manifest.py for what they say, tar.py to unpack them."""

from itstrace.readers.bundle.capture import Bundle, open_folder, open_tar
from itstrace.readers.bundle.tar import is_tar

__all__ = ["Bundle", "is_tar", "open_folder", "open_tar"]
