"""The problems that have a version in JAX: pairs of outputs(params, inputs) and loss(z, targets).

Parameters have the names and the shapes that they have in PyTorch. This file is read by
`jax_worker`, in an environment of its own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

INSIDE = 512
"""As in `benchmarks.models.equations`."""


def layers(params: dict, prefix: str = "") -> list[tuple[jax.Array, jax.Array]]:
    """(weight, bias) in order of the numbers in their names."""
    names = {name.rpartition(".")[0] for name in params if name.startswith(prefix)}
    ordered = sorted(names, key=lambda name: int(name.rpartition(".")[2]))
    return [(params[f"{name}.weight"], params[f"{name}.bias"]) for name in ordered]


def autoencoder(params: dict, x: jax.Array) -> jax.Array:
    """Logits; no tanh on the code and on the outputs."""
    chain = layers(params)
    for depth, (weight, bias) in enumerate(chain, start=1):
        x = x @ weight.T + bias
        if depth not in (len(chain) // 2, len(chain)):
            x = jnp.tanh(x)
    return x


def reconstruction_loss(logits: jax.Array, pixels: jax.Array) -> jax.Array:
    """Summed over pixels, mean over images."""
    entropy = jnp.logaddexp(0.0, logits) - logits * pixels
    return entropy.sum() / len(pixels)


def convnet(params: dict, images: jax.Array) -> jax.Array:
    """Three convolutions with pooling, and a linear layer; channels last, as XLA likes them."""
    *convolutions, (head, offset) = layers(params)
    x = images.transpose(0, 2, 3, 1)
    for weight, bias in convolutions:
        kernel = weight.transpose(2, 3, 1, 0)
        names = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=names)
        x = jax.nn.relu(x + bias)
        count, height, width, channels = x.shape
        x = x.reshape(count, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1) @ head.T + offset


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over examples."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
    return -chosen.mean()


def logistic_regression(params: dict, x: jax.Array) -> jax.Array:
    """Logits."""
    return x @ params["weight"].T + params["bias"]


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over examples."""
    return (jnp.logaddexp(0.0, logits) - logits * targets).mean()


def poisson_residuals(params: dict, points: jax.Array) -> jax.Array:
    """-Δu - source inside, u on the boundary."""
    *hidden, (head, offset) = layers(params, "u.")

    def u(at: jax.Array) -> jax.Array:
        for weight, bias in hidden:
            at = jnp.tanh(at @ weight.T + bias)
        return (at @ head.T + offset)[:, 0]

    def second_derivative(axis: jax.Array) -> jax.Array:
        direction = jnp.broadcast_to(axis, inside.shape)
        slope = lambda at: jax.jvp(u, (at,), (direction,))[1]  # noqa: E731
        return jax.jvp(slope, (inside,), (direction,))[1]

    inside, boundary = points[:INSIDE], points[INSIDE:]
    laplacian = sum(map(second_derivative, jnp.eye(2)))
    source = 2 * jnp.pi**2 * jnp.sin(jnp.pi * inside).prod(axis=1)
    return jnp.concatenate([-laplacian - source, u(boundary)])


def mean_square(residuals: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over points."""
    return ((residuals - targets) ** 2).mean()


def rosenbrock(params: dict, _: None) -> jax.Array:
    """The whole function: there is no loss behind it."""
    x = params["x"]
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


FUNCTIONS = {
    "autoencoder": (autoencoder, reconstruction_loss),
    "convnet": (convnet, cross_entropy),
    "logistic_regression": (logistic_regression, binary_cross_entropy),
    "pinn": (poisson_residuals, mean_square),
    "rosenbrock": (rosenbrock, None),
}
