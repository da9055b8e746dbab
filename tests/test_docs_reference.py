# SPDX-License-Identifier: Apache-2.0
"""The reference shows every public name, and each is documented in a form that is not cut off."""

import doctest
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import hesse

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def _hook(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _hook("reference")
navigation = _hook("navigation")
PUBLIC = [(package, name) for package in reference.PACKAGES for name in reference.names_of(package)]
ROOTS = ["errors", "result", "methods", "ranks", "vectors", "operators", "krylov", "estimators"]
ROOTS += ["ad", "risk", "curvature", "optimize", "apps", "testing"]


def _public_members(value):
    """The functions and properties of a public class that a user sees, by name."""
    for name, member in inspect.getmembers_static(value):
        if name.startswith("_"):
            continue
        owner = next(base for base in value.__mro__ if name in vars(base))
        if owner.__module__.startswith("hesse."):
            member = getattr(member, "__func__", member)
            if inspect.isfunction(member) or isinstance(member, property):
                yield name, member


def _docstrings():
    """Every function, class, method and property that the reference shows."""
    for package, name in PUBLIC:
        value = getattr(importlib.import_module(package), name)
        label = reference.title(package, name)
        if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
            yield pytest.param(value, id=label)
        if inspect.isclass(value):
            for member_name, member in _public_members(value):
                yield pytest.param(member, id=f"{label}.{member_name}")


def test_every_package_has_a_page_that_is_in_the_navigation():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for root in ROOTS:
        assert f"hesse.{root}: reference/{root}.md" in menu
    shown = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("reference/*.md"))
    assert sorted(re.findall(r"^::: (\S+)$", shown, re.MULTILINE)) == sorted(reference.PACKAGES)


def test_every_public_name_of_the_root_is_a_name_of_a_package():
    names = {name for _, name in PUBLIC}
    assert set(hesse.__all__) - names <= {"apps", "testing"}


def test_every_package_with_public_names_is_shown():
    for path in sorted((ROOT / "src" / "hesse").rglob("__init__.py")):
        name = ".".join(path.relative_to(ROOT / "src").parent.parts)
        if name != "hesse" and hasattr(importlib.import_module(name), "__all__"):
            assert name in reference.PACKAGES


def test_what_a_user_makes_or_gets_is_shown_with_its_base():
    shown = {reference.title(*entry) for entry in PUBLIC}
    names = "CG BlockCG MultiShiftCG MINRES LSMR GMRES Direct Lanczos LOBPCG Hutchinson HutchPP "
    names += "XTrace XNysTrace XDiag LanczosDensity KernelPolynomial CurvatureOperator "
    names += "jacobian_operator hessian_operator ggn_operator fisher_operator ntk_operator "
    names += "gradient_covariance_operator sparse_hessian_operator deterministic Solution "
    names += "Eigenpairs NewtonCG TrustCG TrustKrylov Cubic LBFGS NewtonMINRES NewtonDirect "
    names += "Enriched fisher_root_operator"
    assert {f"hesse.{name}" for name in names.split()} <= shown
    assert {"hesse.result.Result", "hesse.krylov.method.Method"} <= shown
    assert "[`hesse.result.Result`]" in reference.entries("hesse.krylov")
    assert "[`hesse.LinearOperator`]" in reference.entries("hesse.curvature")


@pytest.mark.parametrize("package", reference.PACKAGES)
def test_every_public_name_has_an_entry(package):
    text = reference.entries(package)
    index = reference.index()
    for name in reference.names_of(package):
        assert re.search(rf"heading: \"{re.escape(reference.title(package, name))}\"", text)
        assert f"[`{reference.title(package, name)}`]" in index


def test_the_interface_of_an_operator_is_shown_with_what_it_inherits():
    text = reference.entries("hesse.operators")
    for name in ("matvec", "matmat", "curvature", "to_dense", "to_scipy", "shape", "dtype"):
        inherited = name not in vars(hesse.LinearOperator)
        assert (f'"{name}"' in text) == inherited


def test_public_docstrings_begin_with_a_line():
    for value in _docstrings():
        if inspect.isroutine(value) and value.__name__ in _inherited_names():
            continue
        doc = inspect.getdoc(value)
        assert doc, f"no docstring: {value}"
        first, _, rest = doc.partition("\n")
        assert first.strip(), f"no first line: {value}"
        assert not rest or rest.startswith("\n"), f"a sentence goes on below the line: {value}"


def _inherited_names():
    """Overrides, which are documented where the interface is."""
    return {"expect", "step", "at"}


def test_arguments_are_described_in_a_form_that_is_read_to_the_end():
    """Each entry below "Args:" begins with names and a colon; what goes on is indented further."""
    section = re.compile(r"^Args:\n((?: .*\n|\n(?= ))+)", re.MULTILINE)
    for value in _docstrings():
        found = section.search(f"{inspect.getdoc(value)}\n")
        for line in found[1].splitlines() if found else []:
            if re.match(r" {4}\S", line):
                assert re.match(r" {4}\*{0,2}\w+(, \*{0,2}\w+)*: ", line), f"{value}: {line}"


@pytest.mark.parametrize("name", ["examples", "offline", "reference"])
def test_doctests_of_the_hooks(name):
    assert doctest.testmod(_hook(name)).failed == 0


def test_every_decision_is_listed():
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    pages = navigation.decisions(DOCS)
    assert [int(Path(page).name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        number, title = re.match(r"# (\d+)\. (.*)", (DOCS / page).read_text("utf-8")).groups()
        assert f"| [{number}]({Path(page).name}) | {title} |" in index


def test_the_page_of_the_engine_names_what_is_there():
    text = (DOCS / "engine.md").read_text(encoding="utf-8")
    for path in re.findall(r"`(\w+/[\w/]*(?:\.py)?)`", text):
        assert (ROOT / "src" / "hesse" / path).exists(), path
    table = re.findall(r"^\| `(\w+)`<br>`(.*?)\.py` \|", text, re.MULTILINE)
    assert len(table) == 8
    for name, path in table:
        assert inspect.isclass(
            getattr(importlib.import_module(f"hesse.{path.replace('/', '.')}"), name)
        )


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / target).exists(), target
