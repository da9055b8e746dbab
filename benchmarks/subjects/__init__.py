"""The subjects, by name: Hesse's ways to take a product, and its peers."""

from __future__ import annotations

from benchmarks.subjects import (
    fishers,
    hesse_modes,
    jacobians,
    peers_backward,
    peers_compiled,
    peers_curvlinops,
    peers_jax,
    peers_transforms,
)
from benchmarks.subjects.subject import Subject

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for module in (
        hesse_modes,
        jacobians,
        fishers,
        peers_backward,
        peers_transforms,
        peers_compiled,
        peers_curvlinops,
        peers_jax,
    )
    for subject in module.SUBJECTS
}
