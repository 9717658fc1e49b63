"""An experiment's settings: one model gives its YAML, its `--set key=value`, its options, and the config that is saved.

A field is `name: Annotated[int, Option("plan_name")] = Field(default=20, ge=1, description="...")`: the description is
the option's help, `Option` says what else the command line must know. What was given counts in the order command line,
environment, `--set`, file, default; a 0 was given, too. An error names the option or the key that brought the value.
"""

import difflib
import json
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter, Signature, signature
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from typer.core import TyperCommand

from fvcore import exits
from fvcore.experiments.errors import StepError
from fvcore.formats import read_yaml, sentence, write_text
from fvcore.model.spec import ModelError


class ConfigError(ModelError):
    """A setting is unknown, missing, or not what it may be."""


class Option:
    """What the command line must know of a field beside its name, type, default and description.

    aliases: other spellings, of options, keys and `--set` alike; no help shows them     env: an environment variable
    alone: the value of an option that is given without one     positional: the field is an argument
    """

    def __init__(
        self,
        *aliases: str,
        env: str | None = None,
        alone: str = "",
        positional: bool = False,
        metavar: str | None = None,
    ) -> None:
        self.aliases, self.env, self.alone, self.positional = aliases, env, alone, positional
        self.metavar = metavar


class Config(BaseModel):
    """Strict: no text for a number, no number for a truth value, no unknown key, no number that is not finite."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def text(self) -> str:
        """The config as YAML, every key with what it means; read again it is the same."""
        import yaml

        parts = []
        for name, value in self.model_dump(mode="json").items():
            description = type(self).model_fields[name].description
            entry = yaml.safe_dump({name: value}, default_flow_style=False, allow_unicode=True, width=1000)
            parts.append(f"# {description}\n{entry}" if description else entry)
        return "\n".join(parts)


SomeConfig = TypeVar("SomeConfig", bound=Config)


def numbers(value: Any) -> Any:
    """`0,2,5-7` -> 0, 2, 5, 6, 7; a list of a file as it is."""
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", value.replace(" ", "")):
        raise ValueError("expected numbers and ranges such as 0,2,5-7")
    ranges = [part.split("-") for part in value.replace(" ", "").split(",")]
    return tuple(number for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1))


def words(value: Any) -> Any:
    """`Q3, Q5` -> Q3, Q5; a list of a file as it is."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    return tuple(value) if isinstance(value, list) else value


def layer_or_all(value: Any) -> Any:
    if isinstance(value, str) and value != "all" and not value.isdecimal():
        raise ValueError("expected a layer's number or all")
    return int(value) if isinstance(value, str) and value != "all" else value


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
    of_file = read_yaml(file) or {} if file else {}
    if not isinstance(of_file, dict):
        raise ConfigError(f"{file}: expected a mapping of settings, found {type(of_file).__name__}")
    origins = {name: f"--{_hyphens(name)}" for name in kind.model_fields}
    for layer, origin in ((of_file, f"{file}: "), (_of_sets(sets), "--set ")):
        for key, value in layer.items():
            name = _name_of(kind, key, origin)
            values[name], origins[name] = value, f"{origin}{name}"
    options = {name: value for name, value in given.items() if value is not None}
    values |= options
    origins |= {name: f"--{_hyphens(name)}" for name in options}
    try:
        # As JSON a list may be a tuple, and a text a path; all else is as strict as before.
        return kind.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        # What brought the value at a key's path; of one that nothing brought, the option.
        raise ConfigError(
            sentence(error, named=lambda path: re.sub("^[^.]*", lambda of: origins[of[0]], path))
        ) from None


def _of_sets(sets: Sequence[str]) -> dict[str, Any]:
    """`key=value`, the value as YAML reads it."""
    import yaml

    found = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r}: expected key=value, such as --set seed=1")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {text!r}: {' '.join(str(error).split())}") from None
    return found


