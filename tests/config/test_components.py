"""Building what a class path names: every kind of target, every mistake."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from kdcache.config import build, build_model, fingerprint_function
from kdcache.errors import UsageError

MODULE = """
from __future__ import annotations

import enum
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

if typing.TYPE_CHECKING:
    from nowhere import Thing


class Colour(enum.Enum):
    RED = 1


class Inner(nn.Module):
    def __init__(self, n: int = 1):
        super().__init__()
        self.n = n


class Typed:
    def __init__(
        self,
        width: int = 1,
        rate: float = 0.1,
        name: str = "",
        root: Path = Path("."),
        sizes: tuple[int, ...] = (),
        kind: Literal["a", "b"] = "a",
        colour: Colour = Colour.RED,
        flag: bool = False,
        maybe: int | None = None,
        untold: int = None,
        either: int | str = 0,
        thing: Thing | None = None,
        layer: nn.Module | None = None,
        layers: list[nn.Module] = (),
        options: dict[str, Any] | None = None,
        activation: type[nn.Module] = nn.ReLU,
    ):
        self.given = {k: v for k, v in locals().items() if k != "self"}


class Untyped:
    def __init__(self, items, keys=None, get=None):
        self.given = {"items": items, "keys": keys, "get": get}


class Open:
    def __init__(self, first, *rest, **others):
        self.given = {"first": first, **others}


@dataclass
class Record:
    width: int
    root: Path = Path(".")


class Outer:
    class Nested:
        given = "nested"

    def __init__(self, n: int):
        self.given = n

    @classmethod
    def make(cls, n: int = 3):
        return cls(n * 10)

    @staticmethod
    def static(n: int):
        return Outer(n * 100)


def function(a: int, b: float = 2):
    return Outer((a, b))


def after(params, lr: float, momentum=0.0):
    return Outer((params, lr, momentum))


