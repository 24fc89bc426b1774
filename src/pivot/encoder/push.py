"""Send a detached encoder to the Hub with the user's own login. A folder of another kind, an MLLM's among them, is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from pivot.encoder.card import CARD_FILE
from pivot.encoder.encoder import TAP_FILE, Encoder
from pivot.encoder.hub import reason
from pivot.encoder.parity import PARITY_FILE
from pivot.files import read_json
from pivot.records import BadInput, CheckFailed

if TYPE_CHECKING:
    from collections.abc import Callable

WRONG_CODE = (TypeError, AttributeError, NameError, LookupError, AssertionError)  # no network raises these


def push(folder: Path, name: str, *, private: bool = False, update: bool = False, api: Callable[[], HfApi] = HfApi) -> str:
    """Upload a folder as the Hub's OWNER/NAME and return its address. A repository that exists is left alone without `update`."""
    _sound(folder)
    hub = api()
    try:
        who = hub.whoami()["name"]
        owner, slash, _ = name.partition("/")
        full = name if slash else f"{who}/{owner}"
        if hub.repo_exists(full) and not update:
            raise BadInput(f"{full} is on the Hub already; give another name, or --update to add a commit to it")
        address = hub.create_repo(full, private=private, exist_ok=True)
        hub.upload_folder(folder_path=str(folder), repo_id=full, commit_message="Encoder detached by pivot")
    except LocalTokenNotFoundError:
        raise BadInput("not logged in to the Hub; run `hf auth login` first, or set HF_TOKEN") from None
    except HFValidationError:
        raise BadInput(f"'{name}' is no name of the Hub; write OWNER/NAME, or a NAME of your own") from None
    except HfHubHTTPError as failed:
        status = getattr(failed.response, "status_code", None)
        advice = "log in with an account that may write there: `hf auth login`" if status in (401, 403) else "try again later"
        raise BadInput(f"the Hub refused {name} ({status}: {' '.join(str(failed).split())[:120]}); {advice}") from None
    except (BadInput, *WRONG_CODE):
        raise
    except Exception as failed:  # no network: the classes are the HTTP library's own, and the Hub's client has changed libraries before
        raise BadInput(f"the Hub cannot be reached ({reason(failed, 120)}); is there a network?") from None
    return str(address)


def _sound(folder: Path) -> None:
    """What is sent must be what `detach` wrote, with features that are those of the model it came out of."""
    lacking = [name for name in (TAP_FILE, PARITY_FILE, CARD_FILE) if not (folder / name).is_file()]
    if lacking:
        raise BadInput(f"{folder}: {', '.join(lacking)} not found; give a folder that `pivot detach` or `pivot run` wrote")
    difference = _difference(folder / PARITY_FILE)
    if difference is not None:
        raise CheckFailed(f"{folder}: its features differ from the model's by {difference:g} ({PARITY_FILE}); detach it again")
    Encoder.load(folder)  # refuses weights that are not those of its tap.json


def _difference(file: Path) -> float | None:
    """How far features are from the model's where that is further than they may be. JSON has no infinity: it was written as null."""
    parity = read_json(file)
    try:
        difference = math.inf if parity["difference"] is None else float(parity["difference"])
        projected = float(parity["projector_difference"] or 0)
        return None if parity["holds"] is True and max(difference, projected) <= parity["tolerance"] else max(difference, projected)
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{file} is not what this version writes ({reason(error, 120)}); detach the encoder again") from None
