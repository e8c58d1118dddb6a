"""The private names of other libraries: all that are used are listed, and each is where it was."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
import transformers
import trl
from packaging.version import Version

from logramed.trainer.engines.upstream import ATTRIBUTES, METHODS


ROOT = Path(__file__).parents[3]
SOURCES = [
    path for folder in ("modeling_logramed", "trainer", "eval", "hub_cards") for path in ROOT.glob(f"{folder}/**/*.py")
]
ON_FIVE = pytest.mark.skipif(Version(transformers.__version__).major < 5, reason="training needs transformers 5")
# Classes that ours are made from, or whose objects ours handle.
UPSTREAM_CLASSES = (
    trl.SFTTrainer,
    transformers.PreTrainedModel,
    transformers.PreTrainedConfig if hasattr(transformers, "PreTrainedConfig") else transformers.PretrainedConfig,
    transformers.PreTrainedTokenizerBase,
    transformers.LlavaProcessor,
    transformers.image_processing_utils.BaseImageProcessor,
)
NOT_THEIRS = {"_replace", "_name"}  # a named tuple's, and a function of ours that happens to have such a name


def find(path):
    module, name = path.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return getattr(find(module), name)


@ON_FIVE
@pytest.mark.parametrize("path", METHODS)
def test_method_takes_what_it_took(path):
    parameters = [name for name in inspect.signature(find(path)).parameters if name != "self"]
    assert parameters == METHODS[path][1].split(), f"{path} has moved: see {METHODS[path][0]}"


@ON_FIVE
@pytest.mark.parametrize("name", [name for name, (module, *_) in ATTRIBUTES.items() if module])
def test_attribute_is_still_known_where_it_was(name):
    module, place, _ = ATTRIBUTES[name]
    source = inspect.getsource(importlib.import_module(module))
    assert re.search(rf"\b{name}\b", source), f"{module} knows no `{name}` any more: see {place}"


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(tree):
    """The private names that a file uses of anything, and those that it defines itself."""
    used, defined = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            used.add(node.attr)
            if isinstance(node.ctx, ast.Store):
                defined.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and is_private(node.name):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and is_private(node.id):
            defined.add(node.id)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            used |= {
                part.value for part in node.args if isinstance(part, ast.Constant) and is_private(str(part.value))
            }
    return used, defined


def names_of_upstream():
    names = set()
    for kind in UPSTREAM_CLASSES:
        names |= {name for name in dir(kind) if is_private(name)}
        for parent in kind.__mro__[:-1]:
            if parent.__module__.split(".")[0] in ("transformers", "trl"):
                names |= set(re.findall(r"\bself\.(_[a-z]\w*)", inspect.getsource(parent)))
    return names


def test_every_private_name_of_other_libraries_is_listed():
    used, defined, places = set(), set(), {}
    for path in SOURCES:
        uses, defines = private_names(ast.parse(path.read_text()))
        used, defined = used | uses, defined | defines
        places |= {name: path.relative_to(ROOT) for name in uses | defines}
    theirs = (used - defined) | ((used | defined) & names_of_upstream())
    listed = {path.rpartition(".")[2] for path in METHODS} | ATTRIBUTES.keys()
    missing = {name: str(places[name]) for name in theirs - listed - NOT_THEIRS}
    assert not missing, "add them to trainer/engines/upstream.py"


@pytest.mark.parametrize("name", [*METHODS, *ATTRIBUTES])
def test_listed_name_is_used_where_it_says(name):
    place = METHODS[name][0] if name in METHODS else ATTRIBUTES[name][1]
    assert re.search(rf"\b{name.rpartition('.')[2]}\b", (ROOT / place).read_text())
