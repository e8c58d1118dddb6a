"""
Serve a LoGra-Med under OpenAI's `/v1/chat/completions`: `python hub_cards/serve.py --model DIR`, or `logramed-serve`.

The server is `transformers serve`, which does not find classes outside transformers; this launcher registers ours.
There is no authentication: whoever reaches the port can send requests and make the server open image URLs and files.
"""

import argparse
from collections.abc import Sequence

from transformers.models.auto import modeling_auto

from logramed import LoGraMedConfig, LoGraMedForConditionalGeneration
from logramed.eval.command_line import run_command
from logramed.eval.model_names import naming_model


def register_for_serving() -> None:
    """Register our class where `transformers serve` looks: in the transformers module and its image-text mapping."""
    import transformers  # imported here: other imports may replace the module of this name

    name = LoGraMedForConditionalGeneration.__name__
    setattr(transformers, name, LoGraMedForConditionalGeneration)
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[LoGraMedConfig.model_type] = name


def parse_arguments(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Parse our arguments; the rest is for `transformers serve`."""
    parser = argparse.ArgumentParser(
        prog="logramed-serve",
        description="Serve a LoGra-Med under OpenAI's /v1/chat/completions.",
        epilog="Further options: `transformers serve --help`.",
    )
    parser.add_argument("--model", required=True, help="folder or Hub id; add @revision for a branch or commit")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000)
    return parser.parse_known_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until interrupted. Options not listed by `--help` go to `transformers serve`."""
    arguments, further = parse_arguments(argv)
    with naming_model(arguments.model.split("@")[0], "`--model`"):
        pass  # the server loads it
    try:
        import fastapi  # noqa: F401  (`transformers serve` needs it)
        from transformers.cli.transformers import app
    except ImportError as error:
        raise ImportError(f"Serving needs more packages: `pip install 'logramed[serve]'` ({error}).") from error
    from transformers.cli.serving import chat_completion

    from logramed.hub_cards.chat_requests import ChatHandler

    chat_completion.ChatCompletionHandler = ChatHandler
    register_for_serving()
    app(["serve", arguments.model, "--host", arguments.host, "--port", str(arguments.port), *further])


def command() -> int:
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
