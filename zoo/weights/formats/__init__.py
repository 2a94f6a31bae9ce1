"""Formats of weight files, one file each; `read.py` has the table that tells them apart."""
