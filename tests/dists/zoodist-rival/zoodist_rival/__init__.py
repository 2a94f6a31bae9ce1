"""A plugin; its cards are in `zoo.toml`."""
