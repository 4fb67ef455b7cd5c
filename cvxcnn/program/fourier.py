"""Programs of circular networks: images, filters and weights as their spectra.

A circular convolution of full length is a product of spectra. With F the unitary discrete Fourier transform of images
of d places, U w has the spectrum sqrt(d) F u * F w, so that |F (U w)|_1 <= sqrt(d) ||u|| ||w||, with equality where
|F u| and |F w| are alike: what a pair (u, w) costs is a sum over frequencies of what they make together.

Source: Ergen & Pilanci 2021, Implicit Convex Regularizers of CNN Architectures, circular convolutions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.products import adjoint_product
from ..patches.geometry import PatchGeometry
from ..patches.patches import Patches
from .cones import Cones
from .design import Design, SignedGatedDesign
from .multipliers import shortest
from .program import Program

__all__ = ["CircularGatedDesign", "CircularReluProgram", "FourierDesign", "Frequencies", "spectral_patches"]

# Columns below this share of the longest are what a solver leaves of zeros.
_NEGLIGIBLE = 1e-8


class Frequencies:
    """The frequencies of real images of a height and a width, one of each pair k and -k.

    Spectra are sums without a factor, X_k = sum_r x(r) exp(-2 pi i k.r / (H, W)); a real image has X_-k = conj X_k.
    Rows are their real and imaginary parts, frequency by frequency: those of an image and those of ``weights`` have the
    inner product of the two images.

    Parameters
    ----------
    height, width : int

    Attributes
    ----------
    counts : Tensor of float64, shape (K,)
        2 where k and -k are two frequencies, 1 where they are one.

    Examples
    --------
    >>> Frequencies(1, 5).counts.tolist(), len(Frequencies(8, 8))
    ([1.0, 2.0, 2.0], 34)
    """

    def __init__(self, height: int, width: int) -> None:
        self.shape = height, width
        own = torch.arange(height * width).view(height, width)
        mirrored = own.flip(0, 1).roll((1, 1), (0, 1)).flatten()
        self.places = (own.flatten() <= mirrored).nonzero().flatten()
        self.mirrored = mirrored[self.places]
        self.counts = 1.0 + (self.places != self.mirrored).double()

    def __len__(self) -> int:
        return len(self.places)

    def analysed(self, images: Tensor) -> Tensor:
        """Return the spectra (..., K) of real images (..., H, W)."""
        spectra = torch.fft.fft2(images).flatten(-2)[..., self.places]
        # Exactly real where it is real: rounding must not look like a part of its own.
        return torch.complex(spectra.real, spectra.imag * (self.counts - 1).to(spectra.real))

    def synthesised(self, spectra: Tensor) -> Tensor:
        """Return the real images (..., H, W) with these spectra (..., K)."""
        whole = spectra.new_zeros(*spectra.shape[:-1], self.shape[0] * self.shape[1])
        whole[..., self.mirrored] = spectra.conj()
        whole[..., self.places] = spectra
        images: Tensor = torch.fft.ifft2(whole.view(*whole.shape[:-1], *self.shape)).real
        return images.contiguous()

    def rows(self, images: Tensor) -> Tensor:
        """Return the rows (..., K * 2 * C) of images (..., C, H, W)."""
        spectra = self.analysed(images).transpose(-1, -2)
        return torch.cat([spectra.real, spectra.imag], dim=-1).flatten(-2)

    def _parts(self, rows: Tensor) -> Tensor:
        """Return rows (..., K * 2 * C) as (..., K, 2 * C)."""
        return rows.reshape(*rows.shape[:-1], len(self), rows.shape[-1] // len(self))

    def weights(self, images: Tensor) -> Tensor:
        """Return ``rows`` times counts / d, shape (..., K * 2 * C).

        The Euclidean norms of the frequencies of these add up to |F z|_1 / sqrt(d), over channels together.
        """
        scale = self.counts / (self.shape[0] * self.shape[1])
        return (self._parts(self.rows(images)) * scale.to(images)[:, None]).flatten(-2)

    def images(self, weights: Tensor) -> Tensor:
        """Return the images (..., C, H, W) of ``weights`` (..., K * 2 * C)."""
        scale = self.shape[0] * self.shape[1] / self.counts
        real, imaginary = (self._parts(weights) * scale.to(weights)[:, None]).chunk(2, dim=-1)
        return self.synthesised(torch.complex(real, imaginary).transpose(-1, -2))


def spectral_patches(patches: Patches) -> tuple[Patches, Frequencies]:
    """Return the rows of whole images, each as a patch of its own, and the frequencies that they are of."""
    images = patches.images.to(patches.dtype)
    frequencies = Frequencies(*images.shape[2:])
    rows = frequencies.rows(images)
    return Patches(rows[:, None, None], PatchGeometry(kernel_size=(1, rows.shape[1]))), frequencies


class FourierDesign(Design):
    """Spectra of images: f_jo = sum_k Re(conj X_jk . b_ko); a block is a frequency, its rows the channels' parts.

    Parameters
    ----------
    patches : Patches
    frequencies : Frequencies
        Both of ``spectral_patches``.
    """

    networks = "circular"

    def __init__(self, patches: Patches, frequencies: Frequencies) -> None:
        super().__init__(patches, patches.pool.new_zeros(len(frequencies), 1))
        self.frequencies = frequencies
        self.rows = patches.dim // len(frequencies)

    @property
    def directions(self) -> Tensor:
        return self.vectors[:0]

    def on(self, patches: Patches) -> FourierDesign:
        return FourierDesign(patches, self.frequencies)

    def double(self) -> FourierDesign:
        return self.on(self.patches.astype(torch.float64))

    def columns(self, blocks: Tensor) -> Tensor:
        return self.patches.unfold().view(-1, self.n_blocks, 1, self.rows)[:, blocks]

    def predict(self, weights: Tensor) -> Tensor:
        return self.patches.unfold()[:, 0] @ weights.flatten(0, 2)

    def correlate(self, dual: Tensor) -> Tensor:
        return adjoint_product(self.patches.unfold()[:, 0], dual).view(self.shape(dual.shape[1]))


class CircularGatedDesign(SignedGatedDesign):
    """Gated spectra of images with both signs, of circular ReLU networks."""

    networks = "circular_relu"

    def __init__(self, patches: Patches, gates: Tensor, frequencies: Frequencies) -> None:
        super().__init__(patches, gates)
        self.frequencies = frequencies

    def double(self) -> CircularGatedDesign:
        patches = self.patches.astype(torch.float64)
        return CircularGatedDesign(patches, self.directions.double(), self.frequencies)

    def on(self, patches: Patches) -> CircularGatedDesign:
        return CircularGatedDesign(patches, self.directions, self.frequencies)


class CircularReluProgram(Program):
    """Eq. 2 with a norm of frequencies, ``penalties.spectra.FrequencyPenalty``, in the place of the Euclidean one.

    How long a column a of A^T nu is along its cone, max {a . v : N(v) <= 1, s_j x_j . v >= 0}, is by duality the
    least of N*(a + sum_j m_j s_j x_j) over m >= 0, N* the largest of the norms of the frequencies. Any m gives an upper
    bound of it, and so a valid bound of the program: those that Clarabel finds are cut to m >= 0 and judged here.
    """

    def repair(self, weights: Tensor) -> Tensor:
        # An interior point has a little of every gate.
        norms = weights.norm(dim=2, keepdim=True)
        return super().repair(torch.where(norms > _NEGLIGIBLE * norms.max(), weights, 0.0))

    def cone_norm(self, block: int, vector: np.ndarray, ceiling: float) -> float:
        cones = self.cones
        gate = block % len(cones.gates) if cones is not None else 0
        normals = vector[None, :0] if cones is None else cones.signs(gate)[:, None] * cones.rows
        return shortest(vector, normals, self.penalty.n_frequencies or 1, ceiling)

    def _along_cones(self, cones: Cones, values: np.ndarray, norms: Tensor, floor: float) -> Tensor:
        # Projections shorten Euclidean norms alone.
        for block, cell, output in (norms >= floor).nonzero().tolist():
            norms[block, cell, output] = self.cone_norm(block, values[block, cell, :, output], floor)
        return norms
