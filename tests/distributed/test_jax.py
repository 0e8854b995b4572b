"""Attention on the devices of JAX, in processes of their own: eight devices in one, or one in each of two."""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from tests._backends import Backend
from tests._quick import some_rare

pytestmark = [
    pytest.mark.backends("jax"),
    pytest.mark.skipif(not Backend.JAX.is_installed(), reason="JAX is not installed"),
]

STRATEGIES = (
    *("ring_attention", "gathered_attention", "ulysses_attention", "merged_attention"),
    "ulysses_attention on two axes",
)
CHECKS = ("pairs", "alone", "others", "further,narrow,drawn,twice")


def start(module, *arguments, devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", f"tests.distributed.{module}", *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes, seconds=280):
    """Wait for processes, less long than pytest waits for a test, and leave none behind."""
    with ExitStack() as stack:
        for process in processes:
            stack.enter_context(process)
            stack.callback(process.kill)
        for process in processes:
            output, _ = process.communicate(timeout=seconds)
            assert process.returncode == 0, output


@pytest.mark.parametrize(
    "strategy", some_rare({name: name for name in STRATEGIES}, lambda name: name != "ring_attention")
)
@pytest.mark.parametrize("checks", some_rare({name: name for name in CHECKS}, lambda name: name == "alone"))
def test_strategies(strategy, checks):
    finish(start("_devices", checks, strategy, devices=8))


def test_rings():
    finish(start("_devices", "cost,work,captured,refused", devices=8))


def test_two_processes():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    finish(*(start("_processes", address, rank, devices=1) for rank in range(2)), seconds=120)
