"""What must not be published: tokens and keys, paths of a home folder, images of data sets, pickles."""

import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from detect_secrets import SecretsCollection
from detect_secrets.settings import transient_settings
from huggingface_hub import get_token

from logramed.hub_cards.contents import Contents


READ_SIZE, OVERLAP = 1 << 24, 1 << 10  # bytes read at a time, and of them those read again with the next
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".msgpack", ".h5")
PICKLE_START = re.compile(rb"\x80[\x02-\x05]")
IMAGE_ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".nii", ".nii.gz", ".mha", ".mhd"),
    *(".nrrd", ".svs", ".heic", ".pdf"),
)
IMAGE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"%PDF")
EMBEDDED_IMAGE = re.compile(rb"data:image/[\w.+-]+;base64,")
# Endings of text that are looked at line by line too.
TEXT_ENDINGS = (".json", ".jsonl", ".md", ".py", ".txt", ".yaml", ".yml", ".jinja", ".css", ".html", ".toml", ".cfg")
# Their words may be pieces of anything.
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
SHORTEST_SECRET = 16  # letters of a variable's value below which it may be any word
# Only those that know a key by its form: digests and long words are in many honest files.
DETECTORS = (
    *("AWSKeyDetector", "ArtifactoryDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "CloudantDetector"),
    *(
        "DiscordBotTokenDetector",
        "GitHubTokenDetector",
        "GitLabTokenDetector",
        "JwtTokenDetector",
        "MailchimpDetector",
    ),
    *("NpmDetector", "OpenAIDetector", "PrivateKeyDetector", "PypiTokenDetector", "SendGridDetector", "SlackDetector"),
    *("SquareOAuthDetector", "StripeDetector", "TelegramBotTokenDetector", "TwilioKeyDetector"),
)
# What each kind begins with, which is looked for first: patterns alone would take a quarter of an hour for a 7B.
TOKENS = {
    "a Hugging Face token": ((b"hf_", b"api_org_"), re.compile(rb"(?<![A-Za-z0-9_])\w+?_[A-Za-z0-9]{30,}")),
    "a private key": ((b"-----BEGIN ",), re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")),
    "a key of an API": (
        (b"sk-", b"ghp_", b"AKIA"),
        re.compile(rb"(?<![\w-])(?:sk-[\w-]{32,}|ghp_[A-Za-z0-9]{36}|AKIA[A-Z0-9]{16})"),
    ),
}
HOME = re.compile(rb"(?:/(?:home/|Users/|root/)|[A-Z]:\\\\?Users\\\\?)[^/\\\s\"'`<>|]+")


def find_problems(contents: Contents, folder: Path | None = None) -> list[str]:
    """
    What stands against publishing these files, a sentence each that names the file; empty if nothing does.

    Args:
        contents (`Contents`): The files.
        folder (`Path`, *optional*): Where they come from on this machine: its path must not be in them.
    """
    problems = []
    for name in sorted(contents.files):
        start = b"".join(_read(contents.files[name], 8))
        for problem in (
            _find_pickle(name, start, contents.files[name]),
            _find_image(name, start, contents),
            *_find_text(name, contents.files[name], folder),
        ):
            if problem:
                problems.append(f"{name}: {problem}")
    return problems


def _read(content: Path | bytes, limit: int | None = None) -> Iterator[bytes]:
    """The bytes, in overlapping parts."""
    if isinstance(content, bytes):
        yield content[:limit]
        return
    with content.open("rb") as file:
        if limit is not None:
            yield file.read(limit)
            return
        kept = b""
        while part := file.read(READ_SIZE):
            yield kept + part
            kept = part[-OVERLAP:]


def _find_pickle(name: str, start: bytes, content: Path | bytes) -> str | None:
    if name.lower().endswith(PICKLE_ENDINGS) or PICKLE_START.match(start):
        return "is a pickle or a format that may hold one, which runs code when it is loaded. Save it as safetensors."
    if isinstance(content, Path) and start.startswith(b"PK") and zipfile.is_zipfile(content):
        with zipfile.ZipFile(content) as archive:
            if any(entry.endswith(".pkl") for entry in archive.namelist()):
                return "is an archive with a pickle, which runs code when it is loaded. Save it as safetensors."
    return None


def _find_image(name: str, start: bytes, contents: Contents) -> str | None:
    if name in contents.shareable_images:
        return None
    if name.lower().endswith(IMAGE_ENDINGS) or start.startswith(IMAGE_STARTS):
        return (
            "is an image that is not known to be generated. Images of data sets are not published; if its terms allow "
            "it, say so with `--share_included_images`."
        )
    return None


def _find_text(name: str, content: Path | bytes, folder: Path | None) -> list[str]:
    problems: dict[str, None] = {}
    is_vocabulary = Path(name).name in VOCABULARIES
    places = [] if is_vocabulary else list(local_places(folder))
    for part in _read(content):
        for kind, (beginnings, pattern) in TOKENS.items():
            if any(_matches_at(part, beginning, pattern) for beginning in beginnings):
                problems[f"holds {kind}. Take it out, and withdraw it where it was issued."] = None
        for kind, secret in own_secrets():
            if secret in part:
                problems[f"holds {kind}. Take it out, and withdraw it where it was issued."] = None
        if EMBEDDED_IMAGE.search(part) and not name.endswith(".py"):
            problems["holds an image, of which it is not known whether it may be shared."] = None
        if not is_vocabulary and not name.endswith(".safetensors"):
            home = HOME.search(part)
            place = next((place for place in places if place in part), None)
            if home:
                problems[f"holds the path of a home folder, {home[0].decode(errors='replace')}. Take it out."] = None
            elif place:
                problems[f"holds a path of this machine, {place.decode()}. Take it out."] = None
    if name.lower().endswith(TEXT_ENDINGS) and not is_vocabulary:
        problems |= dict.fromkeys(_detect_secrets(content, problems))
    return list(problems)


def _matches_at(part: bytes, beginning: bytes, pattern: re.Pattern) -> bool:
    """Whether `pattern` fits somewhere where `beginning` stands."""
    place = part.find(beginning)
    while place >= 0:
        if pattern.match(part, place):
            return True
        place = part.find(beginning, place + 1)
    return False


def own_secrets() -> Iterator[tuple[str, bytes]]:
    """Tokens and keys of this account and environment, which no file may hold."""
    token = get_token()
    if token:
        yield "the token of this account", token.encode()
    for name, value in os.environ.items():
        is_secret = re.search(r"(TOKEN|SECRET|PASSWORD|API_?KEY)$", name) and not value.isdigit()
        if is_secret and len(value) >= SHORTEST_SECRET and value != token:
            yield f"the value of the variable {name}", value.encode()


def local_places(folder: Path | None) -> Iterator[bytes]:
    """Paths of this machine that say where somebody works."""
    for place in {Path.home(), Path.cwd(), *([folder.resolve()] if folder is not None else [])}:
        if len(place.parts) > 1:
            yield str(place).encode()


def _detect_secrets(content: Path | bytes, known: Iterable[str]) -> Iterator[str]:
    """Keys that detect-secrets knows by their form."""
    if any("token" in problem or "key" in problem for problem in known):
        return  # said already
    text = content if isinstance(content, bytes) else content.read_bytes()
    for kind in sorted(scan_lines(text.decode("utf-8", errors="replace"))):
        yield f"holds what looks like a secret ({kind}). Take it out, and withdraw it where it was issued."


def scan_lines(text: str) -> set[str]:
    """The kinds of secrets that detect-secrets finds in a text."""
    settings = {"plugins_used": [{"name": name} for name in DETECTORS]}
    with transient_settings(settings), tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        secrets = SecretsCollection()
        secrets.scan_file(file.name)
        return {secret.type for _, secret in secrets}
