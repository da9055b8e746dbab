"""The problems, by name: from a network of three linear layers to unedited transformers."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.models import (
    autoencoders,
    convolutions,
    equations,
    functions,
    gpt,
    huggingface,
    lstm,
)
from benchmarks.problem import Problem

MODELS: dict[str, Callable[[], Problem]] = {
    "small-autoencoder": autoencoders.small,
    "deep-autoencoder": autoencoders.deep,
    "gpt": gpt.problem,
    "gpt2": huggingface.gpt2,
    "llama": huggingface.llama,
    "bert": huggingface.bert,
    "vit": huggingface.vit,
    "convnet": convolutions.convnet,
    "resnet18": convolutions.resnet18,
    "lstm": lstm.problem,
    "pinn": equations.poisson,
    "rosenbrock": functions.rosenbrock,
    "logistic-regression": functions.logistic_regression,
}
