"""Zero-shot photo classification from two frozen parts. The cards are in `zoo.toml`."""
