"""
Publish a model, adapter, data set or Space: `python hub_cards/push.py DIR --repo org/name`, also `logramed-push`.

Writes the card from the result files, looks for what must not be published, shows what will be uploaded, asks, and
uploads it in one commit. Private unless `--public` is given. After a broken connection the same command goes on: what
the Hub has already is not sent again.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

from logramed.eval.command_line import ArgumentParser, UserError, run_command
from logramed.hub_cards.contents import Contents
from logramed.hub_cards.integrity import SIGNATURE_NAME, SUMS_NAME, read_sums, sign, write_sums
from logramed.hub_cards.preview import write_preview
from logramed.hub_cards.publications import KINDS, Publication, prepare
from logramed.hub_cards.screening import find_problems


# Waits between attempts, in seconds, beyond those that huggingface_hub makes itself for single requests.
RETRY_SECONDS = (1, 2, 4, 8)
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
REASONS = {
    401: "The Hub does not know this token. Log in with `hf auth login`, or set `HF_TOKEN`.",
    403: "This token may not write there. It needs write permission for the namespace.",
}


class PushError(UserError):
    """Nothing was published; the words say why, and what to do."""


class RefusedError(PushError):
    """Files that must not be published."""


@dataclass
class Push:
    """
    How to publish a folder.

    Args:
        publication (`Publication`): What is published, and what its card says (see `prepare`).
        repo_id (`str`): `owner/name` on the Hub.
        private (`bool`): Of a repository that is made now. One that is public already is refused then.
        revision (`str`, *optional*): Branch to commit to; by default `main`. It is made if it is not there.
        message (`str`): Of the commit.
        token (`str`, *optional*): By default the one that is logged in.
        private_key (`Path`, *optional*): Sign the files with it.
    """

    publication: Publication
    repo_id: str
    private: bool = True
    revision: str | None = None
    message: str = "Published with LoGra-Med"
    token: str | None = field(default=None, repr=False)
    private_key: Path | None = None

    def run(self, is_agreed: Callable[[str], bool], say: Callable[[str], None] = print) -> str | None:
        """
        Show, ask and upload.

        Args:
            is_agreed (`Callable`): Gets a question, and returns whether to go on.
            say (`Callable`): Gets what a user should read.

        Returns:
            `str`: the name of the commit that holds the files; None if `is_agreed` was not.

        Raises:
            RefusedError: Naming each file that must not be published, and why.
            PushError: If the Hub could not be reached or refuses. Nothing of it is visible then.
        """
        contents = self.publication.contents
        with tempfile.TemporaryDirectory(prefix=".push_", dir=self._staging_parent()) as staged:
            staged = Path(staged)
            contents.stage(staged)
            contents.files[SUMS_NAME] = write_sums(staged).encode()
            if self.private_key is not None:
                contents.files[SIGNATURE_NAME] = sign(staged, self.private_key).read_bytes()
        problems = find_problems(contents, self.publication.folder)
        if problems:
            listed = "\n".join(f"- {problem}" for problem in problems)
            raise RefusedError(f"Nothing was uploaded. What must not be published is in these files:\n{listed}")
        say(self.describe())
        if not is_agreed(f"Upload to {self.repo_id}?"):
            return None
        return self._upload(contents, say)

    def describe(self) -> str:
        """What will be uploaded, where, and who will see it."""
        seen = "private" if self.private else "public: everybody can see it"
        kind = KINDS[self.publication.kind]
        return f"{kind.title} {self.repo_id} ({seen}) will hold:\n{self.publication.contents.describe()}"

    def _staging_parent(self) -> Path | None:
        """Beside the folder, so that files can be linked; None where nothing can be written there."""
        parent = self.publication.folder.resolve().parent
        try:
            with tempfile.TemporaryDirectory(dir=parent):
                return parent
        except OSError:
            return None

    def _upload(self, contents: Contents, say: Callable[[str], None]) -> str:
        waits = list(RETRY_SECONDS)
        operations = None
        while True:
            try:
                head = self._find_or_make_repository()
                former = self._read_former_sums(head)
                new = contents.files[SUMS_NAME]
                if former is not None and former == new and SIGNATURE_NAME not in contents.files:
                    say(f"{self.repo_id} holds these files already, as of commit {head[:12]}.")
                    return head
                if operations is None:  # kept for further attempts: they know what was sent
                    operations = [
                        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
                        for name, content in contents.files.items()
                    ]
                gone = self._list_gone(former, contents, head)
                return self._commit([*operations, *gone], head, say)
            except Exception as error:
                status, is_passing = judge(error)
                if not is_passing or not waits:
                    raise PushError(describe_failure(self.repo_id, error, status)) from error
                wait = waits.pop(0)
                say(f"The upload was interrupted ({summarize(error)}). It goes on in {wait} seconds.")
                time.sleep(wait)

    @property
    def _api(self) -> HfApi:
        return HfApi(token=self.token)

    @property
    def _repo_type(self) -> str:
        return KINDS[self.publication.kind].repo_type

    def _find_or_make_repository(self) -> str:
        """The commit that the branch is at."""
        options = {"repo_type": self._repo_type}
        try:
            found = self._api.repo_info(self.repo_id, **options)
        except RepositoryNotFoundError as error:
            if error.response is not None and error.response.status_code == 401 and not self._is_logged_in():
                raise PushError(REASONS[401]) from error
            sdk = {"space_sdk": "gradio"} if self._repo_type == "space" else {}
            self._api.create_repo(self.repo_id, private=self.private, exist_ok=True, **options, **sdk)
            found = self._api.repo_info(self.repo_id, **options)
        if self.private:
            refuse_public(self.repo_id, found.private)
        if self.revision in (None, "main"):
            return found.sha
        self._api.create_branch(self.repo_id, branch=self.revision, exist_ok=True, **options)
        return self._api.repo_info(self.repo_id, revision=self.revision, **options).sha

    def _is_logged_in(self) -> bool:
        try:
            self._api.whoami()
        except Exception as error:  # without a token at all the client has an error of its own
            if judge(error)[1]:
                raise
            return False
        return True

    def _read_former_sums(self, head: str) -> bytes | None:
        """`SHA256SUMS` as of the commit `head`, or None if there is none."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = self._api.hf_hub_download(
                    self.repo_id, SUMS_NAME, repo_type=self._repo_type, revision=head, local_dir=folder
                )
            except EntryNotFoundError as error:
                if isinstance(error, FileNotFoundError):  # not in a cache, since the Hub could not be asked
                    raise error.__cause__ or error from None
                return None
            return Path(path).read_bytes()

    def _list_gone(self, former: bytes | None, contents: Contents, head: str) -> list[CommitOperationDelete]:
        """Files of an earlier push that this one has not: other files in the repository are left alone."""
        if former is None:
            return []
        names = [*read_sums(former.decode())]
        # The sums do not list the signature, which is none of what comes now.
        if self._api.file_exists(self.repo_id, SIGNATURE_NAME, repo_type=self._repo_type, revision=head):
            names.append(SIGNATURE_NAME)
        return [CommitOperationDelete(name) for name in names if name not in contents.files]

    def _commit(self, operations: list, head: str, say: Callable[[str], None]) -> str:
        options = {"repo_type": self._repo_type, "revision": self.revision, "commit_message": self.message}
        commit = self._api.create_commit(self.repo_id, operations, parent_commit=head, **options)
        say(f"Published: {commit.commit_url}")
        return commit.oid


