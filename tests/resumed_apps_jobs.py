"""Applications over ranks that are killed after a save, and go on from their files."""

import contextlib
import warnings
from pathlib import Path
from unittest import mock

import hesse
from hesse import checkpoint
from hesse.checkpoint import Checkpoint
from tests.apps_jobs import SETS, _part, of_all
from tests.outputs_jobs import Problem, examples
from tests.shards_jobs import seed


def _influence(p, **options):
    x, y = examples("classes")
    return hesse.apps.influence(p.risk, p.params, _part(p, x[:4] + 0.1, y[:4]), **options)


def _on_examples(p, **limits):
    found = _influence(p, **limits)
    return of_all(p, found.scores, 1), found.products


def _of_groups(p, **limits):
    found = _influence(p, groups=SETS, removal="newton", **limits)
    return found.scores, found.products


def _on_themselves(p, **limits):
    found = hesse.apps.self_influence(p.risk, p.params, most=5, **limits)
    return of_all(p, found.scores), found.products


def _landscape(p, **limits):
    found = hesse.apps.landscape(
        p.risk, p.params, directions="gradient", grid=3, generator=seed(), **limits
    )
    return found.values, found.products


def _pruned(p, **limits):
    found = hesse.apps.prune(
        p.risk, p.params, 0.5, generator=seed(), damping=0.1, score="obd", steps=3, **limits
    )
    return p.whole(found.params), found.products


def _bounded(method):
    def run(p, **limits):
        upper = p.space.unflatten(p.space.flatten(p.params).abs() * 0.5)
        with warnings.catch_warnings():  # the start is outside
            warnings.simplefilter("ignore")
            found = hesse.minimize(
                p.risk, p.params, method, bounds=(-0.3, upper), max_iterations=4, **limits
            )
        return p.whole(found.x), found.nit

    return run


RUNS = {
    "influence": _on_examples,
    "groups": _of_groups,
    "self-influence": _on_themselves,
    "landscape": _landscape,
    "pruning": _pruned,
    "lbfgs within bounds": _bounded("lbfgs"),
    "trust-cg within bounds": _bounded("trust-cg"),
}


# Those whose state is the same in all processes, and those of which each has its part.
WHOLE = ["groups", "pruning"]
SHARDED = [name for name in RUNS if name not in WHOLE]


class _Killed(Exception):
    pass


@contextlib.contextmanager
def _killed_after(saves):
    """Raise after so many saves, none of which is left out."""
    write, count = Checkpoint.save, []

    def save(self, state, *, now=False):
        write(self, state, now=True)
        if self.path is not None:
            count.append(state)
            if len(count) == saves:
                raise _Killed

    with (
        mock.patch.object(checkpoint, "_PAUSE", 0),
        mock.patch.object(Checkpoint, "save", save),
        contextlib.suppress(_Killed),
    ):
        yield


def resumed(place, folder, names, is_sharded):
    """By name: what a run gives, whether another was killed, and what it gives when it goes on."""
    p, found = Problem(place, "even", is_sharded=is_sharded), {}
    for name in names:
        run, limits, was_killed = RUNS[name], {"checkpoint": Path(folder) / name}, True
        whole = run(p)
        with _killed_after(2):
            run(p, **limits)
            was_killed = False
        found[name] = whole, was_killed, run(p, **limits)
    return found
