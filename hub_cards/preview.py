"""A card as a page for the browser, much as the Hub shows it."""

import base64
import html
import re
from pathlib import Path

import yaml
from markdown_it import MarkdownIt

from logramed.hub_cards.contents import Contents
from logramed.hub_cards.model_card import TEMPLATES


IMAGE = re.compile(r'(<img src=")([^":]+)(")')


def write_preview(card: str, contents: Contents, path: Path) -> Path:
    """
    Write a card as one HTML file, its pictures inside.

    Args:
        card (`str`): `README.md`.
        contents (`Contents`): What lies beside it.
        path (`Path`): The file to write.

    Returns:
        `Path`: of it.
    """
    _, metadata, body = card.split("---\n", 2)
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    rendered = IMAGE.sub(lambda found: f"{found[1]}{_embed(found[2], contents)}{found[3]}", rendered)
    known = yaml.safe_load(metadata)
    tags = [str(value) for name, value in known.items() if isinstance(value, str) and name != "description"]
    tags += [str(tag) for tag in known.get("tags", [])]
    shown = "".join(f"<li>{html.escape(tag)}</li>" for tag in dict.fromkeys(tags))
    style = (TEMPLATES / "preview.css").read_text(encoding="utf-8")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Card</title>'
    body = f'<ul class="tags">{shown}</ul>{rendered}'
    page = f'<!doctype html><html lang="en"><head>{head}<style>{style}</style></head><body>{body}</body></html>\n'
    path.write_text(page, encoding="utf-8")
    return path


def _embed(name: str, contents: Contents) -> str:
    content = contents.files.get(name)
    if content is None:
        return name
    data = content if isinstance(content, bytes) else content.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
