"""Fails when imported, and has no manifest."""

raise ImportError("the native library is missing")
