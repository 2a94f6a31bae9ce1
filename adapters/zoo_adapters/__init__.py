"""Adapters for the zoo, one method a file: a builder that takes the base (`zoo.adapters.target_modules.Base`) and returns `zoo.adapters.adapter.Adapter`.

The cards are in `zoo.toml`; importing this package costs nothing.
"""
