"""The house: who may know what. Each rule is read off the source, so that a wall cannot be moved unseen."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
from pathlib import Path

from fvcore.model.spec import ALIASES, MODEL_SPECS
from tests.late import RUNNING

ROOT = Path(__file__).parents[1]
PACKAGES = ("fvcore", "pytest_fvparity")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
# Every family and alias of the table, without the numbers of versions: qwen, gpt_neox, command-r, opt.
FAMILY_NAMES = sorted({re.split(r"[\d.]|_text", name)[0].strip("-_") for name in (*MODEL_SPECS, *ALIASES)})


def _imports(name: str, tree: ast.AST) -> set[str]:
    """Our own modules a file imports, wherever the import stands; type-checking imports do not run."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for child in ast.walk(node):
                child.skip = True  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if getattr(node, "skip", False):
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        found |= {n for n in names if n in MODULES and n != name}
    return found


# Faults bring a foreign candidate's own hooks, and say which families have the part that they break.
FAULTS = {name for name in MODULES if name.startswith("pytest_fvparity.selftest.")}

if RUNNING:  # collection reads none of it
    ARROWS = {name: _imports(name, ast.parse(path.read_text())) for name, path in MODULES.items()}


@functools.cache
def _code(path: Path) -> str:
    """The source without docstrings and comments, in lower case."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = ""
    return ast.unparse(tree).lower()


def test_fvcore_never_imports_the_plugin() -> None:
    back = {name: sorted(a for a in arrows if a.startswith("pytest_fvparity")) for name, arrows in ARROWS.items()}

    assert not {name for name, arrows in back.items() if name.startswith("fvcore") and arrows}


def test_there_are_no_import_cycles() -> None:
    # An import inside a function runs later and closes no cycle at load time, but the rule is for those too.
    graphlib.TopologicalSorter(ARROWS).prepare()  # raises with the names of a cycle


BASE = (
    "gates",
    "escapes",
    "palette",
    "maps",
    "page",
    "formats",
    "names",
    "artifacts",
    "compare",
    "profile",
    "provenance",
    "exits",
    "sizes",
    "terminal",
    "shipped",
)
STATIONS = ("slots", "activations", "effects", "heads", "vectors", "injection")
FLOORS = (
    BASE,
    ("embedded", "model"),
    ("trials", "prompts"),
    (*STATIONS, "fast"),
    ("pipeline", "decoding", "plots"),
    ("experiments",),
    ("cli",),
)
"""What stands in fvcore on each floor, prompts with the trials that hold their words. A room imports from no floor above."""

SHOPS = {"antonym", "relation", "evaluation", "select_kv", "sae"}
PUBLIC_FACES = {"pytest_fvparity.cli", "pytest_fvparity.plugin", "pytest_fvparity.fixtures"}
MOST_ARROWS = 15


def _floor(name: str) -> int:
    part = name.split(".")[1] if "." in name else name
    return next((at for at, parts in enumerate(FLOORS) if part in parts), -1)


def test_every_room_of_fvcore_stands_above_what_it_imports() -> None:
    # What is made of embedded models, and what it takes to train one, is told by all stations; where they lie, by nothing.
    makers = {name for name in MODULES if name.startswith("fvcore.embedded.")}
    faces = {"fvcore", "fvcore.__main__"}
    rooms = {name for name in MODULES if name.startswith("fvcore")} - makers - faces

    assert not {name for name in rooms if _floor(name) < 0}
    assert not {
        (name, arrow) for name in rooms for arrow in ARROWS[name] - faces - makers if _floor(arrow) > _floor(name)
    }


def test_no_experiment_imports_another() -> None:
    def experiment(name: str) -> str:
        room = name.removeprefix("fvcore.experiments").strip(".").split(".")[0]
        folder = MODULES[name].parent.name
        return room if name.startswith("fvcore.experiments") and folder != "experiments" else ""

    others = {
        (name, arrow) for name, arrows in ARROWS.items() for arrow in arrows if experiment(name) and experiment(arrow)
    }
    assert not {(a, b) for a, b in others if experiment(b) in SHOPS and experiment(a) != experiment(b)}
    assert not {(a, b) for a, b in others if experiment(a) == "steps" and experiment(b) != "steps"}
    # The shared rooms know no experiment at all.
    shared = {name for name, path in MODULES.items() if path.parent.name == "experiments"}
    assert not {(name, arrow) for name in shared for arrow in ARROWS[name] if experiment(arrow)}


def test_the_antonym_milestones_never_look_at_relation_outputs() -> None:
    """By what they import, directly or not: nothing in M0 to M6 knows where a relation run lies or how it is read."""
    antonym = [name for name in MODULES if name.startswith("pytest_fvparity.milestones.m") and "m7" not in name]
    assert len(antonym) == 7
    reached: set[str] = set()
    waiting = list(antonym)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += ARROWS[name]
    assert not {name for name in reached if ".relation" in name or "pytest_fvparity.transfer" in name}

    for name in antonym:
        words = {
            node.attr for node in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(node, ast.Attribute)
        }
        assert "relation_root" not in words, name
    seven = ARROWS["pytest_fvparity.milestones.m7_transfer"]
    assert any(name.startswith("pytest_fvparity.transfer") for name in seven)


def test_what_compares_and_records_knows_nobody_who_uses_it() -> None:
    def room(name: str) -> str:
        return name.removeprefix("pytest_fvparity.").split(".")[0]

    below, above = (
        {"parity", "golden", "reference", "report", "suite"},
        {"milestones", "transfer", "selectkv", "audit", "selftest"},
    )
    assert not {(a, b) for a, arrows in ARROWS.items() for b in arrows if room(a) in below and room(b) in above}


def test_the_library_names_no_option_of_the_plugin() -> None:
    assert not {name for name, path in MODULES.items() if name.startswith("fvcore") and "--fv-" in path.read_text()}


def test_no_room_has_more_others_to_import_than_one_can_keep_in_mind() -> None:
    rooms = {
        name: {arrow for arrow in arrows if MODULES[arrow].name != "__init__.py"} for name, arrows in ARROWS.items()
    }
    many = {name: len(arrows) for name, arrows in rooms.items() if len(arrows) > MOST_ARROWS}

    assert not {name: n for name, n in many.items() if name not in PUBLIC_FACES}


def test_the_adapter_of_suites_knows_none_of_them() -> None:
    adapter = {name for name in MODULES if name.startswith("pytest_fvparity.suite.")}
    known = set().union(*(ARROWS[name] for name in adapter))

    others = {"pytest_fvparity.options", "pytest_fvparity.runners", "pytest_fvparity.report"}
    others |= {f"pytest_fvparity.report.{name}" for name in ("junit", "markdown")}  # which know no suite either
    base = {"fvcore", "fvcore.gates", "fvcore.formats", "fvcore.escapes"}
    assert known - adapter <= base | {"pytest_fvparity", "pytest_fvparity.suite", *others}
    code = "".join(_code(MODULES[name]) for name in adapter).replace("fvparity", "")
    assert not {word for word in ("parity", "transfer", "check_keys", "model", "trials") if word in code}


def test_torch_hooks_live_in_hooks_alone() -> None:
    users = {name for name, path in MODULES.items() if "register_forward" in path.read_text()}

    # The reference's stand-in for baukit is a hook of the reference's process, not of ours; the adapter on plain hooks
    # is a candidate, worth something because it does not use ours.
    others = {"pytest_fvparity.reference.driver", "pytest_fvparity.candidates.adapters.torch_hooks"}
    assert users - FAULTS == {"fvcore.model.hooks", *others}


def _families_in(code: str) -> set[str]:
    """Families named in some code, as words of their own: `opt` stands in no `options`."""
    return {name for name in FAMILY_NAMES if re.search(rf"(?<![a-z]){re.escape(name)}(?![a-z])", code)}


# The names of things that exist: these files alone, these names alone.
NAMED = {
    "fvcore.experiments.sae.config": {"llama"},  # a format of autoencoders
    "fvcore.experiments.sae.loaders": {"llama"},  # the same format
    "fvcore.trials.fixed": {"gpt"},  # the default tokenizer of the trials' format
    "fvcore.shipped": {"gpt", "llama"},  # the shipped models' trials
    "pytest_fvparity.selftest.faults.effects": {"gpt", "llama"},  # paths that mislead the reference
}
ROOMS_OF_FAMILIES = {"fvcore.model.spec", "pytest_fvparity.reference.checkout"}


def test_no_model_family_is_named_outside_its_rooms() -> None:
    named = {
        name: found
        for name, path in MODULES.items()
        if name not in ROOMS_OF_FAMILIES
        and not name.startswith("fvcore.embedded")
        and (found := _families_in(_code(path)))
    }

    assert named == NAMED


def test_a_family_is_found_wherever_it_is_named() -> None:
    assert {"opt", "phi", "llama", "gpt", "gpt_neox", "qwen", "gemma", "bloom", "pythia", "command-r"} <= set(
        FAMILY_NAMES
    )
    assert _families_in("if model_type == 'opt': ...") == {"opt"}
    assert _families_in("x = 'facebook/opt-6.7b'") == {"opt"}
    assert _families_in("self.qwen2_layers, 'gemma3_text'") == {"qwen", "gemma"}
    assert _families_in("options, optional, graphic, sophia, falcons, blooming") == set()


def test_only_formats_writes_files() -> None:
    writers = {
        name
        for name, path in MODULES.items()
        if ".write_text(" in (text := path.read_text()) or ".write_bytes(" in text
    }

    # What is exchanged with another process lies in a scratch folder, gone when the process is.
    exchange = {
        "pytest_fvparity.reference.reference",
        "pytest_fvparity.candidates.candidates",
        "pytest_fvparity.candidates.driver",
    }
    # The kernel is told to forget a process's largest size by a word in a file of its own.
    assert writers - FAULTS <= {"fvcore.formats", "fvcore.model.memory"} | exchange


def test_no_code_from_elsewhere_is_trusted() -> None:
    """Where nothing is said of it the library asks standard input."""
    loads = 0
    for name, path in MODULES.items():
        code = _code(path)
        assert code.count("trust_remote_code") == code.count("trust_remote_code=false"), name
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "from_pretrained":
                assert "trust_remote_code" in {keyword.arg for keyword in node.keywords}, name
                loads += 1
        assert "pickle" not in code, name
        if "torch.load(" in code:
            assert "weights_only=true" in code, name
    assert loads >= 5


def test_every_file_opens_with_its_idea() -> None:
    silent = [
        name
        for name, path in MODULES.items()
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]

    assert silent == ["fvcore.__main__"]
