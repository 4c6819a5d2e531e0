"""Models that the Hub's own programs have downloaded: found by their id, without a network."""

import re
from pathlib import Path

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr

_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def from_hub_cache(source: Path) -> Path:
    """The folder of `source`: itself, if something lies there; else that of a Hub id (OWNER/NAME, OWNER/NAME@REVISION).

    Raises TwinGPTError for an id that is not in the local cache.
    """
    name = source.as_posix()
    # A run's best checkpoint is named by a link in its folder, which has the form of an id.
    if source.exists() or source.parent.exists() or not _ID.fullmatch(name):
        return source
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    owner_and_name, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(owner_and_name, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise TwinGPTError(
            tr(
                "{name} is neither a file or folder here nor a model in the Hub's local cache: if it is one of the "
                "Hub, "
                "run `hf download {owner_and_name}` first",
                name=name,
                owner_and_name=owner_and_name,
            )
        ) from None
