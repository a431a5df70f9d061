"""Maximise a likeness: CMA-ES from several starts at once, then quasi-Newton steps along the gradient.

Parameters are in mm throughout: a rotation counts by the arc it moves a point `LEVER_MM` away, so that one step size fits all.
"""

from collections.abc import Callable

import numpy as np
import torch
from cmaes import CMA
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

LEVER_MM = 100.0
"""About the distance of the hips from the middle of the pelvis."""
STALL = 1e-4
"""A generation whose likenesses differ by less has arrived."""

Likeness = Callable[[Tensor], Tensor]
"""(b, n) parameters in mm to (b,) of likeness, larger is better."""


def evolve(
    likeness: Likeness,
    starts: NDArray[np.float64],
    sigma_mm: float,
    generations: int,
    population: int,
    bounds: NDArray[np.float64],
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """CMA-ES from each start, all in step, so that each generation is one batch.

    Source: Hansen 2016, arXiv:1604.00772.

    Args:
        starts: (s, n).
        bounds: (n, 2).

    Returns:
        (s, n) the best point that each one saw, and (s,) its likeness.
    """
    runs = [
        CMA(start, sigma_mm, bounds=bounds, population_size=population, seed=seed + number)
        for number, start in enumerate(np.clip(starts, bounds[:, 0], bounds[:, 1]))
    ]
    best, values = starts.copy(), np.full(len(starts), -np.inf)
    going = list(range(len(runs)))
    for _ in range(generations):
        points = np.array([[runs[number].ask() for _ in range(population)] for number in going])
        with torch.no_grad():
            seen = likeness(torch.from_numpy(points.reshape(-1, points.shape[2])))
        found = seen.double().cpu().numpy().reshape(len(going), population)
        for number, asked, told in zip(going, points, found, strict=True):
            runs[number].tell([(point, -value) for point, value in zip(asked, told, strict=True)])
            if told.max() > values[number]:
                best[number], values[number] = asked[told.argmax()], told.max()
        going = [number for number, told in zip(going, found, strict=True) if np.ptp(told) > STALL]
        if not going:
            break
    return best, values


def refine(
    likeness: Likeness, start: NDArray[np.float64], iterations: int, bounds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Climb along the gradient (L-BFGS-B) from (n,).

    Returns:
        (n,) and its likeness.
    """

    def fall(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = torch.from_numpy(point)[None].requires_grad_()
        value = likeness(parameters).double().sum()
        (gradient,) = torch.autograd.grad(value, parameters)
        return -float(value.detach()), -gradient[0].numpy()

    inside = np.clip(start, bounds[:, 0], bounds[:, 1])
    found = minimize(
        fall,
        inside,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": iterations, "ftol": 1e-7, "gtol": 1e-6},
    )
    return np.asarray(found.x, np.float64), -float(found.fun)
