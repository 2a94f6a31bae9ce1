"""Every error the zoo raises on purpose.

    ZooError                     base: `except ZooError` catches all of them
    |-- UsageError               the call itself is wrong (command line: exit code 2)
    |-- ManifestError            a zoo.toml or config file does not say what it must
    |-- ResolutionError               a model name that cannot be resolved
    |   |-- UnknownNameError     nothing is called that
    |   `-- AmbiguousNameError   several distributions provide it
    |-- PluginError              a plugin is disabled, broken, incompatible or incomplete
    |-- WeightsError             weights cannot be used
    |   |-- WeightsMissingError  no source could deliver them
    |   |-- HashMismatchError    the bytes are not the ones the card names
    |   `-- StateMismatchError   the tensors do not fit the architecture
    `-- MediaError               a file or array cannot be read as the medium it should be

A message says what was given, what was expected, and the command that fixes it, on one line where it can. Where an object lies in memory
is no part of it: that helps whoever attacks the process (CVE-2026-22778), and makes equal errors differ.
"""

import re

# As Python shows an object that has no other words, `<function f at 0x7f...>`; and the stack that torch puts behind an error.
_OBJECT = re.compile(r"(<[^<>]*) at 0x[0-9a-fA-F]{5,}(?=[>,\s])")
_STACK = re.compile(r"\s*Exception raised from \S+ at \S+ \(most recent.*", re.DOTALL)


class ZooError(Exception):
    """Base of every deliberate error; `str(error)` is written for the person who must act on it."""

    def __str__(self) -> str:
        return _STACK.sub("", _OBJECT.sub(r"\1", super().__str__()))


class UsageError(ZooError):
    """An argument is missing, contradictory or out of range."""


class ManifestError(ZooError):
    """A manifest or configuration file is invalid; the message starts with `file:line`."""


class ResolutionError(ZooError):
    """A model name cannot be resolved to exactly one card."""


class UnknownNameError(ResolutionError):
    """No installed plugin provides the name."""


class AmbiguousNameError(ResolutionError):
    """More than one distribution provides the name and no pin settles it."""


class PluginError(ZooError):
    """A plugin cannot be used: disabled, broken, incompatible, or a dependency is missing."""


class WeightsError(ZooError):
    """Weights exist in the card but cannot be used."""


class WeightsMissingError(WeightsError):
    """No source of the weights could deliver them."""


class HashMismatchError(WeightsError):
    """The sha256 of the bytes differs from the card's."""


class StateMismatchError(WeightsError):
    """Keys or shapes of a state dict differ from the module's."""


class MediaError(ZooError):
    """A file, its bytes or an array cannot be read as the expected medium."""


class RandomWeightsWarning(UserWarning):
    """An answer rests on parameters that were drawn and never trained, so that it means nothing."""
