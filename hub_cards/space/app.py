"""
A web page to ask a medical vision-language model about images: `python app.py --model DIR`, or a Space.

Needs a folder or Hub id, from `--model`, the environment variable `MODEL_ID`, or `model_id.txt` in this folder (which
a published Space has). Not for clinical use.
"""

import argparse
import functools
import html
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio
from conversation import MAX_NEW_TOKENS, NOTICE, Assistant, Turn
from images import UploadError, read_upload
from PIL import Image
from relevance import draw_matched_regions, draw_relevance


FOLDER = Path(__file__).parent
MODEL_FILE = FOLDER / "model_id.txt"
EXAMPLES = json.loads((FOLDER / "examples" / "examples.json").read_text(encoding="utf-8"))
MAX_IMAGES = 8
MAX_FILE_SIZE = "100mb"
CONCURRENT_ANSWERS = 2
# How often to look for old uploads, and the age at which they are deleted, in seconds.
CACHE_AGES = (3600, 6 * 3600)
NO_IMAGE_YET = "Add an image first: with the button in the message field, by dropping it there, or with an example."
PLACEHOLDER = "### Ask about an image\nAdd a PNG or JPEG to your message, or start with one of the examples."
LOGO = (  # three graphs, matched
    '<svg viewBox="0 0 24 24" aria-hidden="true"><circle cx="5" cy="6" r="2.5"/><circle cx="19" cy="6" r="2.5"/>'
    '<circle cx="12" cy="19" r="2.5"/><path d="M7 7l4 10M17 7l-4 10M7.5 6h9"/></svg>'
)
# By kind: button label, drawing function, and explanation.
VIEWS = {
    "answer": (
        "What the answer drew on",
        draw_relevance,
        "Coloured where a small change of the image would change the probability of the last answer most (gradient "
        "times input). It is not an explanation of the answer.",
    ),
    "matched": (
        "What each question matched",
        draw_matched_regions,
        "For each question (Q1, Q2, …) the images so far, coloured where they are closest to the state from which it "
        "was answered, as alignment weighs them; their weights sum to 100%. It is not an explanation.",
    ),
}
# Accessible names for the message field and the images of a conversation, which gradio leaves out.
NAME_PARTS = """() => {
  const name = () => {
    document.querySelectorAll("#chat img:not([alt]), #chat img[alt='']").forEach(
      (image, number) => { image.alt = `Image ${number + 1} of the conversation, enlarge`; });
    document.querySelectorAll("#message textarea").forEach(field => { field.ariaLabel = "Your question"; });
  };
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
  name();
}"""
Updates = dict[Any, Any]


