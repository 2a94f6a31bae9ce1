"""Adapters of a built model: added, chosen, merged, kept in files, exchanged with HF PEFT."""
