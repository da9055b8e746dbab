"""Pruning against the published figures: a network 784-40-20-10 without biases on MNIST.

The protocol of WoodFisher, CBS and CHITA: 95 % of all weights go, inputs are (x / 255 - 0.1307) /
0.3081, and test accuracy is that on all 10,000 test images. `--data FILE` holds x_train, y_train,
x_test, y_test in an .npz file. Three networks of our own come from 1,300 steps of SGD (batches of
64, rate 0.02, momentum 0.5), dense 93.7 to 93.9 %; they are pruned with 100 or 1,000 training
images and their labels, a fifth of which finds the damping by its loss; then all steps are taken
again with all images. "One-shot" is one step. Each further one, and a refit, leads the outputs for
these images back to those of the dense network, in which the labels have no part.

`--checkpoint FILE` adds a network from an .npz file (fc1.weight, fc2.weight, fc3.weight), pruned as
above, and pruned with refit on the risk: every step takes the gradient of 15,000 images, others
each time, of the 55,000 that are not held out. That is training, and is to be compared with it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.apps import Repair, prune

CE = nn.CrossEntropyLoss()
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("magnitude", {"score": "magnitude", "repair": False}),
    ("magnitude, repair", {"score": "magnitude"}),
    ("OBD", {"score": "obd", "repair": False}),
    ("OBD, repair", {"score": "obd"}),
    ("K-FAC OBS, repair", {"score": "obs", "curvature": hesse.kfac_operator}),
    ("layer-wise OBS, repair", {"score": "obs", "curvature": "layers"}),
    ("exchange, one-shot", {}),
    ("exchange, 5 steps, refit", {"steps": 5, "repair": Repair(refit=5)}),
    ("exchange, 20 steps", {"steps": 20}),
]


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks apps prune", description=__doc__)
    parser.add_argument("--data", required=True, help="path of an .npz file")
    parser.add_argument("--checkpoint", help="path of an .npz file")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--examples", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(list(arguments))
    torch.set_num_threads(options.threads)
    data = Images(options.data)
    nets = {f"own, seed {seed}": data.trained(seed) for seed in options.seeds}
    if options.checkpoint:
        nets["checkpoint"] = loaded(options.checkpoint)
    rows = [row for row in ROWS if options.only in row[0]]
    with hesse.deterministic():
        for count in options.examples:
            print(f"\n95 % sparse, {count} examples: test accuracy (products, seconds)")
            for name, settings in rows:
                cells = [measured(data, net, count, 0.95, settings) for net in nets.values()]
                print(f"{name:26}" + "  ".join(cells), flush=True)
        if options.checkpoint:
            refitted(data, nets["checkpoint"])
            levels(data, nets["checkpoint"])


class Images:
    """MNIST, normalised."""

    def __init__(self, path: str) -> None:
        arrays = np.load(path)

        def part(name: str) -> tuple[Tensor, Tensor]:
            x = torch.tensor(arrays[f"x_{name}"].reshape(-1, 784) / 255.0, dtype=torch.float32)
            return (x - 0.1307) / 0.3081, torch.tensor(arrays[f"y_{name}"].astype(np.int64))

        (self.X, self.y), (self.X_test, self.y_test) = part("train"), part("test")
        generator = torch.Generator().manual_seed(1)
        self.order = torch.randperm(len(self.X), generator=generator)

    def trained(self, seed: int) -> nn.Sequential:
        """A network by a short training."""
        torch.manual_seed(seed)
        model, generator = network(), torch.Generator().manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.5)
        for _ in range(1300):
            batch = torch.randint(0, len(self.X), (64,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(self.X[batch]), self.y[batch]).backward()
            optimizer.step()
        return model

    def risk(self, model: nn.Module, start: int, stop: int) -> hesse.Risk:
        """On some of the shuffled training images."""
        chosen = self.order[start:stop]
        return hesse.Risk(model, CE, (self.X[chosen], self.y[chosen]))

    @torch.no_grad()
    def accuracy(self, model: nn.Module, params: Any = None) -> float:
        """On the test images, in percent."""
        given: dict[str, Any] = dict(model.named_parameters()) if params is None else params
        outputs = torch.func.functional_call(model, given, (self.X_test,))
        return 100.0 * float((outputs.argmax(1) == self.y_test).double().mean())


def network() -> nn.Sequential:
    """MLPNet."""
    a, b, c = (nn.Linear(*s, bias=False) for s in ((784, 40), (40, 20), (20, 10)))
    return nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), c)


def loaded(path: str) -> nn.Sequential:
    """The network of a file."""
    model, arrays = network(), np.load(path)
    with torch.no_grad():
        for k, p in enumerate(model.parameters(), 1):
            p.copy_(torch.tensor(arrays[f"fc{k}.weight"]))
    return model


def measured(
    data: Images, model: nn.Module, count: int, sparsity: float, settings: dict[str, Any]
) -> str:
    """The accuracy of a pruned network, and what it took."""
    start = time.process_time()
    result = prune(data.risk(model, 0, count), None, sparsity, **settings)
    seconds = time.process_time() - start
    accuracy = data.accuracy(model, result.params)
    return f"{accuracy:.2f} ({result.products}, {seconds:.1f} s)"


def levels(data: Images, model: nn.Module) -> None:
    """The checkpoint by sparsity, 1,000 examples."""
    print(f"\ncheckpoint, dense {data.accuracy(model):.2f}, 1,000 examples, by sparsity")
    for name, settings in (("one-shot", {}), ("20 steps", {"steps": 20})):
        for sparsity in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98):
            print(f"{name:10}{sparsity:<6g}{measured(data, model, 1000, sparsity, settings)}")


def refitted(data: Images, model: nn.Module) -> None:
    """The checkpoint with refit, which trains, on 55,000 images with 5,000 held out."""
    print("\ncheckpoint, refit on the training data")
    risk, held_out = data.risk(model, 0, 55000), data.risk(model, 55000, 60000)
    for sparsity, steps, refit in ((0.95, 15, 15), (0.98, 25, 20)):
        repair = Repair(target="risk", refit=refit, examples=15000, exchanges=0, max_iterations=20)
        start = time.process_time()
        result = prune(
            *(risk, None, sparsity),
            score="obd",
            repair=repair,
            held_out=held_out,
            steps=steps,
        )
        seconds = time.process_time() - start
        accuracy = data.accuracy(model, result.params)
        print(
            f"{sparsity:<6g}{accuracy:.2f} ({result.products} products, {seconds:.0f} s)",
            flush=True,
        )
