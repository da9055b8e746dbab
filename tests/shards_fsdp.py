"""Modules of `fully_shard` (FSDP2): training before and after, products and solutions between."""

import torch
from torch import nn

import hesse
from tests.ranks_faults import _error
from tests.ranks_pool import batches, model


def _named_mesh(place):
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh.from_group(place.group, "cpu", mesh_dim_names=("dp",))


def _sharded(place, whole=False):
    """The model, each layer by itself, or as a whole: that keeps parameters after a forward."""
    from torch.distributed.fsdp import fully_shard

    there, mesh = model(), _named_mesh(place)
    for layer in () if whole else (there[0], there[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(there, mesh=mesh), mesh


def _step(there, data, optimizer):
    x, y = data[0]
    loss = nn.functional.cross_entropy(there(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {name: p.detach().full_tensor() for name, p in there.named_parameters()}


def trained(place, whole, uses_hesse):
    """Parameters after one and two steps, and what Hesse computes between them."""
    there, mesh = _sharded(place, whole)
    data = batches("ragged" if place.size == 3 else "even", place.rank)
    optimizer, seen, found = torch.optim.SGD(there.parameters(), 0.1), [], {}
    there[0].register_forward_hook(lambda *_: seen.append(1))
    first = _step(there, data, optimizer)
    with torch.no_grad():
        there(data[0][0])
    if uses_hesse:
        before = len(seen)
        risk = hesse.Risk(there, nn.CrossEntropyLoss(), data, 0.05, group=mesh)
        found = _computed(risk)
        assert len(seen) > before  # hooks of the user's are called
    second = _step(there, data, optimizer)
    return first, second, found


def _computed(risk):
    H = hesse.hessian_operator(risk)
    G = hesse.ggn_operator(risk, risk.params)
    v = {name: torch.ones_like(p) for name, p in risk.params.items()}
    answers = {
        "hessian": H @ v,
        "solution": hesse.solve(G, v, "cg", rtol=1e-3).x,
        "minimum": hesse.minimize(risk, risk.params, "newton-cg", max_iterations=2).x,
    }
    answers = {name: _whole(tree) for name, tree in answers.items()}
    answers["value"] = H.value
    pairs = hesse.eigsh(H, 2, generator=torch.Generator().manual_seed(7))
    vector = H.domain.unflatten(pairs.vectors[:, 0].contiguous())
    return {**answers, "values": pairs.values, "vector": _whole(vector)["0.weight"].abs()}


def _whole(tree):
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in tree.items()}


def _half_frozen(place):
    """A model whose first layer is frozen, and its risk."""
    there, data, options = model(), batches("even", 0) + batches("even", 1), {}
    there[0].requires_grad_(False)
    if place is not None:
        from torch.distributed.fsdp import fully_shard

        options["group"] = mesh = _named_mesh(place)
        for layer in (there[0], there[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(there, mesh=mesh)
        data = batches("even", place.rank)
    return there, hesse.Risk(there, nn.CrossEntropyLoss(), data, 0.05, **options)


def half_frozen(place):
    """What is computed of a model with a frozen layer, which is sharded as the others are."""
    there, risk = _half_frozen(place)
    H, K = (
        hesse.hessian_operator(risk),
        hesse.ntk_operator(risk, inputs=batches("one", 0)[0][0][:3]),
    )
    v = {name: torch.ones_like(p) for name, p in risk.params.items()}
    optimizer = hesse.HessianFree(risk, mode="retained-graph", max_cg_iterations=3)
    return {
        "value": H.value,
        "hessian": _whole(H @ v),
        "ggn": _whole(hesse.ggn_operator(risk, risk.params) @ v),
        "kernel": hesse.trace(K).value / (1 if place is None else place.size),
        "loss": float(optimizer.step()),
        "trained": _whole({name: p.detach() for name, p in there.named_parameters()}),
    }


def changed(place):
    """The errors where a frozen parameter has changed, and where one that is trained is missing."""
    there, risk = _half_frozen(place)
    params = {name: p for name, p in risk.params.items() if "bias" not in name}
    found = [_error(lambda: hesse.hessian_operator(risk, params).value)]
    there.load_state_dict(there.state_dict())  # the same numbers
    found.append(_error(lambda: hesse.hessian_operator(risk)))
    with torch.no_grad():
        there[0].weight.mul_(2.0)
    found.append(_error(lambda: hesse.hessian_operator(risk)))
    return found


def in_one_process(params, data):
    """What `_computed` gives for the whole risk at these parameters."""
    there = model()
    there.load_state_dict({name: torch.as_tensor(p) for name, p in params.items()})
    return _computed(hesse.Risk(there, nn.CrossEntropyLoss(), data, 0.05))


def refusals(place):
    """Modules that are sharded in ways that Hesse cannot undo."""
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    there, mesh = _sharded(place)
    data = batches("ragged", place.rank)
    loss = nn.CrossEntropyLoss()
    columns = parallelize_module(model(), mesh, {"0": ColwiseParallel()})
    return {
        "no group": _error(lambda: hesse.Risk(there, loss, data)),
        "tensor parallel": _error(lambda: hesse.Risk(columns, loss, data, group=mesh)),
    }
