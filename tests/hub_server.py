"""
A small server that speaks the Hugging Face Hub's protocol to its real clients, with faults on request.

Models, data sets and Spaces: creating, preupload, LFS (basic and multipart), commits, resolving, trees, revisions and
tags, private repositories. What it holds lies in a folder, so that a server that is started anew has it. No package
offers this: the self-hosted hubs there are need a database and an object store.
"""

import base64
import functools
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route


TOKEN, READ_TOKEN, USER = "hf_" + "localtesttoken" * 3, "hf_" + "onlyreadingtoken" * 3, "tester"
KINDS = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
TEXT_ENDINGS = (".md", ".json", ".jsonl", ".txt", ".py", ".yaml", ".jinja", ".css", ".model")
START_SECONDS = 20


@dataclass
class Fault:
    """
    What goes wrong, `times` times, at requests whose method and path contain the given texts.

    Args:
        path (`str`): Part of the path.
        kind (`str` or `int`): A status code; `"drop"`: the connection is closed without an answer; `"drop_after"`: the
            request is carried out and then the connection closed; `"cut"`: a download ends in the middle; `"flip"`: a
            byte of an upload, or of a download, is another.
        method (`str`): Of the request.
        times (`int`): How often.
    """

    path: str
    kind: str | int
    method: str = ""
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)

    def fits(self, request: Request) -> bool:
        return self.times > 0 and self.path in request.url.path and self.method in request.method


def of_repository(look: str):
    """
    For a method that answers a request about a repository: it gets its kind, name, the revision, and what the method
    `look` (`"visible"` or `"writable"`) finds; a refusal is answered before.
    """

    def decorate(answer):
        @functools.wraps(answer)
        async def endpoint(self, request: Request) -> Response:
            kind, name, revision = parts(request)
            repo = getattr(self, look)(request, kind, name)
            return repo if isinstance(repo, Response) else await answer(self, request, repo, kind, name, revision)

        return endpoint

    return decorate


class DropConnectionError(Exception):
    """The connection is closed without an answer."""


