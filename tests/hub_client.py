"""This process's clients of the Hub, turned to a server of the tests."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import datasets.config  # keeps the address of its first import
import evaluate.config  # noqa: F401 (the same)
import huggingface_hub.constants
import huggingface_hub.utils._http
from huggingface_hub import HfApi, HfFileSystem, close_session

from tests.hub_server import TOKEN, RunningHub


@contextmanager
def client_of(hub: RunningHub, token: str = TOKEN, waits: bool = False) -> Iterator[None]:
    """While this holds, this process's clients of the Hub talk to `hub`; unless `waits`, without pauses."""
    clock = clock_without_sleep()
    with (
        clients_at(hub.address, token),
        mock.patch.object(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True),
        nullcontext() if waits else mock.patch.object(huggingface_hub.utils._http, "time", clock),
    ):
        yield


@contextmanager
def clients_at(address: str, token: str = "") -> Iterator[None]:
    """While this holds, every client of the Hub in this process, those made before too, asks `address`, online."""
    before = huggingface_hub.constants.ENDPOINT
    _turn(before, address)
    try:
        with (
            mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", False),
            mock.patch.object(datasets.config, "HF_HUB_OFFLINE", False),
            mock.patch.dict(os.environ, {"HF_TOKEN": token}),
        ):
            yield
    finally:
        _turn(address, before)


def _turn(old: str, new: str) -> None:
    """Give what modules keep of the address `old`, as a text or in a client, the address `new`."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "tests":
            for key, value in list(getattr(module, "__dict__", {}).items()):
                if type(value) is str and (value == old or value.startswith(f"{old}/")):
                    setattr(module, key, new + value.removeprefix(old))
                elif issubclass(type(value), HfApi | HfFileSystem) and value.endpoint == old:
                    value.endpoint = new
                    getattr(value, "_api", value).endpoint = new
    HfFileSystem.clear_instance_cache()
    close_session()


def clock_without_sleep() -> SimpleNamespace:
    names = {name: getattr(time, name) for name in dir(time) if not name.startswith("_")}
    return SimpleNamespace(**{**names, "sleep": lambda seconds: None})
