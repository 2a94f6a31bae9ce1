"""Compiled methods answer for the module as it was compiled, and for nothing else."""

import copy

import pytest
import torch
from torch import nn

import zoo as library
from zoo.errors import UsageError
from zoo.models.compilation import compile_method, compiled_parts


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float[B, 4] -> float[B, 4]."""
        return self.norm(self.linear(images))


class Frozen(nn.Module):
    """Answers by the numbers that a module had when it was compiled, as a compiler's graph does."""

    def __init__(self, plain: nn.Module, request: object) -> None:
        super().__init__()
        self.frozen = copy.deepcopy(plain.owner.state_dict())
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        held = self.frozen
        linear = nn.functional.linear(images, held["linear.weight"], held["linear.bias"])
        moments = held["norm.running_mean"], held["norm.running_var"]
        return nn.functional.batch_norm(linear, *moments, held["norm.weight"], held["norm.bias"])


def write_a_buffer(module: nn.Module) -> None:
    module.norm.running_mean.add_(5)


def put_a_parameter_in_place(module: nn.Module) -> None:
    module.linear.weight = nn.Parameter(torch.randn(4, 4))


def put_a_layer_in_place(module: nn.Module) -> None:
    module.linear = nn.Linear(4, 4)


def load_by_assigning(module: nn.Module) -> None:
    module.load_state_dict(Small().state_dict(), assign=True)


def train(module: nn.Module) -> None:
    module.norm.train()


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    module = Small().eval()
    compile_method(module, "forward", Frozen, key="key")
    with torch.inference_mode():
        assert torch.allclose(module(torch.ones(2, 4)), Small.forward(module, torch.ones(2, 4)), atol=1e-6)
    return module


def calls(module: nn.Module) -> int:
    return sum(compiled.calls for _, compiled in compiled_parts(module))


@pytest.mark.parametrize(
    "change", [write_a_buffer, put_a_parameter_in_place, put_a_layer_in_place, load_by_assigning, train]
)
def test_a_module_that_changed_answers_plainly(small, change) -> None:
    images = torch.randn(3, 4)
    with torch.inference_mode():
        before = small(images)
    assert calls(small) == 2
    with torch.no_grad():
        change(small)
        after = small(images)
        assert torch.equal(after, Small.forward(small, images))
    assert not torch.allclose(after, before)
    assert calls(small) == 2


def test_a_copy_answers_by_its_own_numbers(small) -> None:
    images = torch.randn(3, 4)
    other = copy.deepcopy(small)
    with torch.no_grad():
        other.linear.weight.mul_(10)
    with torch.inference_mode():
        assert torch.equal(other(images), Small.forward(other, images))
        assert not torch.allclose(other(images), small(images))
    assert calls(small) == 2


def test_a_named_argument_is_taken(small) -> None:
    images = torch.randn(3, 4)
    with torch.inference_mode():
        assert torch.equal(small(images=images), Small.forward(small, images))
    with pytest.raises(UsageError, match="runs by a kernel already"):
        compile_method(small, "forward", Frozen, key="key")


def test_layers_of_parts_that_are_not_compiled_take_another_kernel() -> None:
    pytest.importorskip("openvino")
    spec = library.ModelSpec("whisper/random", weights=None, kernel="openvino", per_layer={"decoder.*": "int8"})
    whisper = library.open_transcriber(spec).module
    assert whisper.decoder.stack.blocks[0].feed_forward.up.number_format == "int8"
    with pytest.raises(UsageError, match=r"kernel openvino compiles encoder whole: 'encoder\.\*' names layers of it"):
        library.open_transcriber(
            library.ModelSpec("whisper/random", weights=None, kernel="openvino", per_layer={"encoder.*": "int8"})
        )
    with pytest.raises(UsageError, match="compiles whole modules: leave out skip and per_layer"):
        library.open_model(library.ModelSpec("clip/tiny-image", weights=None, kernel="openvino", skip=["*"]))
