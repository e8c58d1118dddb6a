"""Find what must not be published: tokens and keys, local paths, images that may show patients, pickles."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import get_token

from logramed.hub_cards.contents import Contents


PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".msgpack", ".h5")
PICKLE_STARTS = (*(b"\x80" + bytes([protocol]) for protocol in range(2, 6)), b"PK")  # torch.save writes a zip archive
MAX_HEADER = 100_000_000  # bytes of a safetensors header
IMAGE_ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".nii", ".nii.gz", ".mha", ".mhd"),
    *(".nrrd", ".svs", ".heic", ".pdf"),
)
IMAGE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"%PDF")
# Their tokens may look like secrets or paths by chance.
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
SECRETS = {
    "a Hugging Face token": re.compile(rb"(?<![A-Za-z0-9_])(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "an API key": re.compile(
        rb"(?<![\w-])(?:sk-[\w-]{32,}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{50,}|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{20,})"
    ),
    "a password in a URL": re.compile(rb"://[^/\s:@]+:[^/\s:@]+@"),
}
SHORTEST_SECRET = 16  # shorter values of variables may be ordinary words
EMBEDDED_IMAGE = re.compile(rb"data:image/[\w.+-]+;base64,[A-Za-z0-9+/]")
HOME = re.compile(rb"(?:/(?:home/|Users/|root/)|[A-Z]:\\\\?Users\\\\?)[^/\\\s\"'`<>|]+")


def find_problems(contents: Contents, folder: Path | None = None) -> list[str]:
    """
    Reasons not to publish these files, one sentence per file, which names it. Only the header of weights is read,
    where safetensors keep their metadata. Files must not contain the path of the local `folder` they come from.
    """
    here = {Path.home(), Path.cwd(), *([folder.resolve()] if folder else [])} - {Path("/")}
    places = [str(place).encode() for place in here]
    secrets = dict(own_secrets())
    problems = []
    for name, content in sorted(contents.files.items()):
        is_generated = name in contents.generated_images
        found = find_problem(name, read_text(name, content), is_generated, secrets, places)
        if found:
            problems.append(f"{name} {found}")
    return problems


def read_text(name: str, content: Path | bytes) -> bytes | None:
    """The content to search: a whole file, or the header of weights; `None` if these are not safetensors."""
    if isinstance(content, bytes):
        return content
    if not name.endswith(".safetensors"):
        return content.read_bytes()
    with content.open("rb") as file:
        header = file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER))
    try:
        json.loads(header)
    except ValueError:
        return None
    return header


def find_problem(
    name: str, text: bytes | None, is_generated: bool, secrets: dict[bytes, str], places: list[bytes]
) -> str | None:
    """The first reason not to publish a file, phrased to follow its name."""
    ending = name.lower()
    if text is None or ending.endswith(PICKLE_ENDINGS) or text.startswith(PICKLE_STARTS):
        return "may hold a pickle, which runs code when it is loaded. Save it as safetensors."
    is_image = ending.endswith(IMAGE_ENDINGS) or text.startswith(IMAGE_STARTS)
    if is_image or (EMBEDDED_IMAGE.search(text) and not name.endswith(".py")):
        return None if is_generated else "is or holds an image, which may show a patient."
    kinds = [kind for kind, pattern in SECRETS.items() if pattern.search(text)]
    kinds += [kind for secret, kind in secrets.items() if secret in text]
    if kinds:
        return f"holds {kinds[0]}. Take it out, and revoke it where it was issued."
    if Path(name).name in VOCABULARIES:
        return None
    home = HOME.search(text)
    place = home[0] if home else next((place for place in places if place in text), None)
    return f"holds a path of this machine, {place.decode(errors='replace')}. Take it out." if place else None


def own_secrets() -> Iterator[tuple[bytes, str]]:
    """Tokens and keys of this account and environment, which no file may contain."""
    for name, value in os.environ.items():
        is_secret = re.search(r"(TOKEN|SECRET|PASSWORD|API_?KEY)$", name) and not value.isdigit()
        if is_secret and len(value) >= SHORTEST_SECRET:
            yield value.encode(), f"the value of the variable {name}"
    token = get_token()
    if token:
        yield token.encode(), "the token of this account"
