"""open_clip models as dual encoders of the zoo. The cards are in `zoo.toml`."""
