"""An experiment's settings: one model gives its YAML, its `--set key=value`, its options, and the config that is saved.

A field is `name: Annotated[int, Option("plan_name")] = Field(default=20, ge=1, description="...")`: the description is
the option's help, `Option` says what else the command line must know. What was given counts in the order command line,
environment, `--set`, file, default; a 0 was given, too. An error names the option or the key that brought the value.

A field may be a config itself: a mapping of the file, `--set group.key=value`, and `--group-key` for each setting in it.
"""

import difflib
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, Signature, signature
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, ValidationInfo
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from fvcore import exits, sizes
from fvcore.experiments.errors import StepError
from fvcore.formats import read_yaml, sentence, write_text, yaml_value
from fvcore.model.spec import ModelError


class ConfigError(ModelError):
    """A setting is unknown, missing, or not what it may be."""


class Option:
    """What the command line must know of a field beside its name, type, default and description.

    aliases: other spellings, of options, keys and `--set` alike; no help shows them     env: an environment variable
    alone: the value of an option that is given without one     positional: the field is an argument
    flag: the option's own name, where it is not that of the field
    """

    def __init__(
        self,
        *aliases: str,
        env: str | None = None,
        alone: str = "",
        positional: bool = False,
        metavar: str | None = None,
        flag: str = "",
    ) -> None:
        self.aliases, self.env, self.alone, self.positional = aliases, env, alone, positional
        self.metavar, self.flag = metavar, flag


class Config(BaseModel):
    """Strict: no text for a number, no number for a truth value, no unknown key, no number that is not finite.

    moved: other places of a setting or a group, which win where both are given: `{"phase2.model": "model"}`
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)
    moved: ClassVar[Mapping[str, str]] = {}

    def require_possible(self) -> None:
        """Raise for what can be told to be wrong before anything heavy is imported."""

    def text(self) -> str:
        """The config as YAML, every key with what it means; read again it is the same."""
        return "\n".join(self._entries())

    def _entries(self) -> Iterator[str]:
        import yaml

        for name, value in self.model_dump(mode="json").items():
            description = type(self).model_fields[name].description
            if isinstance(group := getattr(self, name), Config):
                entry = f"{yaml.safe_dump(name).splitlines()[0]}:\n{indent(''.join(group._entries()), '  ')}"
            else:
                entry = yaml.safe_dump({name: value}, default_flow_style=False, allow_unicode=True, width=1000)
            yield f"# {description}\n{entry}" if description else entry


SomeConfig = TypeVar("SomeConfig", bound=Config)

MOST_NUMBERS = 100_000
"""That ranges in one option stand for: layers, heads, positions."""


def numbers(value: Any) -> Any:
    """`0,2,5-7` -> 0, 2, 5, 6, 7; a list of a file as it is."""
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", value.replace(" ", "")):
        raise ValueError("expected numbers and ranges such as 0,2,5-7")
    ends = [[int(end) for end in part.split("-")] for part in value.replace(" ", "").split(",")]
    ranges = [range(pair[0], pair[-1] + 1) for pair in ends]
    if (n := sum(max(0, one.stop - one.start) for one in ranges)) > MOST_NUMBERS:
        raise ValueError(f"expected at most {MOST_NUMBERS} numbers, these are {n}")
    return tuple(number for one in ranges for number in one)


def words(value: Any) -> Any:
    """`Q3, Q5` -> Q3, Q5; a list of a file as it is."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return tuple(value) if isinstance(value, list) else value


def layer_or_all(value: Any) -> Any:
    if isinstance(value, str) and value != "all" and not value.isdecimal():
        raise ValueError("expected a layer's number or all")
    return int(value) if isinstance(value, str) and value != "all" else value


def memory(value: Any, info: ValidationInfo) -> Any:
    """`8GiB` in bytes; a number says no unit, and is one of the code's own."""
    return value if value is None or (info.mode == "python" and isinstance(value, int)) else sizes.n_bytes(value)


Memory = Annotated[int, BeforeValidator(memory), PlainSerializer(sizes.exact, return_type=str, when_used="json")]
Numbers = Annotated[tuple[int, ...], BeforeValidator(numbers)]
Words = Annotated[tuple[str, ...], BeforeValidator(words)]
LayerOrAll = Annotated[int | Literal["all"], BeforeValidator(layer_or_all)]