class Page:
    """The page and its event handlers. A conversation is kept only in the state of its user."""

    def __init__(self, assistant: Assistant):
        self.assistant = assistant
        # In the folder for temporary files, from which gradio serves files; deleted at exit.
        self._temporary = tempfile.TemporaryDirectory(prefix="logramed_demo_")
        self.folder = Path(self._temporary.name)

    def build(self) -> gradio.Blocks:
        """Lay out the page."""
        with gradio.Blocks(
            title=f"{self.assistant.name} · LoGra-Med", delete_cache=CACHE_AGES, fill_width=True
        ) as page:
            gradio.HTML(write_header(self.assistant), elem_id="header", padding=False)
            self.turns = gradio.State([])
            with gradio.Row(elem_id="main"):
                with gradio.Column(scale=3, min_width=320):
                    self._build_conversation()
                with gradio.Column(scale=1, min_width=300, elem_id="side"):
                    self._build_examples()
                    self._build_relevance()
                    self._build_settings()
                    self.clear = gradio.Button("New conversation", size="sm", elem_id="clear")
            self._connect()
        page.queue(default_concurrency_limit=CONCURRENT_ANSWERS)
        return page

    def _build_conversation(self) -> None:
        self.chat = gradio.Chatbot(
            label="Conversation",
            show_label=False,
            elem_id="chat",
            height="62vh",
            min_height=320,
            layout="bubble",
            placeholder=PLACEHOLDER,
            buttons=["copy", "copy_all"],
        )
        self.status = gradio.HTML("", elem_id="status", padding=False)
        self.message = gradio.MultimodalTextbox(
            label="Your question",
            placeholder="Ask about an image …",
            file_types=[".png", ".jpg", ".jpeg"],
            file_count="multiple",
            sources=["upload"],
            max_plain_text_length=2000,
            elem_id="message",
            autofocus=True,
            html_attributes=gradio.InputHTMLAttributes(enterkeyhint="send"),
        )
        self.stop = gradio.Button("Stop", size="sm", variant="stop", visible=False, elem_id="stop")

    def _build_examples(self) -> None:
        gradio.HTML("<h2>Examples</h2><p>Generated phantoms: no patient is in them.</p>", padding=False)
        with gradio.Column(elem_id="examples"):
            self.examples = [
                gradio.Button(
                    f"{example['shows']}: “{example['question']}”",
                    icon=FOLDER / "examples" / example["image"],
                    size="sm",
                    elem_classes="example",
                )
                for example in EXAMPLES
            ]

    def _build_relevance(self) -> None:
        gradio.HTML("<h2>On the images</h2>", padding=False)
        with gradio.Row(elem_id="show"):
            self.show = {
                kind: gradio.Button(view[0], size="sm", interactive=False, elem_id=f"show_{kind}")
                for kind, view in VIEWS.items()
            }
        self.relevance = gradio.Gallery(
            label="Weights of image regions",
            show_label=False,
            columns=2,
            height="auto",
            object_fit="contain",
            visible=False,
            elem_id="relevance",
            buttons=[],
        )
        self.relevance_said = gradio.HTML("", visible=False, padding=False)

    def _build_settings(self) -> None:
        with gradio.Accordion("Answer settings", open=False, elem_id="settings"):
            self.longest = gradio.Slider(1, 512, MAX_NEW_TOKENS, step=1, label="Longest answer (tokens)")

    def _connect(self) -> None:
        shown = [self.chat, self.turns, self.message, self.status, self.stop]
        shown += [*self.show.values(), self.relevance, self.relevance_said]
        private = {"api_visibility": "private", "show_progress": "hidden"}
        asked = [self.message.submit(self.ask, [self.message, self.turns, self.longest], shown, **private)]
        for button, example in zip(self.examples, EXAMPLES, strict=True):
            start = functools.partial(self.ask_example, example)
            asked.append(button.click(start, self.longest, shown, **private))
        self.stop.click(self.stop_answer, self.turns, shown, cancels=asked, **private)
        options = {"api_visibility": "private", "show_progress": "minimal"}
        for kind, button in self.show.items():
            view = [self.relevance, self.relevance_said, self.status]
            button.click(functools.partial(self.draw, kind), self.turns, view, **options)
        for event in (self.clear.click, self.chat.clear):
            event(self.start_anew, None, shown, cancels=asked, **private)

    def ask_example(self, example: dict[str, str], longest: int) -> Iterator[Updates]:
        """Ask the question of an example in a new conversation."""
        path = str(FOLDER / "examples" / example["image"])
        yield from self.ask({"text": example["question"], "files": [path]}, [], longest)

    def ask(self, message: dict[str, Any], turns: Sequence[Turn], longest: int) -> Iterator[Updates]:
        """
        Stream the answer to a message (`text`, and `files`, paths of uploads) after the `turns` so far, in at most
        `longest` tokens. A message that cannot be answered stays in the message field.
        """
        try:
            turn = self.read_message(message or {}, turns)
        except UploadError as error:
            yield {self.status: say(str(error))}
            return
        turns = [*turns, turn]
        yield {
            **{button: gradio.Button(interactive=False) for button in self.show.values()},
            **self._nothing_drawn(),
            self.chat: write_chat(turns, is_busy=True),
            self.turns: turns,
            self.message: gradio.MultimodalTextbox(value=None, interactive=False),
            self.status: say("Answering …", is_error=False),
            self.stop: gradio.Button(visible=True),
        }
        problem = ""
        try:
            for _ in self.assistant.answer(turns, int(longest)):
                yield {self.chat: write_chat(turns, is_busy=True), self.turns: turns}
        except Exception as error:  # shown to the user, who can go on
            problem = say(f"The model could not answer: {error}")
            turns = turns[:-1]
        yield self._ready(turns, problem)

    def stop_answer(self, turns: Sequence[Turn]) -> Updates:
        """Stop with the answer so far; a turn with an empty answer is removed."""
        return self._ready(turns if not turns or turns[-1].answer else turns[:-1])

    def _ready(self, turns: Sequence[Turn], problem: str = "") -> Updates:
        """Updates for a page that waits for the next message."""
        return {
            self.chat: write_chat(turns),
            self.turns: turns,
            self.message: gradio.MultimodalTextbox(interactive=True),
            self.status: problem,
            self.stop: gradio.Button(visible=False),
            **{button: gradio.Button(interactive=bool(turns)) for button in self.show.values()},
        }

    def read_message(self, message: dict[str, Any], turns: Sequence[Turn]) -> Turn:
        """
        Create the turn of a message; reads, checks and stores its images. Raises `UploadError` if an upload is
        unusable or something is missing.
        """
        question = (message.get("text") or "").strip()
        files = message.get("files") or []
        num_before = sum(len(turn.images) for turn in turns)
        if not files and not num_before:
            raise UploadError(NO_IMAGE_YET)
        if num_before + len(files) > MAX_IMAGES:
            raise UploadError(f"A conversation can have {MAX_IMAGES} images. Start a new one for more.")
        images = [read_upload(path) for path in files]
        if not question:
            raise UploadError("Write a question about the image.")
        return Turn(question, [self._keep(image) for image in images])

    def _keep(self, image: Image.Image) -> str:
        delete_old(self.folder, CACHE_AGES[1])
        file = tempfile.NamedTemporaryFile(dir=self.folder, suffix=".png", delete=False)  # noqa: SIM115
        with file:
            image.save(file, "PNG")
        return file.name

    def draw(self, kind: str, turns: Sequence[Turn]) -> Updates:
        """Draw the images of the conversation in one of the `VIEWS`."""
        _, draw, said = VIEWS[kind]
        try:
            drawn = draw(self.assistant, turns)
        except Exception as error:  # shown to the user
            return {**self._nothing_drawn(), self.status: say(f"This could not be shown: {error}")}
        gallery = gradio.Gallery(value=drawn, visible=True, columns=min(len(drawn), 2))
        return {
            self.relevance: gallery,
            self.relevance_said: gradio.HTML(f"<p>{said}</p>", visible=True),
            self.status: "",
        }

    def start_anew(self) -> Updates:
        """Start an empty conversation."""
        empty = {self.message: gradio.MultimodalTextbox(value=None, interactive=True)}
        return self._ready([]) | self._nothing_drawn() | empty

    def _nothing_drawn(self) -> Updates:
        return {
            self.relevance: gradio.Gallery(value=None, visible=False),
            self.relevance_said: gradio.HTML(visible=False),
        }


