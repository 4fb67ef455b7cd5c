"""Softplus neurons: smooth ones, of a rival that is trained in two phases."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..ordinary.network import block_features
from ..patches.geometry import PatchGeometry
from ..patches.patches import Patches
from .neurons import Neurons

__all__ = ["SoftplusNeurons"]

# zeta t from which log(1 + exp(zeta t)) is zeta t to rounding.
_EXACT = 37.0


@dataclass(frozen=True)
class SoftplusNeurons(Neurons):
    """Neurons f_jo = sum_ic w_ico sum_k P_ck log(1 + exp(zeta x_jk . u_i)) / zeta + b_o.

    Attributes
    ----------
    zeta : Tensor, shape ()
        How sharp they are: ReLUs as it grows.

    Examples
    --------
    >>> one = torch.ones(1, 1).double()
    >>> neurons = SoftplusNeurons(one, one.view(1, 1, 1), torch.zeros(1), torch.tensor(1.0))
    >>> network = neurons.to_module(PatchGeometry(1), (1, 1, 1), intercept=False)
    >>> bool(torch.isclose(network(torch.zeros(1, 1, 1, 1).double()), torch.tensor(2.0).double().log()))
    True
    """

    zeta: Tensor

    def predict(self, patches: Patches) -> Tensor:
        """Return the outputs (n, outputs)."""
        features = block_features(patches, self.filters, float(self.zeta))
        return torch.einsum("ncm,mco->no", features, self.readout) + self.intercept

    def to_module(
        self, geometry: PatchGeometry, image_shape: tuple[int, int, int], *, intercept: bool
    ) -> nn.Sequential:
        """Return the torch network of these neurons, on images of a shape (C, H, W)."""
        parts = super().to_module(geometry, image_shape, intercept=intercept).named_children()
        smooth = ("softplus", nn.Softplus(float(self.zeta), threshold=_EXACT))
        return nn.Sequential(OrderedDict(smooth if name == "relu" else (name, part) for name, part in parts))

    @classmethod
    def layer_names(cls, number: int) -> list[str]:
        """Return the names in a deep network of the modules before pooling, flatten and linear."""
        return [f"conv{number}", f"softplus{number}"]

    def state(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {**super().state(), "zeta": self.zeta}
