"""Adapters for the zoo, one method a file: a builder that takes the base (`zoo.api.Base`) and returns `zoo.api.Adapter`.

The cards are in `zoo.toml`; importing this package costs nothing.
"""
