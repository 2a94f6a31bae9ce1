"""The conformance kit for plugin authors: `zoo check`, and the same checks as pytest items (`zoo.testing.pytest_plugin`).

Each check is a bug that once shipped somewhere. It has a name, a level and a sentence that says what must hold:

    listing   what a plugin costs people who do not use it       manifest  the card tells the truth
    numbers   the same input gives the same output, however      weights   pinned, verified, finite
    process   it stays inside its own walls                      pairs     what a dual encoder promises besides
    language  what a decoder promises besides                   speech    what a transcriber promises besides
    fusion    what holds for an encoder or a bridge in a fused model
    adapter   what an adapter promises                          own       what the plugin itself asks of its models (`[[check]]`)
"""

from zoo.testing.check import CHECKS, Check, CheckFailed, CheckSkipped, Result, Subject
from zoo.testing.runner import Report, check_model, check_plugin

__all__ = [
    "CHECKS",
    "Check",
    "CheckFailed",
    "CheckSkipped",
    "Report",
    "Result",
    "Subject",
    "check_model",
    "check_plugin",
]
