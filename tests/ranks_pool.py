"""Three processes that wait for jobs, and what jobs are made of: a problem whose data are split."""

import datetime
import multiprocessing
import os
import tempfile
import traceback
import warnings

import numpy
import torch
from torch import distributed, nn

import hesse
from hesse.ranks import Ranks

SIZE = 3
TIMEOUT = datetime.timedelta(seconds=30)
EXAMPLES = 23


def forks():
    """The context of processes that are forks of a server: it has imported all that they need.

    torch imports its compiler, a second, where its forward mode first meets a constant factor.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "tests.ranks_killed",
            "torch.distributed.tensor",
            "torch.distributed.fsdp",
            "torch._dynamo",
        ]
    )
    return context


class Pool:
    """`SIZE` processes over gloo, started once. A job is a function of `Place` and arguments."""

    def __init__(self):
        context = forks()
        self.folder = tempfile.TemporaryDirectory()
        self.pipes, self.processes = [], []
        for rank in range(SIZE):
            ours, theirs = context.Pipe()
            store = os.path.join(self.folder.name, "store")
            process = context.Process(target=_serve, args=(rank, store, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, job, *args, size=SIZE):
        """What job(place, *args) returns on each of the first `size` ranks, or raises."""
        for pipe in self.pipes[:size]:
            pipe.send((job, size, args))
        answers = []
        for pipe in self.pipes[:size]:
            assert pipe.poll(90), "a rank does not answer"
            answers.append(pipe.recv())
        failures = [text for failed, text in answers if failed]
        assert not failures, "\n".join(failures)
        return [value for _, value in answers]

    def close(self):
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self.folder.cleanup()


def _serve(rank, store, pipe):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=SIZE, timeout=TIMEOUT
    )
    groups = {size: distributed.new_group(list(range(size)), timeout=TIMEOUT) for size in (1, 2)}
    groups[SIZE] = distributed.group.WORLD
    while (request := pipe.recv()) is not None:
        job, size, args = request
        torch.manual_seed(rank)  # ranks draw other numbers, if each draws its own
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
                answer = False, _plain(job(Place(rank, size, groups[size]), *args))
        except Exception:
            answer = True, f"rank {rank}:\n{traceback.format_exc()}"
        pipe.send(answer)


def _plain(value):
    """Without tensors, which processes pass on by files."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().copy()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


class Place:
    """Where a job runs: a rank of so many."""

    def __init__(self, rank, size, group):
        self.rank, self.size, self.group = rank, size, group

    def ranks(self, seconds=TIMEOUT.seconds):
        return Ranks(self.group, datetime.timedelta(seconds=seconds))


# -- A problem -------------------------------------------------------------------------------------


def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def examples():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(EXAMPLES, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (EXAMPLES,), generator=generator)


# The batches of each rank, by their sizes.
SPLITS = {
    "one": [[9, 14]],
    "even": [[12], [11]],
    "ragged": [[7, 3], [1], [5, 4, 3]],
    "empty": [[10, 4], [], [9]],
    "first empty": [[], [23]],
    "four": [[5, 2], [9], [], [7]],
}


def batches(split, rank):
    sizes = SPLITS[split]
    start = sum(map(sum, sizes[:rank]))
    x, y = examples()
    found = []
    for size in sizes[rank]:
        found.append((x[start : start + size], y[start : start + size]))
        start += size
    return found


def whole(**options):
    """The risk in one process."""
    return risk(examples(), **options)


def shared(place, split, **options):
    """The same risk in several."""
    return risk(batches(split, place.rank), group=place.ranks(), **options)


def risk(data, loss="cross-entropy", weight_decay=0.05, reduction="mean", **options):
    losses = {
        "cross-entropy": nn.CrossEntropyLoss,
        "weighted": lambda reduction: nn.CrossEntropyLoss(
            torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), reduction=reduction
        ),
    }
    return hesse.Risk(model(), losses[loss](reduction=reduction), data, weight_decay, **options)


def vector(seed=5, columns=None):
    generator = torch.Generator().manual_seed(seed)
    n = sum(p.numel() for p in model().parameters())
    shape = (n,) if columns is None else (n, columns)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def bits(answers):
    """All numbers of an answer as bytes."""
    if isinstance(answers, numpy.ndarray):
        return answers.tobytes()
    if isinstance(answers, dict):
        return b"".join(bits(each) for each in answers.values())
    if isinstance(answers, (list, tuple)):
        return b"".join(map(bits, answers))
    return repr(answers).encode()


def close(found, wanted, path=()):
    """Equal to 1e-10 of the largest entry; counts and names are the same."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name in wanted:
            close(found[name], wanted[name], (*path, name))
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for index, (one, two) in enumerate(zip(found, wanted, strict=True)):
            close(one, two, (*path, index))
    elif isinstance(wanted, (numpy.ndarray, float)):
        found, wanted = numpy.asarray(found), numpy.asarray(wanted)
        size = max(numpy.abs(wanted).max(), 1e-300)
        assert found.shape == wanted.shape, path
        assert numpy.abs(found - wanted).max() <= 1e-10 * size, path
    else:
        assert found == wanted, path