class HubServer:
    """
    The server's content and its answers.

    Args:
        folder (`Path`): Where everything is kept.

    Attributes:
        faults (`list[Fault]`): Those to come.
        requests (`list[str]`): Method and path of every request so far.
    """

    def __init__(self, folder: Path):
        self.folder, self.faults, self.requests, self.address = Path(folder), [], [], ""
        (self.folder / "blobs").mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()

    # What is kept

    def repo_path(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{name.replace('/', '--')}.json"

    def read(self, kind: str, name: str) -> dict | None:
        path = self.repo_path(kind, name)
        return json.loads(path.read_text()) if path.is_file() else None

    def write(self, kind: str, name: str, repo: dict) -> None:
        path = self.repo_path(kind, name)
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".new").write_text(json.dumps(repo))
        path.with_suffix(".new").rename(path)

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        """The content of a repository, for tests."""
        repo = self.read(kind, name)
        commit = repo["commits"][find_commit(repo, revision)]
        return {path: self.blob(entry["sha256"]).read_bytes() for path, entry in commit["files"].items()}

    def blob(self, sha256: str) -> Path:
        return self.folder / "blobs" / sha256

    # Accounts

    def user(self, request: Request) -> str | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        return {TOKEN: "writer", READ_TOKEN: "reader"}.get(token)

    def visible(self, request: Request, kind: str, name: str) -> dict | Response:
        """The repository, or the refusal that the Hub gives."""
        repo = self.read(kind, name)
        if repo is None or (repo["private"] and self.user(request) is None):
            status = 401 if self.user(request) is None else 404
            return refuse(status, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, request: Request, kind: str, name: str) -> dict | Response:
        repo = self.visible(request, kind, name)
        if isinstance(repo, Response) or self.user(request) == "writer":
            return repo
        return refuse(403 if self.user(request) else 401, "You are not allowed to write here.")

    # Answers

    async def whoami(self, request: Request) -> Response:
        if self.user(request) is None:
            return refuse(401, "Invalid credentials in Authorization header")
        token = {"accessToken": {"displayName": "test", "role": "write"}}
        return JSONResponse({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": token})

    async def create(self, request: Request) -> Response:
        if self.user(request) != "writer":
            return refuse(403 if self.user(request) else 401, "You don't have the rights to create a repository.")
        asked = await request.json()
        kind, name = f"{asked.get('type') or 'model'}s", f"{asked.get('organization') or USER}/{asked['name']}"
        answer = {"url": f"{self.address}/{KINDS[kind]}{name}", "id": name, "name": name}
        if self.read(kind, name) is not None:
            return JSONResponse({**answer, "error": "You already created this repo"}, status_code=409)
        first = {"files": {}, "parent": None, "message": "initial commit"}
        oid = name_commit(first)
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repo = {"private": private, "refs": {"main": oid}, "commits": {oid: first}, "sdk": asked.get("sdk")}
        self.write(kind, name, repo)
        return JSONResponse(answer)

    async def validate_yaml(self, request: Request) -> Response:
        content = (await request.json())["content"]
        try:
            _, front, _ = content.split("---\n", 2)
            said = yaml.safe_load(front)
            errors = [] if isinstance(said, dict) else ["metadata must be a mapping"]
            errors += [f'"{name}" must be a string' for name in ("license", "pipeline_tag") if not is_text(said, name)]
        except (ValueError, yaml.YAMLError) as error:
            errors = [f"metadata cannot be read: {error}"]
        messages = [{"message": message} for message in errors]
        return JSONResponse({"errors": messages, "warnings": []}, status_code=400 if errors else 200)

    @of_repository("visible")
    async def info(self, request: Request, repo: dict, kind: str, name: str, revision: str) -> Response:
        oid = find_commit(repo, revision)
        if oid is None:
            return refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        siblings = [
            {"rfilename": path, "size": entry["size"], **({"lfs": lfs_of(entry)} if entry["lfs"] else {})}
            for path, entry in repo["commits"][oid]["files"].items()
        ]
        known = {"id": name, "modelId": name, "sha": oid, "private": repo["private"], "siblings": siblings}
        return JSONResponse({"_id": name, "tags": [], "downloads": 0, "likes": 0, "gated": False, **known})

    @of_repository("writable")
    async def preupload(self, request: Request, repo: dict, kind: str, name: str, revision: str) -> Response:
        there = repo["commits"][find_commit(repo, revision)]["files"]
        files = []
        for file in (await request.json())["files"]:
            mode = "regular" if file["path"].endswith(TEXT_ENDINGS) else "lfs"
            entry = there.get(file["path"])
            oid = None if entry is None else entry["sha256"] if entry["lfs"] else entry["git"]
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return JSONResponse({"files": files})

    @of_repository("writable")
    async def lfs_batch(self, request: Request, repo: dict, kind: str, name: str, revision: str) -> Response:
        objects = []
        for asked in (await request.json())["objects"]:
            known = {"oid": asked["oid"], "size": asked["size"]}
            if not self.blob(asked["oid"]).is_file():
                href = f"{self.address}/lfs/{asked['oid']}"
                known["actions"] = {
                    "upload": {"href": href, "header": {}},
                    "verify": {"href": f"{href}/verify", "header": {}},
                }
            objects.append(known)
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def lfs_put(self, request: Request) -> Response:
        content = await request.body()
        if self.take_fault(request, "flip"):
            content = flip(content)
        if hashlib.sha256(content).hexdigest() != request.path_params["oid"]:
            return refuse(400, "The content does not have the SHA-256 it was announced with.")
        new = self.blob(request.path_params["oid"] + ".new")
        new.write_bytes(content)
        new.rename(self.blob(request.path_params["oid"]))
        return Response()

    async def lfs_verify(self, request: Request) -> Response:
        there = self.blob(request.path_params["oid"]).is_file()
        return JSONResponse({}) if there else refuse(404, "No such object")

    @of_repository("writable")
    async def commit(self, request: Request, repo: dict, kind: str, name: str, revision: str) -> Response:
        parent = find_commit(repo, revision)
        files, header = dict(repo["commits"][parent]["files"]), {}
        for line in (await request.body()).splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                header = value
            elif key == "file":
                files[value["path"]] = self.keep(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if not self.blob(value["oid"]).is_file():
                    return refuse(400, f"{value['path']} points to an object that was not uploaded.")
                size = self.blob(value["oid"]).stat().st_size
                files[value["path"]] = {"sha256": value["oid"], "git": value["oid"][:40], "size": size, "lfs": True}
            elif key == "deletedFile":
                files.pop(value["path"], None)
        if header.get("parentCommit", parent) != parent:
            return refuse(412, "A commit has happened since. Please refresh and try again.")
        new = {"files": files, "parent": parent, "message": header["summary"]}
        oid = name_commit(new)
        repo["commits"][oid] = new
        repo["refs"][revision] = oid
        self.write(kind, name, repo)
        url = f"{self.address}/{KINDS[kind]}{name}/commit/{oid}"
        return JSONResponse({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def keep(self, content: bytes) -> dict:
        sha256 = hashlib.sha256(content).hexdigest()
        self.blob(sha256).write_bytes(content)
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"sha256": sha256, "git": git, "size": len(content), "lfs": False}

    @of_repository("visible")
    async def tree(self, request: Request, repo: dict, kind: str, name: str, revision: str) -> Response:
        oid = find_commit(repo, revision)
        if oid is None:
            return refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = repo["commits"][oid]["files"]
        wanted = files
        if request.method == "POST":
            form = await request.form()
            wanted = [path for path in form.getlist("paths") if path in files]
        within = request.path_params.get("path", "")
        listed = [path for path in wanted if path.startswith(f"{within}/" if within else "")]
        return JSONResponse([describe(path, files[path]) for path in listed])

    @of_repository("writable")
    async def add_ref(self, request: Request, repo: dict, kind: str, name: str, revision: str) -> Response:
        if "/tag/" in request.url.path:
            repo["refs"][(await request.json())["tag"]] = find_commit(repo, revision)
        else:
            repo["refs"][revision] = find_commit(repo, "main")
        self.write(kind, name, repo)
        return JSONResponse({})

    @of_repository("visible")
    async def refs(self, request: Request, repo: dict, kind: str, name: str, revision: str) -> Response:
        branches = [
            {"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": oid} for ref, oid in repo["refs"].items()
        ]
        return JSONResponse({"branches": branches, "tags": [], "converts": []})

    @of_repository("visible")
    async def resolve(self, request: Request, repo: dict, kind: str, name: str, revision: str) -> Response:
        oid = find_commit(repo, revision)
        if oid is None:
            return refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        entry = repo["commits"][oid]["files"].get(unquote(request.path_params["path"]))
        if entry is None:
            return refuse(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": oid})
        headers = {"X-Repo-Commit": oid, "ETag": f'"{entry["git"]}"'}
        if entry["lfs"]:
            headers |= {"X-Linked-Etag": f'"{entry["sha256"]}"', "X-Linked-Size": str(entry["size"])}
            # Another name of this host, since clients follow redirects within the Hub when they ask for headers.
            return RedirectResponse(
                f"{self.address.replace('127.0.0.1', 'localhost')}/cdn/{entry['sha256']}", 302, headers
            )
        return self.send(request, entry["sha256"], headers)

    async def cdn(self, request: Request) -> Response:
        return self.send(request, request.path_params["oid"], {"ETag": f'"{request.path_params["oid"]}"'})

    def send(self, request: Request, sha256: str, headers: dict[str, str]) -> Response:
        content, status = self.blob(sha256).read_bytes(), 200
        if request.method == "GET" and self.take_fault(request, "flip"):
            content = flip(content)
        headers = {**headers, "Accept-Ranges": "bytes"}
        asked = request.headers.get("range", "")
        if asked.startswith("bytes="):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        if request.method == "HEAD":
            return Response(status_code=status, headers={**headers, "Content-Length": str(len(content))})
        if self.take_fault(request, "cut"):
            return CutResponse(content, status, headers)
        return Response(content, status, headers)

    # Faults

    def take_fault(self, request: Request, *kinds: str | int) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.fits(request) and (not kinds or fault.kind in kinds):
                    fault.times -= 1
                    return fault
        return None

    def app(self):
        api = "/api/{kind}/{owner}/{repo}"
        git = "{owner}/{repo}"
        routes = [
            Route("/api/whoami-v2", self.whoami),
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route("/api/validate-yaml", self.validate_yaml, methods=["POST"]),
            Route("/lfs/{oid}", self.lfs_put, methods=["PUT"]),
            Route("/lfs/{oid}/verify", self.lfs_verify, methods=["POST"]),
            Route("/cdn/{oid}", self.cdn, methods=["GET", "HEAD"]),
            Route(api, self.info),
            Route(api + "/revision/{revision}", self.info),
            Route(api + "/refs", self.refs),
            Route(api + "/preupload/{revision}", self.preupload, methods=["POST"]),
            Route(api + "/commit/{revision}", self.commit, methods=["POST"]),
            Route(api + "/tree/{revision}", self.tree),
            Route(api + "/tree/{revision}/{path:path}", self.tree),
            Route(api + "/paths-info/{revision}", self.tree, methods=["POST"]),
            Route(api + "/tag/{revision}", self.add_ref, methods=["POST"]),
            Route(api + "/branch/{revision}", self.add_ref, methods=["POST"]),
        ]
        for kind, prefix in KINDS.items():
            resolved = f"/{prefix}{git}/resolve/{{revision}}/{{path:path}}"
            routes.append(
                Route(f"/{prefix}{git}.git/info/lfs/objects/batch", of_kind(kind, self.lfs_batch), methods=["POST"])
            )
            routes.append(Route(resolved, of_kind(kind, self.resolve), methods=["GET", "HEAD"]))
        return FaultyApp(Starlette(routes=sorted(routes, key=lambda route: "{owner}" in route.path[:8])), self)


class FaultyApp:
    """The application, with the server's faults before and after it."""

    def __init__(self, app, server: HubServer):
        self.app, self.server = app, server

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        self.server.requests.append(f"{request.method} {request.url.path}")
        fault = self.server.take_fault(request, "drop", "drop_after", *range(400, 600))
        if fault is None:
            return await self.app(scope, receive, send)
        if fault.kind == "drop_after":
            await self.app(scope, receive, _swallow)
        if isinstance(fault.kind, str):
            send.__self__.transport.abort()  # uvicorn's own `send`: no answer, not even 500
            return None
        await request.body()
        return await refuse(fault.kind, f"Fault {fault.kind}", headers=fault.headers)(scope, receive, send)


async def _swallow(message):
    """What the application says reaches nobody."""


class CutResponse(Response):
    """Announces all of its content, sends half and closes the connection."""

    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body[: len(self.body) // 2], "more_body": True})
        raise DropConnectionError("cut")


def of_kind(kind: str, answer):
    async def endpoint(request: Request) -> Response:
        request.path_params["kind"] = kind
        return await answer(request)

    return endpoint


def parts(request: Request) -> tuple[str, str, str]:
    """Kind, name and revision that a path names."""
    known = request.path_params
    return known["kind"], f"{known['owner']}/{known['repo']}", unquote(known.get("revision", "main"))


def find_commit(repo: dict, revision: str) -> str | None:
    """The commit that a branch, a tag or a commit's own name stands for."""
    return repo["refs"].get(revision) or (revision if revision in repo["commits"] else None)


def name_commit(commit: dict) -> str:
    return hashlib.sha1(json.dumps([commit, time.time_ns()]).encode()).hexdigest()


def lfs_of(entry: dict) -> dict:
    return {"sha256": entry["sha256"], "oid": entry["sha256"], "size": entry["size"], "pointerSize": 134}


def describe(path: str, entry: dict) -> dict:
    lfs = {"lfs": lfs_of(entry)} if entry["lfs"] else {}
    return {"type": "file", "path": path, "oid": entry["git"], "size": entry["size"], **lfs}


def is_text(said: object, name: str) -> bool:
    return not isinstance(said, dict) or name not in said or isinstance(said[name], str)


def flip(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def refuse(status: int, message: str, code: str | None = None, headers: dict | None = None) -> Response:
    said = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
    return JSONResponse({"error": message}, status_code=status, headers=said)


class RunningHub:
    """A server that answers, and can be stopped and started anew at the same address with the same content."""

    def __init__(self, folder: Path):
        self.hub, self._uvicorn, self._thread = HubServer(folder), None, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.hub.address = self.address = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = uvicorn.Config(self.hub.app(), host="127.0.0.1", port=self.port, log_level="critical")
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run, daemon=True)
        self._thread.start()
        end = time.monotonic() + START_SECONDS
        while not self._uvicorn.started:
            if time.monotonic() > end:
                raise TimeoutError("The server does not start.")
            time.sleep(0.01)

    def stop(self) -> None:
        self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._thread.join()


@contextmanager
def running_hub(folder: Path) -> Iterator[RunningHub]:
    """A server that runs as long as this holds."""
    running = RunningHub(folder)
    running.start()
    try:
        yield running
    finally:
        running.stop()
