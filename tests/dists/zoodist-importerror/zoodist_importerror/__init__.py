"""Fails when imported."""

from zoodist_importerror import nothing_here  # noqa: F401
