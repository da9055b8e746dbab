# SPDX-License-Identifier: Apache-2.0
"""`KroneckerCurvature`: a Kronecker-factored curvature matrix as an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.curvature.kronecker.blocks import Block, DampingForm
from hesse.curvature.kronecker.coverage import Coverage
from hesse.curvature.kronecker.estimate import Estimator
from hesse.curvature.kronecker.saved import save
from hesse.errors import ArgumentError, StructureError, check_choice
from hesse.operators.algebra import LinearOperator
from hesse.operators.batched_kronecker import BatchedKronecker
from hesse.operators.placed_blocks import PlacedBlocks
from hesse.operators.rotated_diagonal import RotatedDiagonal
from hesse.operators.whole_on_shards import on_shards
from hesse.progress import FilePath
from hesse.ranks import alike
from hesse.vectors.space import Space, Tree

Damping = float | Mapping[str, float]


class KroneckerCurvature(LinearOperator):
    """A block-diagonal matrix of Kronecker products, made by `kfac_operator`, `ekfac_operator`.

    Args:
        space: of the parameters. If these are sharded, each process has all factors.
        blocks: one for each weight with its bias, and for what else there is.
        weight_decay: lambda of lambda I, for all parameters that vary.
        damping, damping_form: see `damped`.
        about: what it is, for its `repr`.
        estimator: where the blocks come from; None for loaded ones.

    Attributes:
        coverage: the table of its blocks.
        damping, damping_form: what is added.
    """

    def __init__(
        self,
        space: Space,
        blocks: Sequence[Block],
        *,
        weight_decay: float = 0.0,
        damping: Damping = 0.0,
        damping_form: DampingForm = "exact",
        about: str = "",
        estimator: Estimator | None = None,
    ) -> None:
        super().__init__(space, symmetric=True)
        self.blocks, self.weight_decay, self.about = list(blocks), weight_decay, about
        self.damping: Damping = damping
        self.damping_form: DampingForm = damping_form
        self._estimator = estimator
        check_choice("damping_form", damping_form, ["exact", "factored", "relative"])
        _check_names(damping, space)
        self._shifts = [self._shift(block, damping) for block in self.blocks]
        if damping_form == "factored" and self.is_rotated:
            raise ArgumentError(
                expected='damping_form="exact" or "relative" for EK-FAC, whose eigenvalues are no '
                "products of those of two factors",
                got='"factored"',
                remedy="Use kfac_operator for factored damping.",
            )
        self._whole = self._placed(self._operators())
        self._here = on_shards(self._whole, space)

    @property
    def coverage(self) -> Coverage:
        """Which block each parameter is in, and by which rule."""
        return Coverage.of(self.blocks)

    @property
    def is_rotated(self) -> bool:
        """Whether it is EK-FAC: diagonals in eigenbases, instead of products of factors."""
        return any(block.d is not None for block in self.blocks)

    # -- Other points, other damping ---------------------------------------------------------------

    @public("{self}.at(x)")
    def at(self, x: Tree) -> KroneckerCurvature:
        """The same matrix at other parameters, with the same random signs.

        Programs are traced only once for all points. EK-FAC takes one step of subspace iteration
        from its present eigenbases instead of decomposing the factors again; K-FAC decomposes them
        when its inverse is asked for.

        Raises:
            StructureError: the operator was loaded from a file.
        """
        if self._estimator is None:
            raise StructureError(
                expected="an operator of a risk, which can be computed at other points",
                got="one that was loaded from a file",
                remedy="Call hesse.kfac_operator(risk, x) or hesse.ekfac_operator(risk, x).",
            )
        self.domain.leaves(x, what="x")
        blocks = self._estimator.blocks(x, self.blocks if self.is_rotated else ())
        return self._with(blocks, self.damping, self.damping_form)

    @public("{self}.damped(damping)", nested=False)
    def damped(self, damping: Damping, damping_form: DampingForm = "exact") -> KroneckerCurvature:
        r"""The same matrix with other damping; nothing is estimated again.

        Args:
            damping: lambda, or a mapping from names of parameters (or patterns, "encoder.*") to
                lambda of their blocks, 0 where none fits.
            damping_form: "exact": K + lambda I. "factored": (L + pi sqrt(lambda) I) x
                (R + sqrt(lambda) / pi I) with pi^2 the ratio of the mean eigenvalues of L and R
                (Martens & Grosse 2015), whose inverse needs no eigenvectors and costs half to
                apply. "relative": lambda times the mean eigenvalue of each block is added to it, as
                0.1 in Grosse et al. 2023, arXiv:2308.03296.

        >>> import torch, hesse
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> risk = hesse.Risk(torch.nn.Linear(1, 1, bias=False), torch.nn.MSELoss(), (x, x))
        >>> hesse.kfac_operator(risk).damped(3.0).to_dense()              # 2 (1 + 4) / 2 + 3
        tensor([[8.]])
        """
        return self._with(self.blocks, damping, damping_form)

    def _with(
        self, blocks: Sequence[Block], damping: Damping, damping_form: DampingForm
    ) -> KroneckerCurvature:
        return KroneckerCurvature(
            self.domain,
            blocks,
            weight_decay=self.weight_decay,
            damping=damping,
            damping_form=damping_form,
            about=self.about,
            estimator=self._estimator,
        )

    def _shift(self, block: Block, damping: Damping) -> float:
        """The damping of a block, as an addition to its eigenvalues."""
        value = damping
        if isinstance(damping, Mapping):
            values = {name: _matching(damping, name) for name in block.names}
            if len(set(values.values())) > 1:
                raise ArgumentError(
                    expected="one damping for the parameters of a block",
                    got=", ".join(f"{name}: {value:g}" for name, value in values.items()),
                    remedy="Give a weight and its bias the same damping, by a pattern.",
                )
            value = next(iter(values.values()))
        if not isinstance(value, (int, float)) or not 0.0 <= value < float("inf"):
            raise ArgumentError(
                expected="damping to be a number of at least zero, or a mapping of names to such",
                got=repr(value),
                remedy="Give 0 for none.",
            )
        return value * block.mean if self.damping_form == "relative" else float(value)

    # -- The operator ------------------------------------------------------------------------------

    def _operators(self) -> list[LinearOperator]:
        operators = []
        for block, shift in zip(self.blocks, self._shifts, strict=True):
            decay = 0.0 if block.rule == "frozen" else self.weight_decay
            factored = self.damping_form == "factored" and shift > 0
            make = block.factored_operator if factored else block.operator
            operators.append(make(shift + decay))
        return operators

    def _placed(self, operators: Sequence[LinearOperator]) -> PlacedBlocks:
        places = [block.place for block in self.blocks]
        return PlacedBlocks(self.domain.whole_space, operators, places)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._here._matvec(v)

    def _matmat(self, block: Tensor) -> Tensor:
        return self._here._matmat(block)

    def _diagonal(self) -> Tensor | None:
        return self._here._diagonal()

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator | None:
        return self._here._plus_diagonal(D)

    def _inverse(self) -> LinearOperator:
        inverses = [A._inverse() for A in self._whole.blocks]
        singular = [
            block.names[0]
            for block, inverse in zip(self.blocks, inverses, strict=True)
            if inverse is None
        ]
        if singular:
            more = f" and {len(singular) - 3} more" if len(singular) > 3 else ""
            raise StructureError(
                expected="blocks without the eigenvalue zero, to be inverted",
                got=f"singular blocks of {', '.join(singular[:3])}{more}",
                remedy="Add damping: damping=1e-3, K.damped(1e-3), or K + 1e-3 * I.",
            )
        whole = self._placed([A for A in inverses if A is not None])
        return on_shards(whole, self.domain)

    @public("{self}.eigenvalues()")
    def eigenvalues(self) -> Tensor:
        """All n eigenvalues in ascending order; those of the factors are computed once."""
        return torch.cat([_rotated(A).w for A in self._whole.blocks]).sort().values

    @public("{self}.power({p})")
    def power(self, p: float) -> LinearOperator:
        """K^p by the eigenvalues of the factors, such as K^(-1/2) for samples of N(0, K^-1).

        Raises:
            StructureError: p < 0, and an eigenvalue is zero.
        """
        if p < 0:
            self._inverse()  # raises for a singular block
        return self._function(lambda w: w**p)

    @public("{self}.sample({generator})")
    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A vector from the normal distribution N(0, K^-1), as of a Laplace approximation."""
        return self.power(-0.5).matvec(self.domain.gaussian(generator))

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator:
        whole = self._placed([_rotated(A)._function(f) for A in self._whole.blocks])
        return on_shards(whole, self.domain)

    @property
    def is_structured(self) -> bool:
        return True

    def _eigenvalues(self) -> Tensor | None:
        return self._whole._eigenvalues()

    def _trace(self) -> float | None:
        return self._whole._trace()

    def _logdet(self) -> tuple[float, float] | None:
        return self._whole._logdet()

    # -- Files and representations -----------------------------------------------------------------

    @public("{self}.save(path)")
    def save(self, path: FilePath) -> None:
        """Write factors, bases and names to a safetensors file, for `hesse.load_kfac`.

        Of several processes, which all make the call, the first one writes.
        """
        ranks = self.domain.ranks
        with alike(ranks):
            if ranks is None or ranks.rank == 0:
                save(self, path)

    def __reduce__(self) -> Any:
        options = {
            "weight_decay": self.weight_decay,
            "damping": self.damping,
            "damping_form": self.damping_form,
            "about": self.about,
            "estimator": self._estimator,
        }
        return _rebuilt, (self.domain, self.blocks, options)

    def _expression(self) -> str:
        return "EK-FAC" if self.is_rotated else "K-FAC"

    def _details(self) -> tuple[tuple[str, str], ...]:
        return ((self._expression(), self._in_words()),)

    def _in_words(self) -> str:
        about = [self.about] if self.about else []
        if self.weight_decay:
            about.append(f"weight decay {self.weight_decay:g}")
        if self.damping:
            about.append(f"{self.damping_form} damping {self.damping}")
        return ", ".join(about)

    def __repr__(self) -> str:
        lines = [self._in_words(), *self.coverage.lines()]
        return "\n".join([self._title(), *(f"  {line}" for line in lines if line)])


def _rebuilt(space: Space, blocks: Sequence[Block], options: dict[str, Any]) -> KroneckerCurvature:
    return KroneckerCurvature(space, blocks, **options)


def _check_names(damping: Damping, space: Space) -> None:
    """Raise if a name or a pattern is that of no parameter, such as one that is misspelt."""
    for key in damping if isinstance(damping, Mapping) else ():
        if key not in space.names and not any(fnmatchcase(name, key) for name in space.names):
            raise ArgumentError(
                expected=f"names of parameters, or patterns of them, such as {space.names[:4]}",
                got=repr(key),
                remedy="See K.coverage for all of them, or give one number for all.",
            )


def _matching(damping: Mapping[str, float], name: str) -> float:
    """The damping of a parameter: by its name, else by the first pattern that fits."""
    if name in damping:
        return damping[name]
    return next((value for key, value in damping.items() if fnmatchcase(name, key)), 0.0)


def _rotated(A: LinearOperator) -> RotatedDiagonal:
    if isinstance(A, BatchedKronecker):
        return A.rotated
    assert isinstance(A, RotatedDiagonal)
    return A
