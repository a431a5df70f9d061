"""What the networks are asked to do, one term per function. Shapes are (b, c, h, w)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dicomnode.inference.frame import Label
from dicomnode.inference.network import SPREAD_RANGE

MAP_SCALES = (1.0, 0.5, 0.5, 0.02)
"""Brings femur density (g/cm2), path (cm), pelvis density (g/cm2) and soft tissue (g/cm2) to comparable size."""
DENSITIES = (0, 2)
"""Of the maps, those that are densities of bone: femur and pelvis."""
METAL_WEIGHT = 10.0
REGIONS = ((Label.NECK, Label.TROCHANTER, Label.INTERTROCHANTER), (Label.NECK,))
"""Regions whose mass and volume must be right: total hip and femoral neck."""
LEAST_PX = 50
"""A sliver of a bone says nothing of its sum."""
_FLAT = 1e-3
"""Sum of squared derivatives, (g/cm2 per pixel)^2, below which a density map has no edge."""


@dataclass(frozen=True)
class HipBatch:
    """A batch of `augment.HipExample`s as tensors."""

    network_input: Tensor
    technique: Tensor
    maps: Tensor
    labels: Tensor
    metal: Tensor
    field: Tensor
    anteroposterior_hip: Tensor
    implant: Tensor
    fracture: Tensor
    canonical: Tensor
    canonical_weight: Tensor


def decomposition_loss(channels: Tensor, verdicts: Tensor, canonical: Tensor, batch: HipBatch) -> dict[str, Tensor]:
    """Every term by name, each already weighted; the loss is their sum.

    Maps are learned from AP hips only, and only where the radiograph shows anatomy and no metal hides it. What is NaN is not known
    and carries no loss: a pixel without femur density altogether, else the map, the metal or the verdict that is NaN.
    """
    maps, logits = channels[:, :4], channels[:, 4:10]
    metal, field = channels[:, 10], channels[:, 11]
    weight = learned_from(batch)
    true_maps = known_maps(batch, maps)
    labels = torch.where(weight > 0, batch.labels, -100)
    return {
        "maps": 4.0 * map_loss(maps, true_maps, weight),
        "edges": 2.0 * edge_loss(maps[:, 0], true_maps[:, 0], weight),
        "mass": 1.0 * region_loss(maps[:, :2], true_maps[:, :2], batch.labels, weight),
        "labels": 0.5 * label_loss(logits, labels),
        "metal": 0.5 * metal_loss(metal, batch.metal.nan_to_num(), batch.field * batch.metal.isfinite()),
        "field": 0.1 * _binary(field, batch.field).mean(),
        "view": 0.1 * _binary(verdicts[:, 0], batch.anteroposterior_hip).mean(),
        "implant": 0.1 * _known(verdicts[:, 1], batch.implant),
        "fracture": 0.1 * _known(verdicts[:, 2], batch.fracture),
        **canonical_loss(canonical, batch.canonical, batch.canonical_weight),
    }


def learned_from(batch: HipBatch) -> Tensor:
    """(b, h, w): 1 where maps are known and learned, which is in AP hips, inside the field and where no metal hides the bone."""
    good = batch.anteroposterior_hip[:, None, None]
    return batch.field * good * (1 - batch.metal.nan_to_num()) * batch.maps[:, 0].isfinite()


def known_maps(batch: HipBatch, prediction: Tensor) -> Tensor:
    """(b, 4, h, w): the true maps; where they are not known as predicted, hence without error or gradient."""
    return torch.where(batch.maps.isfinite(), batch.maps, prediction.detach())


def canonical_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """L1 of the logarithms, hence relative errors; and their spreads as a Laplace distribution's likelihood.

    The spread learns from the error but not the other way round, so that hard cases are not given up.

    Args:
        prediction: (b, 2, regions, quantities) logarithms and logarithms of spreads.
        target: (b, regions, quantities).
        weight: (b, regions).
    """
    error = (prediction[:, 0] - target).abs().mul(weight[:, :, None])
    spread = prediction[:, 1]
    likelihood = (error.detach() * torch.exp(-spread) + spread - SPREAD_RANGE[0]).mul(weight[:, :, None])
    count = weight.sum().clamp_min(1) * target.shape[2]
    return {"canonical": 2.0 * error.sum() / count, "spread": 0.02 * likelihood.sum() / count}


def map_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """L1 of the maps, each divided by its usual size."""
    scales = prediction.new_tensor(MAP_SCALES)[None, :, None, None]
    return masked_mean(((prediction - target).abs() * scales).sum(1), weight)


def edge_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """L1 of the differences between neighbouring pixels: cortex must be sharp, or thin cortex reads too low."""
    difference = prediction - target
    rows = masked_mean(difference.diff(dim=1).abs(), weight[:, 1:] * weight[:, :-1])
    columns = masked_mean(difference.diff(dim=2).abs(), weight[:, :, 1:] * weight[:, :, :-1])
    return rows + columns


def region_loss(prediction: Tensor, target: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Relative error of each region's mass and volume: what is reported is the sum, not the pixel."""
    terms = []
    for region in REGIONS:
        mask = torch.isin(labels, labels.new_tensor([int(label) for label in region])) * weight
        enough = mask.sum((1, 2)) > LEAST_PX
        if enough.any():
            terms.append(_relative_sum_error(prediction, target, mask)[enough].mean())
    return torch.stack(terms).mean() if terms else prediction.sum() * 0


