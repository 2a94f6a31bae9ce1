"""The only value that crosses from an encoder to anything else."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token features of a batch.

    tokens_BTD: float[B, T, D], one feature per patch, word piece, frame or step.
    mask_BT: bool[B, T], True where a token is real and False where it is padding.
    pooled_BD: float[B, D], one vector per item; padding never contributes to it. (Its width differs from the tokens' where
        a model's own head widens it.)
    """

    tokens_BTD: torch.Tensor
    mask_BT: torch.Tensor
    pooled_BD: torch.Tensor

    def __post_init__(self) -> None:
        for name, value in (("tokens_BTD", self.tokens_BTD), ("mask_BT", self.mask_BT), ("pooled_BD", self.pooled_BD)):
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if self.tokens_BTD.ndim != 3:
            raise ValueError(f"tokens_BTD must be float[B, T, D], got {list(self.tokens_BTD.shape)}")
        batch, count, _ = self.tokens_BTD.shape
        if self.mask_BT.shape != (batch, count) or self.mask_BT.dtype != torch.bool:
            raise ValueError(
                f"mask_BT must be bool[{batch}, {count}] to match tokens_BTD, "
                f"got {self.mask_BT.dtype}{list(self.mask_BT.shape)}"
            )
        if self.pooled_BD.ndim != 2 or len(self.pooled_BD) != batch:
            raise ValueError(f"pooled_BD must be float[{batch}, D] to match tokens_BTD, got {list(self.pooled_BD.shape)}")
