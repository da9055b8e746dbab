"""The subjects, by name: Hesse's ways to take a product, and its peers."""

from __future__ import annotations

from benchmarks.subjects import (
    peers_backward,
    peers_compiled,
    peers_curvlinops,
    peers_jax,
    peers_transforms,
    rungs,
)
from benchmarks.subjects.subject import Subject

SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for module in (
        rungs,
        peers_backward,
        peers_transforms,
        peers_compiled,
        peers_curvlinops,
        peers_jax,
    )
    for subject in module.SUBJECTS
}