def refuse_public(repo_id: str, is_private: bool) -> None:
    """
    Raises:
        PushError: If what was to be private would come into a public repository.
    """
    if not is_private:
        raise PushError(
            f"{repo_id} is public already, so everybody would see these files. Give `--public` if that is meant (in "
            "training, `--hub_private_repo false`), or another name."
        )


def causes(error: BaseException) -> list[BaseException]:
    """An error and what it came from, the last cause last."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def judge(error: BaseException) -> tuple[int | None, bool]:
    """The status that the Hub answered with, if it did, and whether another attempt may succeed."""
    chain = causes(error)
    if any(isinstance(cause, PushError) for cause in chain):
        return None, False
    for cause in chain:
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            status = cause.response.status_code
            # 412: the branch has moved on, perhaps by a commit of ours whose answer was lost. An upload that was
            # damaged on its way is refused with 400.
            is_upload = cause.response.request.method == "PUT"
            return status, status in (*RETRIED_STATUS, 412) or (status == 400 and is_upload)
    modules = {type(cause).__module__.partition(".")[0] for cause in chain}
    is_network = any(isinstance(cause, ConnectionError | TimeoutError) for cause in chain)
    return None, is_network or any(module.startswith("http") for module in modules)


def summarize(error: BaseException) -> str:
    """The last cause in one line."""
    last = causes(error)[-1]
    return f"{type(last).__name__}: {str(last).splitlines()[0] if str(last) else 'no answer'}"


def describe_failure(repo_id: str, error: BaseException, status: int | None) -> str:
    """Why nothing was published."""
    if isinstance(error, PushError):
        return str(error)
    reason = REASONS.get(status, summarize(error))
    again = " The same command goes on where this one stopped." if judge(error)[1] else ""
    return f"Nothing was published in {repo_id}: {reason}{again}"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(prog="logramed-push", description=__doc__.split("\n\n")[1].replace("\n", " "))
    parser.add_argument("folder", type=Path, help="folder of a model, adapter, evaluation, data set or Space")
    parser.add_argument("--repo", required=True, help="owner/name on the Hub")
    parser.add_argument("--kind", choices=list(KINDS), help="what it is; by default seen from its files")
    parser.add_argument("--license", help="licence of what is published, such as apache-2.0; needed")
    parser.add_argument("--language", default="en", help="code of the language of the answers, such as en or zh")
    parser.add_argument("--public", action="store_true", help="make a repository that everybody can see")
    parser.add_argument("--revision", help="branch to commit to (default: main)")
    parser.add_argument("--evaluation", type=Path, nargs="*", help="folders of `logramed-eval` (default: those found)")
    parser.add_argument("--datasets", nargs="*", default=[], help="ids on the Hub of its data, for the card")
    parser.add_argument("--base_model", nargs="*", default=[], help="ids on the Hub it was made from, for the card")
    parser.add_argument("--include", nargs="*", default=[], help="patterns of further files in the folder")
    parser.add_argument(
        "--share_included_images",
        action="store_true",
        help="those of --include may be shared, by their terms",
    )
    parser.add_argument(
        "--share_images_of", nargs="*", default=[], help="benchmarks whose images may be shown, by their terms"
    )
    parser.add_argument("--private_key", type=Path, help="sign with this elliptic curve key (PEM)")
    parser.add_argument("--message", default=Push.message, help="of the commit")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--preview", type=Path, help="write the card as a page for the browser to this file")
    parser.add_argument("--dry_run", action="store_true", help="show files and card; upload nothing")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    publication = prepare(
        arguments.folder,
        arguments.repo,
        kind=arguments.kind,
        license=arguments.license,
        evaluations=arguments.evaluation,
        datasets=arguments.datasets,
        base_models=arguments.base_model,
        include=arguments.include,
        share_included_images=arguments.share_included_images,
        share_images_of=arguments.share_images_of,
        language=arguments.language,
    )
    push = Push(
        publication,
        arguments.repo,
        private=not arguments.public,
        revision=arguments.revision,
        message=arguments.message,
        private_key=arguments.private_key,
    )
    if arguments.preview is not None:
        print(f"Card: {write_preview(publication.card, publication.contents, arguments.preview)}")
    if arguments.dry_run:
        commit = push.run(lambda question: False)
        if arguments.preview is None:
            print(f"\n{publication.card}")
        return 0
    commit = push.run(lambda question: arguments.yes or ask(question))
    if commit is None:
        print("Nothing was uploaded.")
    return 0


def ask(question: str) -> bool:
    """Whether somebody at the terminal agrees; nobody there is no agreement."""
    if not sys.stdin.isatty():
        print(f"{question} Nobody is there to ask: give `--yes` to upload.")
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def command() -> int:
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
