# SPDX-License-Identifier: Apache-2.0
"""The contexts of a user around the calls of a case, as expressions."""

from __future__ import annotations

CONTEXTS = {
    "none": "contextlib.nullcontext()",
    "no_grad": "torch.no_grad()",
    "inference_mode": "torch.inference_mode()",
    "anomaly": "torch.autograd.set_detect_anomaly(True)",
    "autocast": "torch.autocast('cpu', torch.bfloat16)",
    "default dtype": "default_dtype(torch.float64)",
    "deterministic": "hesse.deterministic()",
    "deterministic algorithms": "deterministic_algorithms()",
    "flop counter": "torch.utils.flop_counter.FlopCounterMode(display=False)",
    "save on cpu": "torch.autograd.graph.save_on_cpu()",
    "mutation": "torch.autograd.graph.allow_mutation_on_saved_tensors()",
    "device": "torch.device('cpu')",
    "sdpa math": "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)",
    "no mkldnn": "torch.backends.mkldnn.flags(enabled=False)",
    "multithreading off": "torch.autograd.set_multithreading_enabled(False)",
}