def resolve(
    kind: type[SomeConfig], given: Mapping[str, Any], file: Path | None = None, sets: Sequence[str] = ()
) -> SomeConfig:
    """The config of options (by field; None is not given), `key=value` texts and a YAML file.

    Raises ConfigError that names the option, the key or the file, and for an unknown key the one that was meant.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    of_file = read_yaml(file) if file else {}
    if not isinstance(of_file or {}, dict):
        raise ConfigError(f"{file}: expected a mapping of settings, found {type(of_file).__name__}")
    for layer, origin in (
        (of_file or {}, f"{file}: "),
        *((one, "--set ") for one in _of_sets(sets)),
    ):
        found = dict(_settings(kind, layer, origin))
        values |= found
        origins |= {name: f"{origin}{name}" for name in found}
    options = {name: value for name, value in given.items() if value is not None}
    values |= options
    origins |= {name: _flag(kind, name) for name in options}
    try:
        # As JSON a list may be a tuple, and a text a path; all else is as strict as before.
        return kind.model_validate_json(json.dumps(_nested(values), default=str))
    except ValidationError as error:
        raise ConfigError(sentence(error, named=lambda path: _origin(kind, origins, path))) from None


def _origin(kind: type[Config], origins: Mapping[str, str], path: str) -> str:
    """What brought the value at a key's path; of one that nothing brought, the option."""
    name = next((name for name in leaves(kind) if f"{path}.".startswith(f"{name}.")), "")
    return origins.get(name, _flag(kind, name) if name else path) + path.removeprefix(name)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` -> `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        branch = tree
        for group in groups:
            branch = branch.setdefault(group, {})
        branch[last] = value
    return tree


def dotted(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": 1}}` -> `a.b`, 1."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _of_sets(sets: Sequence[str]) -> Iterator[dict[str, Any]]:
    """`key=value` or `group.key=value`, the value as YAML reads it."""
    import yaml

    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r}: expected key=value, such as --set seed=1")
        try:
            yield _nested({key.strip(): yaml_value(value)})
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"--set {text!r}: {exits.in_one_line(error)}") from None


def _settings(kind: type[Config], layer: Mapping[Any, Any], origin: str) -> list[tuple[str, Any]]:
    """The settings of a mapping by dotted name, moved ones last."""
    found = _walk(kind, kind, layer, origin, "")
    return [(name, value) for name, value, _ in sorted(found, key=itemgetter(2))]


def _walk(
    root: type[Config], kind: type[Config], layer: Mapping[Any, Any], origin: str, above: str
) -> Iterator[tuple[str, Any, bool]]:
    for key, value in layer.items():
        name = _name_of(root, kind, key, origin, above)
        found = _field(root, name)
        if (group := _group(found)) is None:
            yield name, value, not name.startswith(above)
        elif not isinstance(value, Mapping):
            raise ConfigError(f"{origin}{name}: expected a mapping of settings, found {type(value).__name__}")
        else:
            for inside, one, moved in _walk(root, group, value, origin, f"{name}."):
                yield inside, one, moved or not name.startswith(above)


def _name_of(root: type[Config], kind: type[Config], key: Any, origin: str, above: str) -> str:
    """The setting or group that a key means; raises ConfigError for one that is none, with the one it looks most like."""
    # YAML takes the words on and off for truth values.
    word = ("on" if key else "off") if isinstance(key, bool) else str(key)
    plain = word.replace("-", "_")
    known = {name: above + name for name in kind.model_fields}
    known |= {old.removeprefix(above): new for old, new in root.moved.items() if old.rpartition(".")[0] == above[:-1]}
    if not above:
        known |= {alias: name for name in leaves(root) for alias in _option(root, name).aliases}
    if plain in known:
        return known[plain]
    near = [known[name] for name in difflib.get_close_matches(plain, known, n=1)]
    near += [name for name in leaves(root) if name.rpartition(".")[2] == plain]
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(kind.model_fields)}"
    raise ConfigError(f"{origin}{above}{word}: unknown setting; {hint}")


def leaves(kind: type[Config], above: str = "") -> dict[str, FieldInfo]:
    """Every setting by its dotted name, those of groups in their place."""
    found: dict[str, FieldInfo] = {}
    for name, field in kind.model_fields.items():
        group = _group(field)
        found |= {above + name: field} if group is None else leaves(group, f"{above}{name}.")
    return found


