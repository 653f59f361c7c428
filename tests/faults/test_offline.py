"""Rows 35 and 36: no network, and flags or keys that do not exist; through the real commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import DS_RAG, ROOT, SMALL, TRAIN, call, environment, execute, launcher, results

# A process of its own network, in which only the loopback device is up; as root, or where users may have namespaces.
ALONE = """
import ctypes, fcntl, os, socket, struct, sys
CLONE_NEWUSER, CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP = 0x10000000, 0x40000000, 0x8914, 1
flags = CLONE_NEWNET | (0 if os.geteuid() == 0 else CLONE_NEWUSER)
if ctypes.CDLL(None, use_errno=True).unshare(flags):
    sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP, b""))
os.execvp(sys.argv[1], sys.argv[1:])
"""
# Where that is not allowed: every Python of the run refuses to reach out.
GUARD = """
import socket

LOOPBACK = ("127.", "::1", "localhost")


def refuse(address):
    host = address[0] if isinstance(address, tuple) else ""
    if host and not str(host).startswith(LOOPBACK):
        raise OSError(101, f"Network is unreachable (blocked by a test): {address}")


class Guarded(socket.socket):
    def connect(self, address):
        refuse(address)
        return super().connect(address)

    def connect_ex(self, address):
        refuse(address)
        return super().connect_ex(address)

    def sendto(self, data, *rest):
        refuse(rest[-1])
        return super().sendto(data, *rest)


socket.socket = Guarded
"""
REACH_OUT = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    print(error.errno)
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname(), timeout=5)
    print("loopback")
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """How to run a command without a network: (words before it, environment)."""
    words = [sys.executable, "-c", ALONE]
    probe = subprocess.run([*words, "true"], capture_output=True)
    # A stranger's settings would only hide what the commands do by themselves.
    bare = {
        k: v for k, v in environment().items() if not k.startswith(("HF_", "TRANSFORMERS_", "NO_PROXY", "no_proxy"))
    }
    if probe.returncode == 0:
        return words, bare
    folder = tmp_path_factory.mktemp("guard")
    (folder / "sitecustomize.py").write_text(GUARD)
    return [], bare | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def test_row_35_the_block_is_one(offline):
    words, env = offline
    printed = execute([*words, sys.executable, "-c", REACH_OUT], env=env).stdout.split()
    assert printed == ["101", "loopback"]


@pytest.mark.parametrize("how", ["python", pytest.param("deepspeed", marks=pytest.mark.slow)])
def test_row_35_the_quickstart_needs_no_network(offline, tmp_path, how):
    words, env = offline
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home/cache")}  # nor what was fetched once
    command = TRAIN if how == "python" else launcher("deepspeed", "--num_accelerators", "1")
    flags = ["--output_dir", tmp_path / "run", *SMALL, "--max_steps", "2", "--refresh_index", "0", "--save_steps", "2"]
    done = execute([*words, *command, *flags], env=env | home)
    assert "report.html" in done.stdout and results(tmp_path / "run")["steps"] == 2
    if how == "python":
        asked = execute([*words, *DS_RAG, "ask", tmp_path / "run", "who leads zor via ?"], env=env | home)
        assert "answer" in asked.stdout and asked.stderr == ""


TRAIN_FLAGS = {
    "flag": (["--lerning_rate", "1"], "did you mean --learning_rate"),
    "flag with dashes": (["--max-steps", "1"], "did you mean --max_steps"),
    "value": (["--objective", "rag_sequense"], "did you mean 'rag_sequence'"),
    "choice": (["--freeze", "retreiver"], "did you mean 'retriever'"),
}


@pytest.mark.parametrize("case", TRAIN_FLAGS)
def test_row_36_a_misspelt_flag_names_the_nearest(tmp_path, case):
    flags, says = TRAIN_FLAGS[case]
    refused = call(["train", "--output_dir", tmp_path / "run", *flags], 2)
    assert says in refused.stderr and "Traceback" not in refused.stderr


def test_row_36_a_misspelt_key_of_a_recipe_names_the_nearest(tmp_path):
    (tmp_path / "recipe.yaml").write_text("train_data: builtin\nretreiver: x\n")
    refused = call(["train", "--config", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "run"], 2)
    assert "recipe.yaml" in refused.stderr and "did you mean retriever" in refused.stderr
    assert not (tmp_path / "run").exists()


DEEPSPEED = {
    "key": ({"zero_optimisation": {"stage": 2}}, "zero_optimization"),
    "auto": ({"zero_optimization": {"stage": "auto"}}, "auto"),
    "nested key": ({"zero_optimization": {"stagee": 2}}, "stage"),
}


@pytest.mark.parametrize("case", DEEPSPEED)
def test_row_36_a_key_or_auto_of_a_deepspeed_file_that_cannot_be_resolved(tmp_path, case):
    content, says = DEEPSPEED[case]
    (tmp_path / "zero.json").write_text(json.dumps(content))
    flags = ["--deepspeed", tmp_path / "zero.json", "--output_dir", tmp_path / "run"]
    refused = call(["train", *flags, *SMALL], 2)
    assert says in refused.stderr and "Traceback" not in refused.stderr
    assert not list(Path(tmp_path / "run").glob("metrics.jsonl"))


def test_row_36_a_misspelt_command_and_flag_in_processes_of_their_own(tmp_path):
    assert "did you mean 'evaluate'" in execute([*DS_RAG, "evalute"], 2).stderr
    refused = execute([*TRAIN, "--output_dir", tmp_path / "run", "--lerning_rate", "1"], 2)
    assert "did you mean --learning_rate" in refused.stderr and "Traceback" not in refused.stderr
