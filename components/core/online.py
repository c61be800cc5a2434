"""Whether a server answers, asked once and for seconds: client libraries try for half a minute before they give up."""

from __future__ import annotations

import functools
import ssl
import sys
import threading
import urllib.request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit

PATIENCE = 3.0


def answers(url: str, seconds: float = PATIENCE) -> bool:
    """Whether an HTTP server answers at ``url``, whatever it says; through the proxy that the environment names."""
    parts = urlsplit(url)
    address = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    found: list[bool] = []
    # A thread of its own: looking up a name has no time limit.
    asking = threading.Thread(target=lambda: found.append(_answer(address, seconds)), daemon=True)
    asking.start()
    asking.join(seconds)
    return found == [True]


def _answer(address: str, seconds: float) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds):
            return True
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # somebody is there; the client has certificates of its own
    except (OSError, ValueError):
        return False


@functools.cache
def offline_unless_hub_answers() -> None:
    """Tell the hub's libraries that there is no network where the hub does not answer, so that they read their cache
    alone and fail at once. Asked once per process."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or answers(constants.ENDPOINT):
        return
    constants.HF_HUB_OFFLINE = True
    datasets = sys.modules.get("datasets.config")  # copies the value when it is imported
    if datasets is not None:
        setattr(datasets, "HF_HUB_OFFLINE", True)  # noqa: B010 (a module)
