"""
Whether a published folder is what was published: SHA-256 sums of every file, and signatures on request.

    python hub_cards/integrity.py org/name [--revision v1] [--public_key KEY.pem]

The sums are in the form of `sha256sum`, which checks them without this package: `sha256sum --check SHA256SUMS`. They
show damage; that nobody changed both files and sums, only a signature or a commit whose name is known shows.
"""

import argparse
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from logramed.eval.command_line import ArgumentParser, UserError, run_command
from logramed.eval.model_names import refuse_missing_path
from logramed.hub_cards.screening import PICKLE_ENDINGS


SUMS_NAME, SIGNATURE_NAME = "SHA256SUMS", "model.sig"
UNLISTED = (SUMS_NAME, SIGNATURE_NAME, ".gitattributes")
SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


class IntegrityError(UserError):
    """Files that are not what was published."""


def hash_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder, by its path there; hidden folders, the sums and the signature left out."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.as_posix() not in UNLISTED and not any(part.startswith(".") for part in name.parts):
            with path.open("rb") as file:
                sums[name.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def write_sums(folder: Path) -> str:
    """
    Write `SHA256SUMS` of all files in a folder, and return its text.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_text("a")
        >>> write_sums(folder)
        'ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb  a.txt\\n'
    """
    text = "".join(f"{digest}  {name}\n" for name, digest in hash_files(folder).items())
    (folder / SUMS_NAME).write_text(text, encoding="utf-8")
    return text


def read_sums(text: str) -> dict[str, str]:
    """
    Digests by file of the text of a `SHA256SUMS`.

    Raises:
        IntegrityError: Naming the line that is none of such a file.
    """
    sums = {}
    for number, line in enumerate(text.splitlines(), start=1):
        found = SUM_LINE.fullmatch(line)
        if found is None:
            raise IntegrityError(f"{SUMS_NAME}, line {number}, is no digest and name: {line[:80]!r}.")
        sums[found[2]] = found[1]
    return sums


def find_changes(folder: Path) -> list[str]:
    """What in a folder is not as its `SHA256SUMS` says, a sentence each; empty if all is as it was published."""
    path = folder / SUMS_NAME
    if not path.is_file():
        return [f"There is no {SUMS_NAME} in {folder}, so nothing can be checked."]
    expected, found = read_sums(path.read_text(encoding="utf-8")), hash_files(folder)
    changes = [f"{name} is missing." for name in expected if name not in found]
    changes += [
        f"{name} has another content than was published."
        for name in expected
        if found.get(name, "") != expected[name] and name in found
    ]
    changes += [f"{name} was not published." for name in found if name not in expected]
    changes += [f"{name} may hold a pickle, which runs code." for name in found if name.endswith(PICKLE_ENDINGS)]
    return changes


def sign(folder: Path, private_key: Path) -> Path:
    """
    Sign all files of a folder with an elliptic curve key (PEM), as `model.sig` in it, with the package model-signing.

    Raises:
        ImportError: If that package is missing.
        ValueError: If the key cannot be used.
    """
    signing, hashing, _ = _model_signing()
    signature = folder / SIGNATURE_NAME
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{private_key} is no private key that can sign: {error}") from error
    ignored = hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=True)
    config.set_hashing_config(ignored).sign(folder, signature)
    return signature


def verify_signature(folder: Path, public_key: Path) -> None:
    """
    Raises:
        IntegrityError: If `model.sig` is missing, or is no signature of these files by the key's owner.
    """
    _, hashing, verifying = _model_signing()
    signature = folder / SIGNATURE_NAME
    if not signature.is_file():
        raise IntegrityError(f"{folder} is not signed: there is no {SIGNATURE_NAME}.")
    ignored = [signature, *(path for path in folder.iterdir() if path.name.startswith("."))]
    config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    config = config.set_hashing_config(
        hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=True).set_allow_symlinks(True)
    )
    try:
        config.verify(folder, signature)
    except Exception as error:  # whatever stands in the file: it is no good signature
        raise IntegrityError(f"{folder} is not what the key's owner signed: {error}") from error


def _model_signing():
    try:
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise ImportError("Signatures need model-signing: `pip install 'logramed[sign]'`.") from error
    return signing, hashing, verifying


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="logramed-verify", description="Check a published model, data set or Space against its sums."
    )
    parser.add_argument("source", help="folder, or id on the Hub, which is downloaded")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--repo_type", default="model", choices=["model", "dataset", "space"])
    parser.add_argument("--public_key", type=Path, help="elliptic curve key (PEM) that model.sig must be of")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    folder = Path(arguments.source)
    refuse_missing_path(arguments.source, "`source`")
    if not folder.is_dir():
        folder = Path(snapshot_download(arguments.source, revision=arguments.revision, repo_type=arguments.repo_type))
    problems = find_changes(folder)
    if not problems and arguments.public_key is not None:
        try:
            verify_signature(folder, arguments.public_key)
        except IntegrityError as error:
            problems.append(str(error))
    if problems:
        print("\n".join(problems))
        return 1
    signed = ", and signed by the owner of the key" if arguments.public_key else ""
    print(f"All {len(hash_files(folder))} files are as they were published{signed}.")
    return 0


def command() -> int:
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