not_callable = 5
"""


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    (folder / "components_module.py").write_text(MODULE)
    (folder / "imports_missing.py").write_text("import not_installed_at_all\n")
    (folder / "imports_absent_name.py").write_text("from pathlib import Nothing\n")
    (folder / "raises.py").write_text("raise RuntimeError('boom')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield
    sys.modules.pop("components_module", None)


def make(name, /, *given, **arguments):
    component = {"class_path": f"components_module.{name}"}
    if arguments:
        component["init_args"] = arguments
    return build(component, "student", *given)


INNER = {"class_path": "components_module.Inner", "init_args": {"n": 7}}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("width", 3, 3),
        ("rate", 1, 1.0),
        ("rate", 1e-3, 1e-3),
        ("name", "5", "5"),
        ("name", "null", "null"),
        ("root", "a/b", Path("a/b")),
        ("sizes", [1, 2], (1, 2)),
        ("kind", "b", "b"),
        ("flag", True, True),
        ("maybe", None, None),
        ("maybe", 4, 4),
        ("untold", None, None),
        ("either", "5", "5"),
        ("either", 5, 5),
        ("thing", 5, 5),
        ("options", {"a": {"class_path": "x.Y"}, "b": "5"}, {"a": {"class_path": "x.Y"}, "b": "5"}),
        ("options", INNER, INNER),
    ],
)
def test_values_as_annotated(name, value, expected):
    found = make("Typed", **{name: value}).given[name]
    assert found == expected
    assert type(found) is type(expected)


def test_enums_and_classes_by_name():
    assert make("Typed", colour="RED").given["colour"].name == "RED"
    assert make("Typed", activation="torch.nn.GELU").given["activation"].__name__ == "GELU"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", "wide"),
        ("width", 1.5),
        ("width", True),
        ("width", None),
        ("rate", "fast"),
        ("name", 5),
        ("flag", "perhaps"),
        ("kind", "c"),
        ("colour", "BLUE"),
        ("sizes", ["a"]),
        ("layer", 5),
        ("options", [1]),
    ],
)
def test_values_of_another_type(name, value):
    with pytest.raises(UsageError, match=f"^student.{name} should be .*, not ") as caught:
        make("Typed", **{name: value})
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sections_below_are_built():
    for name, value in (("layer", INNER), ("layers", [INNER, INNER])):
        found = make("Typed", **{name: value}).given[name]
        assert [one.n for one in (found if isinstance(found, list) else [found])] in ([7], [7, 7])
    untyped = make("Untyped", items={"a": [INNER, 5]}, keys=INNER, get="5").given
    assert untyped["items"]["a"][0].n == 7
    assert untyped["items"]["a"][1] == 5
    assert untyped["keys"].n == 7
    assert untyped["get"] == "5"


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("function", {"a": 1}, (1, 2)),
        ("Outer.make", {}, 30),
        ("Outer.make", {"n": 4}, 40),
        ("Outer.static", {"n": 4}, 400),
        ("Outer.Nested", {}, "nested"),
        ("Open", {"first": 1, "width": "wide"}, {"first": 1, "width": "wide"}),
        ("Open", {"first": INNER["class_path"]}, {"first": INNER["class_path"]}),
    ],
)
def test_targets_of_every_kind(name, arguments, expected):
    assert make(name, **arguments).given == expected


def test_dataclasses_and_builtins():
    assert make("Record", width=2, root="x").root == Path("x")
    assert build({"class_path": "builtins.dict", "init_args": {"a": 1}}, "x") == {"a": 1}
    assert (
        build(
            {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}},
            "x",
        ).out_features
        == 3
    )


def test_a_models_weights_are_loaded(tmp_path):
    layer = torch.nn.Linear(2, 3)
    torch.save(layer.state_dict(), tmp_path / "w.pt")
    sizes = {"in_features": 2, "out_features": 3}
    section = {"class_path": "torch.nn.Linear", "init_args": sizes}
    made = build_model({**section, "weights": str(tmp_path / "w.pt")}, "student")
    assert torch.equal(made.weight, layer.weight)
    assert not torch.equal(build_model(section, "student").weight, layer.weight)
    with pytest.raises(UsageError, match=r"unknown key 'student\.layer\.weights'"):
        build({**section, "weights": "w.pt"}, "student.layer")


def test_arguments_of_the_caller_come_first():
    assert make("after", ["p"], lr=1).given == (["p"], 1.0, 0.0)
    with pytest.raises(UsageError, match="takes no 'params'"):
        make("after", ["p"], lr=1, params=2)


@pytest.mark.parametrize(
    ("component", "match"),
    [
        (
            {"class_path": "components_module.Typed", "init_args": {"widht": 1}},
            "student: components_module.Typed takes no 'widht'. Did you mean 'width'",
        ),
        (
            {"class_path": "components_module.function"},
            "components_module.function needs 'a'; set student.a",
        ),
        ({"class_path": "components_module.Open", "init_args": {"x": 1}}, "needs 'first'"),
        ({"class_path": "components_module.Typde"}, "has no 'Typde'. Did you mean 'Typed'"),
        ({"class_path": "components_module.Outer.mak"}, "has no 'mak'. Did you mean 'make'"),
        (
            {"class_path": "components_modul.Typed"},
            r"no module 'components_modul'.*Did you mean 'components_module'\?.*current folder",
        ),
        ({"class_path": "components_module"}, "is no class path"),
        ({"class_path": "components_module."}, "is no class path"),
        ({"class_path": "a b.c"}, "is no class path"),
        ({"class_path": "components_module.not_callable"}, "cannot be called"),
        ({"class_path": "components_module.not_callable.real.x"}, "has no 'x'"),
        (
            {"class_path": "components_module.Typed", "init_arg": {}},
            "unknown key 'student.init_arg'",
        ),
        (
            {"class_path": "imports_missing.Net"},
            "importing 'imports_missing' failed: No module named 'not_installed_at_all'",
        ),
        ({"class_path": "imports_absent_name.Net"}, "failed: cannot import name 'Nothing'"),
        (
            {
                "class_path": "components_module.Typed",
                "init_args": {"layer": {"class_path": "components_module.Innr"}},
            },
            "student.layer: 'components_module' has no 'Innr'. Did you mean 'Inner'",
        ),
        (
            {
                "class_path": "components_module.Untyped",
                "init_args": {"items": {"class_path": "components_module.Inner", "args": 1}},
            },
            "unknown key 'student.items.args'",
        ),
    ],
)
def test_mistakes_say_what_is_near(component, match):
    with pytest.raises(UsageError, match=match) as caught:
        build(component, "student")
    assert "\n" not in str(caught.value)


def test_an_error_of_the_users_module_is_its_own():
    with pytest.raises(RuntimeError, match="boom"):
        build({"class_path": "raises.Net"}, "student")


def test_fingerprint_functions():
    assert fingerprint_function("inputs") is None
    assert fingerprint_function("components_module.function").__name__ == "function"
    with pytest.raises(UsageError, match=r"dump\.fingerprint.*cannot be called"):
        fingerprint_function("components_module.not_callable")
