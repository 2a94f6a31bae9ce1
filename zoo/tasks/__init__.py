"""The verbs: classify, embed, search, filter, transcribe, generate, train an adapter. Each is a function with a dataclass result."""