def pelvis_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Relative error of the mass of the pelvis, (b, h, w), as far as it is seen; it has no regions of its own."""
    enough = (weight * (target > 0)).sum((1, 2)) > LEAST_PX
    error = _relative_sum_error(prediction[:, None], target[:, None], weight)[:, 0]
    return masked_mean(error, enough.to(error.dtype))


def _relative_sum_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """(b, c) of maps (b, c, h, w), bounded: a wrong sum beyond it teaches nothing more."""
    error = ((prediction - target) * mask[:, None]).sum((2, 3)).abs()
    true = (target * mask[:, None]).sum((2, 3)).clamp_min(1e-3)
    return (error / true).clamp_max(2.0)


def gradient_correlation_loss(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 less the gradient correlation: 0 for maps with the same edges, whatever their level and scale, 2 for reversed ones.

    The correlation is that of the Sobel derivatives inside the weight, along rows and along columns, and their mean. Maps
    without any edge in sight say nothing and are left out.

    Source: as a similarity of projections Penney 1998, doi:10.1109/42.736021; as a loss Gu 2023, arXiv 2307.11513.

    Args:
        prediction: (b, c, h, w).
        target: (b, c, h, w).
        weight: (b, h, w), 0 or 1.
    """
    inside = -F.max_pool2d(-weight[:, None], 3, 1)  # a derivative that reaches out of the weight is none
    made, true = (_centred(_sobel(maps), inside[:, :, None]) for maps in (prediction, target))
    power = true.square().sum((3, 4))
    # The added share keeps the slope finite where a prediction is flat.
    scale = ((made.square().sum((3, 4)) + 1e-3 * _FLAT) * power.clamp_min(_FLAT)).sqrt()
    return masked_mean(1 - (made * true).sum((3, 4)) / scale, (power > _FLAT).to(power.dtype))


def _sobel(maps: Tensor) -> Tensor:
    """(b, c, 2, h - 2, w - 2) derivatives along rows and columns, per pixel."""
    across = maps.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    kernels = torch.stack([across.T, across])[:, None]
    flat = F.conv2d(maps.flatten(0, 1)[:, None], kernels)
    return flat.reshape(*maps.shape[:2], *flat.shape[1:])


def _centred(values: Tensor, weight: Tensor) -> Tensor:
    """Values less their mean over the last two axes, 0 outside of the weight."""
    mean = (values * weight).sum((3, 4), keepdim=True) / weight.sum((3, 4), keepdim=True).clamp_min(1)
    return (values - mean) * weight


def metal_loss(logits: Tensor, metal: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of metal; its pixels count more, for they are few, and an implant that is missed becomes a number."""
    return masked_mean(_binary(logits, metal), weight * (1 + METAL_WEIGHT * metal))


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the region labels; -100 marks pixels to be left out."""
    total = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
    return total / (labels != -100).sum().clamp_min(1)


def heat_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """Locator: cross-entropy against the Gaussians, with the few pixels near a head weighted up."""
    weight = 1 + 50 * heat
    return (F.binary_cross_entropy_with_logits(logits, heat, reduction="none") * weight).mean()


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of values where weight is set; 0 if it is set nowhere."""
    return (values * weight).sum() / weight.sum().clamp_min(1)


def _known(logits: Tensor, target: Tensor) -> Tensor:
    """Mean loss of the verdicts whose truth is known, which is not NaN."""
    return masked_mean(_binary(logits, target.nan_to_num()), target.isfinite())


def _binary(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")
