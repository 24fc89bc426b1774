"""Send a detached encoder, or an MLLM, to the Hub with the user's own login."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from pivot.encoder.card import CARD_FILE
from pivot.encoder.encoder import TAP_FILE
from pivot.encoder.export import PARITY_FILE
from pivot.files import read_json
from pivot.records import BadInput, CheckFailed

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 1e-4  # difference that a folder in fp32 may state and still be sent


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
    except OSError as failed:
        raise BadInput(
            f"the Hub cannot be reached ({type(failed).__name__}: {' '.join(str(failed).split())[:120]}); is there a network?"
        ) from None
    return str(address)


def _sound(folder: Path) -> None:
    """What is sent must be what `detach` wrote, with features that are those of the model it came out of."""
    lacking = [name for name in (TAP_FILE, PARITY_FILE, CARD_FILE) if not (folder / name).is_file()]
    if lacking:
        raise BadInput(f"{folder}: {', '.join(lacking)} not found; give a folder that `pivot detach` or `pivot run` wrote")
    parity = read_json(folder / PARITY_FILE)
    if parity["dtype"] == "float32" and not parity["difference"] <= LARGEST:
        raise CheckFailed(f"{folder}: its features differ from the model's by {parity['difference']:g} ({PARITY_FILE}); detach it again")
