"""Sentence encoders. The cards are in `zoo.toml`."""