def delete_old(folder: Path, age: float) -> None:
    """Delete files in `folder` and its subfolders that were written more than `age` seconds ago."""
    for path in folder.rglob("*"):
        if path.is_file() and time.time() - path.stat().st_mtime > age:
            path.unlink(missing_ok=True)


def write_header(assistant: Assistant) -> str:
    """Header with name, model and notice."""
    revision = f" · revision {html.escape(assistant.revision)}" if assistant.revision else ""
    return (
        f'<header><div class="brand">{LOGO}<h1>LoGra-Med</h1></div>'
        f"<p>Model: {html.escape(assistant.name)}{revision}</p></header>"
        f'<p class="notice" role="note"><strong>Not for clinical use.</strong>{NOTICE.partition(".")[2]}</p>'
    )


def say(text: str, is_error: bool = True) -> str:
    """A status line under the conversation, announced by screen readers."""
    role, kind = ("alert", "error") if is_error else ("status", "busy")
    return f'<p role="{role}" class="{kind}">{html.escape(text)}</p>'


def write_chat(turns: Sequence[Turn], is_busy: bool = False) -> list[dict[str, Any]]:
    """Convert a conversation to gradio messages; the last answer may be incomplete."""
    messages = []
    for turn in turns:
        for number, path in enumerate(turn.images, start=1):
            image = {"path": path, "alt_text": f"Image {number} of this question"}
            messages.append({"role": "user", "content": image})
        messages.append({"role": "user", "content": turn.question})
        is_last = turn is turns[-1]
        answer = turn.answer or ("…" if is_busy and is_last else "*(no words)*")
        if turn.confidence is not None:
            answer += (
                f'\n\n<span class="confidence">Confidence {100 * turn.confidence:.1f}% '
                "(mean token probability; not calibrated)</span>"
            )
        messages.append({"role": "assistant", "content": answer})
    return messages


def launch_options() -> dict[str, Any]:
    """Style and limits of the page, for `Blocks.launch`."""
    fonts = ["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
    theme = gradio.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="md",
        font=fonts,
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    return {
        "theme": theme,
        "js": NAME_PARTS,
        "css_paths": FOLDER / "style.css",
        "max_file_size": MAX_FILE_SIZE,
        "footer_links": [],
        "allowed_paths": [str(FOLDER / "examples")],
        "show_error": True,
    }


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ask a LoGra-Med about images, in a browser.")
    named = os.environ.get("MODEL_ID")
    if not named and MODEL_FILE.is_file():
        named = MODEL_FILE.read_text(encoding="utf-8").strip()
    parser.add_argument("--model", default=named, help="folder or id on the Hub")
    parser.add_argument("--revision", default=os.environ.get("MODEL_REVISION"), help="branch, tag or commit there")
    parser.add_argument("--host", default=None, help="address to listen at (default: this machine only)")
    parser.add_argument("--port", type=int, default=None, help="port (default: the first free one from 7860)")
    arguments = parser.parse_args(argv)
    if not arguments.model:
        parser.error("which model? Give --model, a folder or an id on the Hub, or set MODEL_ID")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = read_arguments(argv)
    try:
        assistant = Assistant(arguments.model, arguments.revision)
    except ValueError as error:
        if os.environ.get("LOGRAMED_DEBUG"):
            raise
        print(f"app.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    page = Page(assistant).build()
    page.launch(server_name=arguments.host, server_port=arguments.port, **launch_options())


if __name__ == "__main__":
    main()
