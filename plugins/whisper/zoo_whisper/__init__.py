"""Whisper for the zoo. The cards are in `zoo.toml`; importing this package costs nothing."""
