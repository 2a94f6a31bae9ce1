"""Adapters for the zoo, one method a file: a builder that takes the base (`zoo.nn.places.Base`) and returns `zoo.nn.adapter.Adapter`.

The cards are in `zoo.toml`; importing this package costs nothing.
"""
