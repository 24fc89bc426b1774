"""Sending a detached encoder to the Hub: with whose login, what is refused, and that nothing is overwritten unasked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from safetensors.torch import load_file, save_file

from pivot.encoder import Encoder
from pivot.encoder.export import export
from pivot.encoder.push import push
from pivot.files import read_json, write_json
from pivot.records import BadInput, CheckFailed


class Hub:
    """Stands in for the Hub's client: remembers what it was asked to do."""

    def __init__(self, repositories: tuple[str, ...] = (), fails: Exception | None = None) -> None:
        self.repositories, self.fails = repositories, fails
        self.made: dict[str, Any] = {}

    def __call__(self) -> Hub:
        return self

    def whoami(self) -> dict[str, str]:
        if self.fails:
            raise self.fails
        return {"name": "someone"}

    def repo_exists(self, name: str) -> bool:
        return name in self.repositories

    def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
        self.made["repository"] = (name, private)
        return f"https://hub/{name}"

    def upload_folder(self, folder_path: str, repo_id: str, commit_message: str) -> None:
        self.made["files"] = sorted(file.name for file in Path(folder_path).iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export(Encoder.tiny("siglip"), tmp_path / "out")
    return tmp_path / "out"


def test_it_sends_the_whole_folder_under_the_users_own_name(folder: Path) -> None:
    hub = Hub()
    assert push(folder, "eyes", private=True, api=hub) == "https://hub/someone/eyes"
    assert hub.made["repository"] == ("someone/eyes", True)
    assert {"README.md", "config.json", "model.safetensors", "parity.json", "tap.json"} <= set(hub.made["files"])


def test_what_is_there_already_is_left_alone_unless_asked(folder: Path) -> None:
    hub = Hub(("lab/eyes",))
    with pytest.raises(BadInput, match="--update"):
        push(folder, "lab/eyes", api=hub)
    assert not hub.made
    assert push(folder, "lab/eyes", update=True, api=hub).endswith("lab/eyes")


def test_features_that_differ_are_not_sent(folder: Path) -> None:
    write_json(folder / "parity.json", {**read_json(folder / "parity.json"), "difference": 0.01})
    with pytest.raises(CheckFailed, match=r"0\.01"):
        push(folder, "eyes", api=Hub())
    (folder / "parity.json").unlink()
    with pytest.raises(BadInput, match=r"parity\.json not found"):
        push(folder, "eyes", api=Hub())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("wrong", "said"), [({"difference": None}, "inf"), ({"difference": 0.5}, "0.5"), ({"holds": False}, "differ")])
def test_a_difference_counts_in_any_dtype(wrong: dict[str, Any], said: str, dtype: str, folder: Path) -> None:
    write_json(folder / "parity.json", {**read_json(folder / "parity.json"), "dtype": dtype, **wrong})
    with pytest.raises(CheckFailed, match=said):
        push(folder, "eyes", api=Hub())


@pytest.mark.parametrize("text", ["{}", "[]", "3", "{", '{"difference": "much", "projector_difference": 0, "holds": true, "tolerance": 0}'])
def test_a_foreign_parity_file_is_one_line(text: str, folder: Path) -> None:
    (folder / "parity.json").write_text(text)
    with pytest.raises(BadInput, match=r"parity\.json") as error:
        push(folder, "eyes", api=Hub())
    assert "\n" not in str(error.value)


def test_weights_that_are_not_those_of_the_tap_are_not_sent(folder: Path) -> None:
    hub, file = Hub(), folder / "model.safetensors"
    weights = load_file(file)
    weights[next(iter(weights))] += 1
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match="weights changed"):
        push(folder, "eyes", api=hub)
    assert not hub.made


class Unreachable(Exception):
    """As of an HTTP library whose errors are no OSError."""


REFUSED = {
    "hf auth login": LocalTokenNotFoundError("no token"),
    "is there a network": OSError("name resolution failed"),
    "Unreachable: no route": Unreachable("no route\nto host"),
    "may write there": HfHubHTTPError("403 Forbidden", response=SimpleNamespace(status_code=403, headers={}, request=None)),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_the_hub_says_is_one_line(said: str, folder: Path) -> None:
    with pytest.raises(BadInput, match=said) as error:
        push(folder, "eyes", api=Hub(fails=REFUSED[said]))
    assert "\n" not in str(error.value)


def test_a_mistake_in_the_code_is_not_called_a_network(folder: Path) -> None:
    with pytest.raises(AttributeError, match="no such method"):
        push(folder, "eyes", api=Hub(fails=AttributeError("no such method")))
