"""SmolLM2-Instruct's conversations: each turn is `<|im_start|>role`, a new line, the text, `<|im_end|>` and a new line.

The format is that of the `chat_template` in the model's files, a Jinja program. It is written out here, because a program out
of a weight file is never run; the tests hold this one to it.
"""

import hashlib
from collections.abc import Callable, Sequence

from zoo.api import UsageError

START_TURN = "<|im_start|>"
END_TURN = "<|im_end|>"
ROLES = ("system", "user", "assistant")
SYSTEM_MESSAGE = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEMPLATE_SHA256 = "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"


def is_known_template(template: object) -> bool:
    """Whether a file's chat template is the one whose format this is."""
    return isinstance(template, str) and hashlib.sha256(template.encode()).hexdigest() == TEMPLATE_SHA256


def chat_ids(
    messages: Sequence[tuple[str, str]], *, encode: Callable[[str], list[int]], start_turn: int, end_turn: int
) -> list[int]:
    """(role, text) pairs -> the ids of a conversation that the assistant is to continue.

    messages: roles are system, user and assistant. Before a first message that is not the system's comes `SYSTEM_MESSAGE`.
    encode: a text's ids, none of them a control token: so no text can end its turn or begin another.
    start_turn, end_turn: the ids of `START_TURN` and `END_TURN`.
    Raises UsageError for no messages, for what is not such a pair, and for another role.
    """
    _check(messages)
    turns = list(messages)
    if turns[0][0] != "system":
        turns.insert(0, ("system", SYSTEM_MESSAGE))
    new_line = encode("\n")
    ids: list[int] = []
    for role, text in turns:
        # Role and text in one piece, as the template has them: a text that begins with a new line joins with the role's.
        ids += [start_turn, *encode(f"{role}\n{text}"), end_turn, *new_line]
    return [*ids, start_turn, *encode("assistant\n")]


def _check(messages: Sequence[tuple[str, str]]) -> None:
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise UsageError(
            f'a conversation is a list of (role, text) pairs, at least one, got {messages!r}: [("user", "Hello")]'
        )
    for number, message in enumerate(messages):
        if not isinstance(message, (tuple, list)) or [type(part) for part in message] != [str, str]:
            raise UsageError(f"a message is a pair (role, text) of two str, message {number} is {str(message)[:80]!r}")
        if message[0] not in ROLES:
            raise UsageError(f"a role is one of {', '.join(ROLES)}, message {number} has {message[0][:80]!r}")
