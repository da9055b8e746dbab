# SPDX-License-Identifier: Apache-2.0
"""`least_squares` against the certified values of NIST's reference data sets.

Parameters, standard errors and residual sums of squares of the NIST Statistical Reference Datasets
for nonlinear regression, https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml, from both of its
starts. The certified values have eleven digits, which only the true data reproduce.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import hesse
from hesse.testing.smooth import mgh_data


def vector(*entries):
    return torch.tensor(entries, dtype=torch.float64)


@dataclass(frozen=True)
class Certified:
    """A data set: y = model(b, x), two starts, and what is certified."""

    x: torch.Tensor
    y: torch.Tensor
    model: object
    starts: tuple
    b: tuple
    errors: tuple
    sum_of_squares: float


# fmt: off
MISRA_X = vector(77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8,
                 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0)
MISRA_Y = vector(10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02,
                 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78)
RAT42_X = vector(9, 14, 21, 28, 42, 57, 63, 70, 79)
RAT42_Y = vector(8.930, 10.800, 18.590, 22.330, 39.350, 56.110, 61.730, 64.620, 67.080)
RAT43_Y = vector(16.08, 33.83, 65.80, 97.20, 191.55, 326.20, 386.87, 520.53, 590.03,
                 651.92, 724.93, 699.56, 689.96, 637.56, 717.41)
SETS = {
    "Misra1a": Certified(
        MISRA_X, MISRA_Y, lambda b, x: b[0] * (1 - torch.exp(-b[1] * x)),
        ((500, 0.0001), (250, 0.0005)), (2.3894212918e2, 5.5015643181e-4),
        (2.7070075241, 7.2668688436e-6), 1.2455138894e-1),
    "Misra1b": Certified(
        MISRA_X, MISRA_Y, lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
        ((500, 0.0001), (300, 0.0002)), (3.3799746163e2, 3.9039091287e-4),
        (3.1643950207, 4.2547321834e-6), 7.5464681533e-2),
    "Misra1c": Certified(
        MISRA_X, MISRA_Y, lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
        ((500, 0.0001), (600, 0.0002)), (6.3642725809e2, 2.0813627256e-4),
        (4.6638326572, 1.7728423155e-6), 4.0966836971e-2),
    "Misra1d": Certified(
        MISRA_X, MISRA_Y, lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
        ((500, 0.0001), (450, 0.0003)), (4.3736970754e2, 3.0227324449e-4),
        (3.6489174345, 2.9334354479e-6), 5.6419295283e-2),
    "DanWood": Certified(
        vector(1.309, 1.471, 1.490, 1.565, 1.611, 1.680),
        vector(2.138, 3.421, 3.597, 4.340, 4.882, 5.660),
        lambda b, x: b[0] * x ** b[1],
        ((1, 5), (0.7, 4)), (7.6886226176e-1, 3.8604055871),
        (1.8281973860e-2, 5.1726610913e-2), 4.3173084083e-3),
    "BoxBOD": Certified(
        vector(1, 2, 3, 5, 7, 10), vector(109, 149, 149, 191, 213, 224),
        lambda b, x: b[0] * (1 - torch.exp(-b[1] * x)),
        ((1, 1), (100, 0.75)), (2.1380940889e2, 5.4723748542e-1),
        (1.2354515176e1, 1.0455993237e-1), 1.1680088766e3),
    "MGH09": Certified(
        vector(*mgh_data.KOWALIK_U), vector(*mgh_data.KOWALIK_Y),
        lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
        ((25, 39, 41.5, 39), (0.25, 0.39, 0.415, 0.39)),
        (1.9280693458e-1, 1.9128232873e-1, 1.2305650693e-1, 1.3606233068e-1),
        (1.1435312227e-2, 1.9633220911e-1, 8.0842031232e-2, 9.0025542308e-2), 3.0750560385e-4),
    "MGH10": Certified(
        torch.arange(50, 126, 5, dtype=torch.float64), vector(*mgh_data.MEYER),
        lambda b, x: b[0] * torch.exp(b[1] / (x + b[2])),
        ((2, 400000, 25000), (0.02, 4000, 250)), (5.6096364710e-3, 6.1813463463e3, 3.4522363462e2),
        (1.5687892471e-4, 2.3309021107e1, 7.8486103508e-1), 8.7945855171e1),
    "MGH17": Certified(
        torch.arange(0, 330, 10, dtype=torch.float64), vector(*mgh_data.OSBORNE_1),
        lambda b, x: b[0] + b[1] * torch.exp(-x * b[3]) + b[2] * torch.exp(-x * b[4]),
        ((50, 150, -100, 1, 2), (0.5, 1.5, -1, 0.01, 0.02)),
        (3.7541005211e-1, 1.9358469127, -1.4646871366, 1.2867534640e-2, 2.2122699662e-2),
        (2.0723153551e-3, 2.2031669222e-1, 2.2175707739e-1, 4.4861358114e-4, 8.9471996575e-4),
        5.4648946975e-5),
    "Rat42": Certified(
        RAT42_X, RAT42_Y, lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)),
        ((100, 1, 0.1), (75, 2.5, 0.07)), (7.2462237576e1, 2.6180768402, 6.7359200066e-2),
        (1.7340283401, 8.8295217536e-2, 3.4465663377e-3), 8.0565229338),
    "Rat43": Certified(
        torch.arange(1, 16, dtype=torch.float64), RAT43_Y,
        lambda b, x: b[0] / (1 + torch.exp(b[1] - b[2] * x)) ** (1 / b[3]),
        ((100, 10, 1, 1), (700, 5, 0.75, 1.3)),
        (6.9964151270e2, 5.2771253025, 7.5962938329e-1, 1.2792483859),
        (1.6302297817e1, 2.0828735829, 1.9566123451e-1, 6.8761936385e-1), 8.7864049080e3),
}
# fmt: on


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", SETS)
def test_certified_values(name, start):
    data = SETS[name]
    result = hesse.least_squares(
        lambda b: data.y - data.model(b, data.x),
        vector(*data.starts[start]),
        **dict.fromkeys(("ftol", "xtol", "gtol"), 1e-14),
    )
    assert result.success
    assert 2 * result.cost == pytest.approx(data.sum_of_squares, rel=2e-10)
    assert result.x.tolist() == pytest.approx(data.b, rel=2e-7)
    assert result.standard_errors.tolist() == pytest.approx(data.errors, rel=2e-6)
    assert result.rank == len(data.b)
