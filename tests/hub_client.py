"""This process's Hub client, turned to a server of the tests."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import huggingface_hub.constants
import huggingface_hub.utils._http

from logramed.hub_cards import push
from tests.hub_server import TOKEN, RunningHub


# As the client keeps its address: read from the environment when it is imported.
ADDRESS = "HUGGINGFACE_CO_URL_TEMPLATE"


@contextmanager
def client_of(hub: RunningHub, token: str = TOKEN, waits: bool = False) -> Iterator[None]:
    """While this holds, huggingface_hub and `logramed.hub_cards` talk to `hub`; unless `waits`, without pauses."""
    constants, clock = huggingface_hub.constants, clock_without_sleep()
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    with (
        mock.patch.object(constants, "ENDPOINT", hub.address),
        mock.patch.object(constants, ADDRESS, template),
        mock.patch.object(constants, "HF_HUB_OFFLINE", False),
        mock.patch.object(constants, "HF_HUB_DISABLE_XET", True),
        mock.patch.dict("os.environ", {"HF_TOKEN": token}),
        nullcontext() if waits else mock.patch.object(huggingface_hub.utils._http, "time", clock),
        nullcontext() if waits else mock.patch.object(push, "time", clock),
    ):
        yield


def clock_without_sleep() -> SimpleNamespace:
    names = {name: getattr(time, name) for name in dir(time) if not name.startswith("_")}
    return SimpleNamespace(**{**names, "sleep": lambda seconds: None})
