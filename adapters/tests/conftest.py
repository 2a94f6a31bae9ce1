"""HF PEFT reads what transformers will take away, and says what it saves: no warnings of ours."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in ("test_peft_parity.py", "test_peft_models.py", "test_smollm_parity.py"):
            item.add_marker(pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"))
