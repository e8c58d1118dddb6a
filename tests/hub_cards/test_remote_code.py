"""The code that travels with a model: no network, files, processes or foreign imports but those listed here."""

import ast
import sys
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "modeling_logramed"
FILES = sorted(FOLDER.glob("*.py"))
# Packages that transformers itself needs to read images and to talk to the Hub.
IMPORTS = {"torch", "transformers", "numpy", "PIL", "huggingface_hub"}
STANDARD = set(sys.stdlib_module_names) - {
    *("subprocess", "socket", "ctypes", "pickle", "marshal", "shelve", "multiprocessing", "http", "ftplib", "smtplib"),
    *("telnetlib", "xmlrpc", "asyncio", "webbrowser", "pty", "importlib", "runpy", "code", "os", "signal"),
}
# (file, function): what it does that no other may, and when.
ALLOWED = {
    ("image_processing_logramed.py", "_read_bytes"): {"urllib"},  # an image whose address the user passes
    ("remote_code_logramed.py", "copy_code_files"): {"shutil", "mkdir"},  # in `save_pretrained`
    ("processing_logramed.py", "_write_json"): {"write_text"},  # in `save_pretrained`
    # All of these in `save_pretrained`, the last with `push_to_hub=True`.
    ("processing_logramed.py", "save_pretrained"): {"mkdir"},
    ("processing_logramed.py", "write_shared_tokenizer_config"): {"unlink"},
    ("processing_logramed.py", "_push_files"): {"HfApi", "create_repo", "upload_folder"},
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "open", "system", "popen", "Popen", "check_output", "spawn", "fork"),
    *("write_text", "write_bytes", "unlink", "rmdir", "rmtree", "mkdir", "symlink", "chmod"),
    *("urlopen", "urlretrieve", "Request", "HfApi", "hf_hub_download", "snapshot_download", "upload_folder"),
    *("create_repo", "upload_file", "torch_load", "loads_pickle"),
}
MODULES = {"urllib", "shutil"}  # whose every use is looked at


def uses(tree):
    """`(function, what)` for each call or module use that is looked at."""
    found = []

    def visit(node, function):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = root_of(node.func)
            if owner == "torch" and name in ("load", "save"):
                name = "torch_load"
            if owner in MODULES:
                found.append((function, owner))
            elif name in FORBIDDEN_CALLS and not (owner in ("re", "Image") and name in ("compile", "open")):
                found.append((function, name))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(tree, None)
    return found


def root_of(node):
    while isinstance(node, ast.Attribute):
        node = node.value
    return getattr(node, "id", None)


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_code_that_travels_imports_and_does_only_what_is_listed(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    stays = {"os"} if path.name == "__init__.py" else set()  # the one file that does not travel
    assert set(imports(tree)) - IMPORTS - STANDARD == stays
    surplus = [
        (function, what) for function, what in uses(tree) if what not in ALLOWED.get((path.name, function), set())
    ]
    assert surplus == []


def test_the_list_of_what_is_allowed_has_nothing_that_is_not_done():
    done = {
        (path.name, function): {what for name, what in uses(ast.parse(path.read_text())) if name == function}
        for path in FILES
        for function, _ in uses(ast.parse(path.read_text()))
    }
    assert done == ALLOWED


@pytest.mark.parametrize(
    "code",
    [
        "import subprocess",
        "import socket",
        "from requests import get",
        "def f():\n    open('x', 'w')",
        "def f(p):\n    p.write_text('x')",
        "import urllib.request\ndef f():\n    urllib.request.urlopen('x')",
        "import torch\ntorch.load('x')",
        "exec('x')",
    ],
)
def test_the_check_finds_what_it_looks_for(code):
    tree = ast.parse(code)
    assert set(imports(tree)) - IMPORTS - STANDARD or uses(tree)