def _group(field: FieldInfo) -> type[Config] | None:
    """The config that a field is, if it is one."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Config) else None


def _field(kind: type[Config], name: str) -> FieldInfo:
    """The field of a dotted name."""
    first, _, rest = name.partition(".")
    field = kind.model_fields[first]
    group = _group(field)
    return field if group is None or not rest else _field(group, rest)


def _option(kind: type[Config], name: str) -> Option:
    return next((one for one in _field(kind, name).metadata if isinstance(one, Option)), Option())


Json = Annotated[bool, Option(flag="json")]
PRINTED = Field(default=False, exclude=True, description="Print JSON, and nothing else.")
"""What a command has that prints a table: `as_json: Json = PRINTED`, which is none of its settings."""

File = Annotated[Path | None, typer.Option("--config", help="YAML file of these settings.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting, again and again.")]
Write = Annotated[Path | None, typer.Option("--write-config", help="Write the settings to this file, and end.")]


def add_command(
    app: typer.Typer,
    name: str,
    kind: type[SomeConfig],
    work: Callable[[SomeConfig], None],
    help: str | None = None,
    fixed: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    default: Path | None = None,
) -> None:
    """Give `app` a command that resolves a config and does `work` with it.

    fixed: what the command itself says, and offers no option for     only: the settings it offers (default: all)
    default: the file that is read where none is given
    """

    def called(config_file: File = None, sets: Sets = None, write_config: Write = None, **given: Any) -> None:
        chosen = {name.replace("__", "."): value for name, value in given.items() if value != []}
        config = resolve(kind, chosen | dict(fixed or {}), config_file or default, sets or ())
        if write_config is not None:
            _write(write_config, config)
            return
        # An unusable setting, file or model is told by `fvcore.cli.main`, as it may come up before there is any work.
        if not only:
            config.require_possible()
        try:
            work(config)
        except typer.Exit:  # which is a RuntimeError, too
            raise
        except KeyboardInterrupt:
            exits.say("interrupted; started again, it goes on where it stands")
            raise typer.Exit(exits.INTERRUPTED) from None
        except (StepError, RuntimeError) as error:  # torch says a wrong shape, and we a silent hook, by RuntimeError
            exits.say(str(error))
            raise typer.Exit(error.status if isinstance(error, StepError) else exits.FAILED) from None

    # typer reads options off a function's signature; a parameter's name holds no dot.
    more = [
        Parameter(name.replace(".", "__"), Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(kind, name))
        for name in only or leaves(kind)
        if name not in (fixed or {})
    ]
    own = list(signature(called, eval_str=True).parameters.values())[:-1]
    called.__signature__ = Signature([*(one.replace(kind=Parameter.KEYWORD_ONLY) for one in [*more, *own])])  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in [*more, *own]}
    app.command(name, cls=type("_Spelled", (_Spelled,), {"kind": kind}), help=help or work.__doc__)(called)


def experiment(
    kind: type[SomeConfig],
    run: Callable[[SomeConfig], None],
    help: str,
    aliases: Mapping[str, tuple[Mapping[str, Any], str]],
) -> typer.Typer:
    """The commands of an experiment: `run`, and by other names what it does with some settings fixed.

    The experiment itself can be asked for its config: `fvcore <experiment> --write-config FILE`.
    """
    app = typer.Typer(help=help)
    for name, (fixed, said) in ({"run": ({}, run.__doc__ or "")} | dict(aliases)).items():
        add_command(app, name, kind, run, said, fixed)

    @app.callback(invoke_without_command=True)
    def _group(context: typer.Context, write_config: Write = None) -> None:
        if write_config is not None:
            _write(write_config, resolve(kind, {}))
        elif context.invoked_subcommand is None:
            typer.echo(context.get_help())
            raise typer.Exit(exits.USAGE)

    return app


def _write(path: Path, config: Config) -> None:
    write_text(path, config.text())
    exits.note(f"wrote {path}")


class _Spelled(TyperCommand):
    """Options in any spelling: underscores for hyphens, the aliases of fields, and a value left out that may be."""

    kind: type[Config] = Config

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._words(args)))

    def _words(self, args: Sequence[str]) -> Iterator[str]:
        options = {name: (_flag(self.kind, name), _option(self.kind, name)) for name in leaves(self.kind)}
        alone = {flag: option.alone for flag, option in options.values()}
        spellings = {
            prefix + _hyphens(spelling): prefix + flag.removeprefix("--")
            for name, (flag, option) in options.items()
            for spelling in (name, flag.removeprefix("--"), *option.aliases)
            for prefix in ("--", "--no-")
        }
        for word, following in pairwise([*args, "--"]):
            name, equals, value = word.partition("=")
            name = spellings.get(name.replace("_", "-"), name) if name.startswith("--") else name
            yield name + equals + value
            if alone.get(word) and following.startswith("-"):
                yield alone[word]


def _flag(kind: type[Config], name: str) -> str:
    return f"--{_hyphens(_option(kind, name).flag or name)}"


def _hyphens(name: str) -> str:
    return name.replace("_", "-").replace(".", "-")


def _annotation(kind: type[Config], name: str) -> Any:
    """The field as typer takes it: a plain type, and an Option with help, default and environment variable."""
    field, option = _field(kind, name), _option(kind, name)
    plain = _plain(field.annotation)
    shown = "" if field.is_required() else _shown(field.get_default(call_default_factory=True))
    help = " ".join(filter(None, [field.description, f"(default: {shown})" if shown else ""]))
    more: dict[str, Any] = {"help": help, "metavar": option.metavar}
    if option.positional:
        return Annotated[plain | None, typer.Argument(**more)]
    flag = _flag(kind, name)
    if plain is bool:
        flag += f"/--no-{flag.removeprefix('--')}"
    return Annotated[plain | None, typer.Option(flag, envvar=option.env, **more)]


def _plain(annotation: Any) -> Any:
    """bool, int, float, Path or a list of texts; what is written in any other way is a text."""
    options = [one for one in get_args(annotation) if one is not types.NoneType]
    if get_origin(annotation) in (Union, types.UnionType) and len(options) == 1:
        return _plain(options[0])
    if get_origin(annotation) is Annotated:
        text = any(isinstance(one, BeforeValidator) for one in annotation.__metadata__)
        return str if text else _plain(options[0])
    if get_origin(annotation) is list:
        return list[str]
    return annotation if annotation in (bool, int, float, Path) else str


def _shown(default: Any) -> str:
    """A default as one would write it; nothing where there is none, and where a flag's two names say it."""
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return "" if default is None or isinstance(default, bool) else str(default)
