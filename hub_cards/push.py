"""
Publish a model, adapter, data set or Space: `python hub_cards/push.py DIR --repo org/name`, also `logramed-push`.

Writes the card from the result files, stops at files that must not be published, and uploads in one commit, privately
unless `--public` is given. After a broken connection, the same command uploads what is still missing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from logramed.eval.command_line import UserError, run_command
from logramed.hub_cards.contents import REPLACED, matches
from logramed.hub_cards.publications import REPO_TYPES, Publication, prepare
from logramed.hub_cards.screening import find_problems


class PushError(UserError):
    """Raised if something cannot be published; the message says why."""


def check(publication: Publication) -> None:
    """Raise `PushError` if files must not be published, with the reason for each."""
    problems = find_problems(publication.contents, publication.folder)
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise PushError(f"Nothing was uploaded. These files must not be published:\n{listed}")


def push(
    publication: Publication,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str = "Published with LoGra-Med",
    token: str | None = None,
) -> str:
    """
    Upload in one commit to `repo_id` (`owner/name`) on the Hub, created if needed, and return the commit hash. Files
    of an earlier push that this one lacks are removed; other files in the repository stay.

    `revision` is a branch, created if needed, by default `main`; `token` is by default the one of the login. Raises
    `PushError` if a file must not be published, the repository is public but `private` is set, or the Hub cannot be
    reached or returns an error.
    """
    check(publication)
    api, repo_type = HfApi(token=token), REPO_TYPES[publication.kind]
    files = publication.contents.files
    operations = [
        CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in files.items()
    ]
    try:
        sdk = "gradio" if repo_type == "space" else None
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk)
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise PushError(
                f"{repo_id} is public already, so everybody would see these files. Give `--public` if that is meant "
                "(in training, `--hub_private_repo false`), or another name."
            )
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        there = api.list_repo_files(repo_id, repo_type=repo_type, revision=revision)
        operations += [CommitOperationDelete(name) for name in there if matches(name, REPLACED) and name not in files]
        commit = api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, revision=revision)
    except PushError:
        raise
    except Exception as error:  # types depend on the versions of the Hub client and its HTTP library
        raise PushError(
            f"Publishing {repo_id} failed: {error}\nThe same command uploads what is still missing."
        ) from error
    return commit.oid


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="logramed-push", description=__doc__.split("\n\n")[1].replace("\n", " "))
    parser.add_argument("folder", type=Path, help="folder of a model, adapter, evaluation, data set or Space")
    parser.add_argument("--repo", required=True, help="owner/name on the Hub")
    parser.add_argument("--license", help="licence of what is published, such as apache-2.0; required")
    parser.add_argument("--language", default="en", help="language code of the answers, such as en or zh")
    parser.add_argument("--public", action="store_true", help="create a public repository")
    parser.add_argument("--revision", help="branch to commit to (default: main)")
    parser.add_argument("--evaluation", type=Path, nargs="*", help="folders of `logramed-eval` (default: those found)")
    parser.add_argument("--datasets", nargs="*", default=[], help="Hub ids of its data, for the card")
    parser.add_argument("--base_model", nargs="*", default=[], help="Hub ids of its base models, for the card")
    parser.add_argument("--include", nargs="*", default=[], help="patterns of additional files in the folder")
    parser.add_argument("--dry_run", action="store_true", help="show files and card without uploading")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    publication = prepare(
        arguments.folder,
        arguments.repo,
        license=arguments.license,
        evaluations=arguments.evaluation,
        datasets=arguments.datasets,
        base_models=arguments.base_model,
        include=arguments.include,
        language=arguments.language,
    )
    print(publication.contents.describe())
    if arguments.dry_run:
        check(publication)
        print(f"\n{publication.card}")
        return 0
    commit = push(publication, arguments.repo, private=not arguments.public, revision=arguments.revision)
    print(f"Published in {arguments.repo}, commit {commit}.")
    return 0


def command() -> int:
    return run_command(main)


if __name__ == "__main__":
    raise SystemExit(command())
