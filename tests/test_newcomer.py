"""What a fresh machine meets first: the Makefile, the pins, and the script that CI runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
TARGETS = {"help", "venv", "demo", "test", "test-slow", "check", "wheel", "clean"}
TOOLS = ("sh", "sed", "cat", "cksum", "cut", "rm", "touch", "mkdir", "pwd", "printf")


def make(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        [shutil.which("make") or "make", *arguments],
        cwd=folder,
        env=environment | ({"PATH": path} if path else {}),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the Makefile reads, and a folder of tools in which no Python is."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(TOP / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        if found := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def script(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_make_alone_lists_every_target() -> None:
    listed = re.findall(r"^  make ([a-z-]+) ", make(TOP).stdout, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (TOP / "Makefile").read_text(), re.MULTILINE)
    assert phony and set(listed) == set(phony[1].split()) == TARGETS


@pytest.mark.parametrize("python3", [None, 'case "$2" in *version_info*) exit 1;; esac'])
def test_without_a_new_enough_python_one_line_says_so(checkout: Path, python3: str | None) -> None:
    if python3:
        script(checkout / "bin" / "python3", python3)
    done = make(checkout, "demo", path=str(checkout / "bin"))
    assert done.returncode != 0
    assert "no Python >= 3.11" in done.stderr and "make PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_that_cannot_make_environments_is_passed_over(checkout: Path) -> None:
    """Debian's python3 without python3-venv: the next one is taken, and what is missing is said."""
    log = checkout / "log"
    working = (
        f'echo "$0 $*" >>{log}; case "$*" in *"-m venv"*) mkdir -p .venv/bin; cat "$0" >.venv/bin/python; chmod +x .venv/bin/python;; esac'
    )
    (checkout / "bin" / "chmod").symlink_to(shutil.which("chmod") or "chmod")
    script(checkout / "bin" / "python3", 'case "$2" in *ensurepip*) exit 1;; esac')
    script(checkout / "bin" / "python3.12", working)
    done = make(checkout, "demo", path=str(checkout / "bin"))
    assert done.returncode == 0 and "python3-venv" in done.stderr
    calls = log.read_text()
    assert "python3.12 -m venv" in calls and "-m pip install --constraint constraints.txt --editable ." in calls
    assert calls.rstrip().endswith("-m pivot demo")


def test_the_second_time_nothing_is_installed_until_a_pin_changes(checkout: Path) -> None:
    log = checkout / "log"
    script(checkout / ".venv" / "bin" / "python", f'echo "$*" >>{log}')
    assert make(checkout, "demo").returncode == 0
    assert log.read_text().count("pip install") == 1
    (checkout / "pyproject.toml").touch()
    assert make(checkout, "demo").returncode == 0
    assert log.read_text().count("pip install") == 1 and log.read_text().count("pivot demo") == 2
    with (checkout / "constraints.txt").open("a") as pins:
        pins.write("# changed\n")
    assert make(checkout, "demo", "ARGS=seeds=[1]").returncode == 0
    assert log.read_text().count("pip install") == 2 and "pivot demo seeds=[1]" in log.read_text()


def test_the_pins_are_plain_and_cover_what_is_declared() -> None:
    lines = [line for line in (TOP / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)  # no path, no host, no local build
    assert pins["torch"] == "2.13.0"
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))]
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    known = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    extras = project["optional-dependencies"]
    for wanted in [*project["dependencies"], *extras["dev"], *extras["encoders"], *extras["gguf"], *extras["rewards"]]:
        name = re.match(r"[A-Za-z0-9_.-]+", wanted)
        assert name and (wanted.startswith(f"{project['name']}[") or re.sub(r"[-_.]+", "-", name[0]).lower() in known), wanted


def test_ci_calls_what_the_readme_shows() -> None:
    ci = TOP / ".ci" / "run"
    assert os.access(ci, os.X_OK)
    assert subprocess.run(["bash", "-n", str(ci)], check=False).returncode == 0
    called = re.findall(r"^step make ([a-z-]+)$", ci.read_text(), re.MULTILINE)
    assert called == ["check", "test", "test-slow", "wheel"]
    readme = (TOP / "README.md").read_text()
    assert all(re.search(rf"\bmake {target}(?![\w-])", readme) for target in ("demo", "check", "test", "test-slow"))
