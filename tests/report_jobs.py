"""The command `hesse curvature` on ranks that share a risk, and on such that do not."""

import io
from contextlib import redirect_stderr, redirect_stdout

from hesse.cli import main

SCRIPT = """
import torch, hesse
from torch import distributed as dist
torch.manual_seed(0)
model = torch.nn.Linear(2, 2).double()
x, y = torch.randn(9, 2).double(), torch.randint(0, 2, (9,))
rank, size = dist.get_rank(), dist.get_world_size()
risk = hesse.Risk(
    model, torch.nn.CrossEntropyLoss(), [(x[rank::size], y[rank::size])], group=dist.group.WORLD
)
"""
WHOLE = """
import torch, hesse
torch.manual_seed(0)
model = torch.nn.Linear(2, 2).double()
data = torch.randn(9, 2).double(), torch.randint(0, 2, (9,))
risk = hesse.Risk(model, torch.nn.CrossEntropyLoss(), data)
"""
FUNCTION = "import torch\nx = torch.ones(2)\ndef f(x):\n    return (x**2).sum()\n"
WITHOUT_RISK = SCRIPT + "if rank == 1:\n    del risk\n"
WRONG_DATA = SCRIPT.replace("(x[rank::size], y[", "(x[rank::size], 5 * (rank == 1) + y[")
OF_TWO = SCRIPT.replace("dist.group.WORLD", "(dist.new_group([0, 1]), None)[rank > 1]")


def commanded(place, file, *options):
    """The exit status of the command, and what it prints."""
    output = file.parent / "out"
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(io.StringIO()) as complained:
        try:
            main(["curvature", str(file), "--output", str(output), *options])
        except SystemExit as end:
            return end.code, said.getvalue(), complained.getvalue()
    return None
