"""Whole modules compiled by OpenVINO. `zoo.toml` names the cards."""
