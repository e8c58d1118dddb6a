"""What keeps the tests from the real Hub, from a person's tokens, and from each other."""

import os
import random
import signal
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


# Nothing listens at this port; proxies lead there too, so that addresses written into libraries are closed as well.
CLOSED = "http://127.0.0.1:9"
HIDDEN_PREFIXES = ("HF_", "HUGGING", "TRANSFORMERS_", "TRACKIO_", "GRADIO_", "GIT_CONFIG_", "LOGRAMED_JUDGE_")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
CONSTANTS = ("huggingface_hub.constants", "datasets.config", "evaluate.config")
# As they were before anything of ours was imported: a fixture of a whole file is set up before a test's state is kept.
HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
TORCH_SETTINGS = {  # what tells each, and what sets it
    "get_num_threads": "set_num_threads",
    "get_default_dtype": "set_default_dtype",
    "is_grad_enabled": "set_grad_enabled",
    "are_deterministic_algorithms_enabled": "use_deterministic_algorithms",
    "get_float32_matmul_precision": "set_float32_matmul_precision",
}
VERBOSITY_MODULES = ("transformers.utils.logging", "datasets.utils.logging", "huggingface_hub.utils.logging")
SEED = 0


def close_environment(environment: MutableMapping[str, str], home: str | Path) -> None:
    """
    Lead every client that reads this environment, here and in processes started from here, to `CLOSED`, and hide the
    settings, tokens and credential helpers of who runs the tests.

    Args:
        environment (`MutableMapping`): Changed in place, before any client is imported.
        home (`str` or `Path`): An empty folder, in place of the Hugging Face home.
    """
    for name in list(environment):
        if name.startswith(HIDDEN_PREFIXES):
            del environment[name]
    closed = dict.fromkeys([*PROXIES, *map(str.upper, PROXIES), "HF_ENDPOINT", "HF_INFERENCE_ENDPOINT"], CLOSED)
    environment.update(closed)
    environment.update(dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost"))
    environment.update({"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})
    environment.update({"GRADIO_ANALYTICS_ENABLED": "False", "TRANSFORMERS_VERBOSITY": "error"})
    # An empty helper takes away those of git's own files; the rest of them stays in force.
    environment.update({"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "credential.helper", "GIT_CONFIG_VALUE_0": ""})
    environment.update({"GIT_TERMINAL_PROMPT": "0", "NETRC": os.devnull})


def seed_everything() -> None:
    """Seed every shared generator of a library that is imported."""
    random.seed(SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(SEED)


@contextmanager
def kept_state() -> Iterator[None]:
    """Put back, at the end, what a process shares: environment, folder, signals, settings and states of libraries."""
    mappings = [(mapping, dict(mapping)) for mapping in _shared_mappings()]
    folder, path = Path.cwd(), list(sys.path)
    settings, verbosities = _torch_settings(), _verbosities()
    _put_back_handlers()
    yield
    for mapping, content in mappings:
        _put_back(mapping, content)
    os.chdir(folder)
    sys.path[:] = path
    _put_back_handlers()
    for name, value in settings.items():
        if _torch_settings()[name] != value:
            getattr(sys.modules["torch"], TORCH_SETTINGS[name])(value)
    for name, level in verbosities.items():
        sys.modules[name].set_verbosity(level)
    _forget_warnings()


def _shared_mappings() -> Iterator[MutableMapping[str, Any]]:
    yield os.environ
    for name in CONSTANTS:
        if name in sys.modules:
            yield vars(sys.modules[name])
    if "accelerate.state" in sys.modules:
        for name in ("PartialState", "AcceleratorState", "GradientState"):
            yield getattr(sys.modules["accelerate.state"], name)._shared_state


def _put_back(mapping: MutableMapping[str, Any], content: dict[str, Any]) -> None:
    for name in set(mapping) - set(content) - {"PYTEST_CURRENT_TEST"}:
        del mapping[name]
    for name, value in content.items():
        if name != "PYTEST_CURRENT_TEST" and mapping.get(name) is not value:
            mapping[name] = value


def _put_back_handlers() -> None:
    for number, handler in HANDLERS.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


def _torch_settings() -> dict[str, Any]:
    if "torch" not in sys.modules:
        return {}
    return {name: getattr(sys.modules["torch"], name)() for name in TORCH_SETTINGS}


def _verbosities() -> dict[str, int]:
    """How much each library logs: a `Trainer` made with `log_level` sets it for the whole process."""
    return {name: sys.modules[name].get_verbosity() for name in VERBOSITY_MODULES if name in sys.modules}


def _forget_warnings() -> None:
    """What is said once in a process would be said in the first test alone."""
    if "transformers.utils.logging" in sys.modules:
        for name in ("warning_once", "info_once"):
            getattr(sys.modules["transformers.utils.logging"], name).cache_clear()
