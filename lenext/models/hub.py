"""Repositories of the Hugging Face Hub: their names, files out of them, and what goes wrong there in plain words.

A file is downloaded once and kept by huggingface_hub in its own cache, from where it serves without network as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

PREFIX = "hf:"
LOG_IN = "log in with `hf auth login`, or put a token into HF_TOKEN (https://huggingface.co/settings/tokens)"


def repository(address: str) -> str:
    """USER/NAME of hf:USER/NAME. Raises ValueError for any other text."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name = address.removeprefix(PREFIX)
    mend = f"hf:USER/NAME was expected, of letters, digits, -, _ and ., not {address!r}"
    if not address.startswith(PREFIX) or name.count("/") != 1:
        raise ValueError(mend)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{mend} ({str(error).split(': ')[0].rstrip('.')})") from None
    return name


def download(address: str, file: str) -> Path:
    """The path of a file of hf:USER/NAME on this machine, newly downloaded where the Hub has another version.

    Raises ValueError where there is no such repository or file; OSError where it cannot be had now.
    """
    from huggingface_hub import hf_hub_download

    name = repository(address)
    with spoken(address, f"{address} holds no {file}: it is no classifier that `lenext push` has written"):
        return Path(hf_hub_download(name, file))


@contextlib.contextmanager
def spoken(address: str, no_file: str = "") -> Iterator[None]:
    """What the Hub's client raises, as a sentence: ValueError where the user can mend it, else OSError.

    address: hf:USER/NAME. no_file: the sentence for a file that is not in the repository.
    """
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.GatedRepoError:
        page = f"{constants.ENDPOINT}/{repository(address)}"
        raise ValueError(f"{address} is given to those who ask for it: ask on {page}, then {LOG_IN}") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(f"{address} is not on the Hub, or it is private: look at its name, or {LOG_IN}") from None
    except errors.LocalEntryNotFoundError as error:
        why = f" ({error.__cause__})" if error.__cause__ else ""
        raise OSError(f"{address} is not on this machine yet, and {_unreachable()}{why}") from error
    except errors.EntryNotFoundError:
        raise ValueError(no_file) from None
    except errors.HfHubHTTPError as error:
        raise _refused(address, error) from error
    except ValueError:  # a sentence of the client's own
        raise
    except Exception as error:  # the transport has kinds of its own, and not the same in every version of the client
        if isinstance(error, OSError) and error.errno is not None:  # a full disk
            raise
        raise OSError(f"{_unreachable()} ({error.__cause__ or error})") from error


def _unreachable() -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT} cannot be reached; look at the connection and try again"


def _refused(address: str, error: Exception) -> Exception:
    """The sentence for an HTTP status."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return ValueError(f"the Hub does not accept the token: {LOG_IN}")
    if status == 403:
        return ValueError(
            f"the token does not allow writing to {address}: take a name under your own user or organisation, and a "
            "token with the right to write"
        )
    said = " ".join(str(getattr(error, "server_message", None) or error).split())
    return OSError(f"the Hub answered with {status}: {said}")