def _name_of(kind: type[Config], key: Any, origin: str) -> str:
    """The field that a key means; raises ConfigError for one that is none, with the one that looks most like it."""
    known = {spelling: name for name in kind.model_fields for spelling in (name, *_option(kind, name).aliases)}
    if (plain := str(key).replace("-", "_")) in known:
        return known[plain]
    near = difflib.get_close_matches(plain, known, n=1)
    hint = f"did you mean {known[near[0]]!r}?" if near else f"expected one of {', '.join(kind.model_fields)}"
    raise ConfigError(f"{origin}{key}: unknown setting; {hint}")


def _option(kind: type[Config], name: str) -> Option:
    return next((one for one in kind.model_fields[name].metadata if isinstance(one, Option)), Option())


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
) -> None:
    """Give `app` a command that resolves a config and does `work` with it.

    fixed: what the command itself says, and offers no option for     only: the fields it offers (default: all)
    """

    def called(config_file: File = None, sets: Sets = None, write_config: Write = None, **given: Any) -> None:
        chosen = {name: value for name, value in given.items() if value != []}
        config = resolve(kind, chosen | dict(fixed or {}), config_file, sets or ())
        if write_config is not None:
            _write(write_config, config)
            return
        # An unusable setting, file or model is told by `fvcore.cli.main`, as it may come up before there is any work.
        try:
            work(config)
        except KeyboardInterrupt:
            exits.say("interrupted; started again, it goes on where it stands")
            raise typer.Exit(exits.INTERRUPTED) from None
        except (StepError, RuntimeError) as error:  # torch says a wrong shape, and we a silent hook, by RuntimeError
            exits.say(str(error))
            raise typer.Exit(error.status if isinstance(error, StepError) else exits.FAILED) from None

    # typer reads options off a function's signature.
    offered = [field for field in only or kind.model_fields if field not in (fixed or {})]
    more = [Parameter(one, Parameter.KEYWORD_ONLY, default=None, annotation=_annotation(kind, one)) for one in offered]
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
    typer.echo(f"wrote {path}")


class _Spelled(TyperCommand):
    """Options in any spelling: underscores for hyphens, the aliases of fields, and a value left out that may be."""

    kind: type[Config] = Config

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._words(args)))

    def _words(self, args: Sequence[str]) -> Iterator[str]:
        spellings = {
            prefix + _hyphens(spelling): prefix + _hyphens(name)
            for name in self.kind.model_fields
            for spelling in (name, *_option(self.kind, name).aliases)
            for prefix in ("--", "--no-")
        }
        alone = {f"--{_hyphens(name)}": _option(self.kind, name).alone for name in self.kind.model_fields}
        for word, following in pairwise([*args, "--"]):
            name, equals, value = word.partition("=")
            name = spellings.get(name.replace("_", "-"), name) if name.startswith("--") else name
            yield name + equals + value
            if alone.get(word) and following.startswith("-"):
                yield alone[word]


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


def _annotation(kind: type[Config], name: str) -> Any:
    """The field as typer takes it: a plain type, and an Option with help, default and environment variable."""
    field, option, plain = kind.model_fields[name], _option(kind, name), _plain(kind.model_fields[name].annotation)
    shown = "" if field.is_required() else _shown(field.get_default(call_default_factory=True))
    help = " ".join(filter(None, [field.description, f"(default: {shown})" if shown else ""]))
    more: dict[str, Any] = {"help": help, "metavar": option.metavar}
    if option.positional:
        return Annotated[plain | None, typer.Argument(**more)]
    flag = f"--{_hyphens(name)}/--no-{_hyphens(name)}" if plain is bool else f"--{_hyphens(name)}"
    return Annotated[plain | None, typer.Option(flag, envvar=option.env, **more)]


def _plain(annotation: Any) -> Any:
    """bool, int, float, Path or a list of texts; what is written in any other way is a text."""
    options = [one for one in get_args(annotation) if one is not types.NoneType]
    if get_origin(annotation) in (Union, types.UnionType) and len(options) == 1:
        return _plain(options[0])
    if get_origin(annotation) is Annotated:
        return _plain(options[0])
    if get_origin(annotation) is list:
        return list[str]
    return annotation if annotation in (bool, int, float, Path) else str


def _shown(default: Any) -> str:
    """A default as one would write it; nothing where there is none, and where a flag's two names say it."""
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return "" if default is None or isinstance(default, bool) else str(default)
