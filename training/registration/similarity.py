"""How alike a radiograph and projections of a CT are: batched, differentiable, indifferent to brightness and contrast.

A radiograph has gone through a maker's processing, so that grey values mean little and edges much: both measures compare
the Sobel derivatives across rows and columns by their normalised cross-correlation (NCC).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Similarity = Callable[[Tensor], Tensor]
"""(b, rows, columns) of projections to (b,) of likeness: 1 for the same picture up to brightness and contrast, about 0 for
another. Made for one radiograph, from its image (rows, columns) and the mask of the pixels that count."""

LEAST_PATCH_SHARE = 0.5
"""Of the pixels of a patch that must count; assumption."""
EPSILON = 1e-6
"""Of the mean square derivative: a patch without any contrast is like nothing."""


@dataclass(frozen=True)
class GradientCorrelation:
    """NCC of the derivatives over the whole field, mean of both directions.

    Source: Penney et al. 1998, doi:10.1109/42.730403; Otake et al. 2012, doi:10.1109/TMI.2011.2176555.
    """

    derivatives: Tensor
    """(2, rows - 2, columns - 2) of the radiograph: mean 0 where it counts, 0 elsewhere, sum of squares 1."""
    weights: Tensor
    """(rows - 2, columns - 2) with sum 1."""

    @classmethod
    def of(cls, image: Tensor, mask: Tensor) -> "GradientCorrelation":
        """Prepare for a radiograph."""
        weights = _inner(mask).to(image)
        weights = weights / weights.sum()
        return cls(_standardised(sobel(image[None])[0], weights), weights)

    def __call__(self, images: Tensor) -> Tensor:
        """See `Similarity`."""
        moving = _standardised(sobel(images), self.weights)
        return (moving * self.derivatives).sum((-2, -1)).mean(-1)


@dataclass(frozen=True)
class PatchCorrelation:
    """NCC of the derivatives patch by patch, mean over patches: what a maker evens out, or metal outshines, counts still.

    A patch weighs as much as the radiograph has edges in it, by the square root of their energy.
    Source: Grupp et al. 2020, doi:10.1007/s11548-020-02162-7 (patch-wise gradient NCC).
    """

    derivatives: Tensor
    """(2, rows - 2, columns - 2) of the radiograph, 0 where it does not count."""
    mask: Tensor
    """(rows - 2, columns - 2), 1 or 0."""
    patch_px: int
    energy: Tensor
    """(2, patches down, patches across) variance of the radiograph's derivatives."""
    weights: Tensor
    """(2, patches down, patches across) with sum 1."""

    @classmethod
    def of(cls, image: Tensor, mask: Tensor, patch_px: int = 16) -> "PatchCorrelation":
        """Prepare for a radiograph; patches overlap by half."""
        counts = _inner(mask).to(image)
        derivatives = sobel(image[None])[0] * counts
        share = _pool(counts[None], patch_px).clamp_min(1e-9)
        energy = _pool(derivatives**2, patch_px) / share - (_pool(derivatives, patch_px) / share) ** 2
        energy = energy.clamp_min(0.0)
        weights = torch.where(share >= LEAST_PATCH_SHARE, energy.sqrt(), 0.0)
        return cls(derivatives, counts, patch_px, energy, weights / weights.sum())

    def per_patch(self, images: Tensor) -> Tensor:
        """(b, 2, patches down, patches across) NCC of each patch and direction; meaningless where the weight is 0."""
        moving = sobel(images) * self.mask
        share = _pool(self.mask[None], self.patch_px).clamp_min(1e-9)
        mean, fixed_mean = _pool(moving, self.patch_px) / share, _pool(self.derivatives, self.patch_px) / share
        square = _pool(moving**2, self.patch_px) / share
        variance = (square - mean**2).clamp_min(0.0) + EPSILON * square.mean((-2, -1), keepdim=True)
        covariance = _pool(moving * self.derivatives, self.patch_px) / share - mean * fixed_mean
        energy = self.energy + EPSILON * self.energy.mean((-2, -1), keepdim=True)
        return covariance / (variance * energy + 1e-30).sqrt()

    def __call__(self, images: Tensor) -> Tensor:
        """See `Similarity`."""
        return (self.per_patch(images) * self.weights).sum((-3, -2, -1))


def sobel(images: Tensor) -> Tensor:
    """Derivatives (b, 2, rows - 2, columns - 2) down the rows and across the columns, of (b, rows, columns)."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    kernels = torch.stack([across.T, across])[:, None].to(images)
    return F.conv2d(images[:, None], kernels)


def _inner(mask: Tensor) -> Tensor:
    """The pixels whose eight neighbours count as well."""
    if mask.ndim != 2 or min(mask.shape) < 3:
        raise ValueError(f"seen a mask of shape {tuple(mask.shape)}, expected (rows, columns) of at least 3 x 3")
    whole = F.conv2d(mask.double()[None, None], torch.ones(1, 1, 3, 3, dtype=torch.double, device=mask.device)) > 8.5
    if not bool(whole.any()):
        raise ValueError("no pixel of the radiograph counts: the mask holds no 3 x 3 pixels together")
    return whole[0, 0]


def _standardised(derivatives: Tensor, weights: Tensor) -> Tensor:
    """Mean 0, times the root of the weights, sum of squares 1."""
    centred = derivatives - (derivatives * weights).sum((-2, -1), keepdim=True)
    length = (centred**2 * weights).sum((-2, -1), keepdim=True)
    return centred * weights.sqrt() / (length + 1e-30).sqrt()


def _pool(images: Tensor, patch_px: int) -> Tensor:
    return F.avg_pool2d(images, patch_px, max(patch_px // 2, 1))
