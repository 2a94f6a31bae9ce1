"""Contracts, encoded features, building and opening, provenance, recipes, composition, precision."""
