"""Makes a RunConfig from flags and recipes: argparse and YAML over the fields of the configuration.

A flag that is not given is absent from argparse's result, so that it does not override a recipe. The error for an
unknown flag or key suggests the nearest known one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, get_args, get_origin, get_type_hints

import ds_rag
from ds_rag.config import ALIASES, BUILTIN, OF_OWN_ROWS, OWNER, QUICKSTART, SECTIONS, RunConfig, build, find_file
from ds_rag.config.bounds import Bounds, Number
from ds_rag.config.contradictions import check_contrary
from ds_rag.config.recipe import read_recipe_lines
from ds_rag.runtime.errors import UserError, nearest

SAME = (("warmup_steps", "warmup_ratio"),)  # settings that say the same thing in two ways


def parse(argv: Sequence[str], prog: str = "ds-rag train") -> RunConfig:
    """The configuration that these arguments describe. Raises UserError; `--help` prints and exits."""
    parser = Parser(prog, "Train a retriever and a causal LM together.")
    add_training_flags(parser)
    return config_of(parse_strictly(parser, argv))


def add_training_flags(parser: Parser, own: Collection[str] | None = None) -> None:
    """Adds a flag for every setting, `--config` for a recipe, and the flag that launchers add to the command. own: as
    in `add_settings`."""
    add_settings(parser, own=own)
    parser.add_argument("--config", dest="recipe", default=argparse.SUPPRESS, help="a YAML recipe; flags override it")
    parser.add_argument("--local_rank", "--local-rank", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def config_of(known: argparse.Namespace) -> RunConfig:
    """The configuration from these flags and their recipe, checked. Raises UserError."""
    given = settings_of(known)
    recipe = read_recipe(known.recipe) if "recipe" in known else {}
    explicit = frozenset(recipe | given)  # the built-in recipe's own keys are defaults
    if (recipe | given).get("train_data", BUILTIN) == BUILTIN:
        if recipe and "train_data" not in recipe | given:
            raise UserError(
                f"--config {known.recipe}: no training data",
                expected="--train_data, as a flag or in the recipe",
            )
        check_builtin(recipe | given)
        below = read_recipe(QUICKSTART)
        if {"retriever", "generator"} & explicit:  # a run of the user's own models, which the next quickstart keeps
            del below["output_dir"]
        recipe = layered(below, recipe)
    config = build(layered(recipe, given), explicit, frozenset(given))
    check_contrary(config)
    return config


def layered(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The settings of both layers. Of two settings that say the same thing, one above takes the place of the other
    below."""
    taken = {other for one, other in (*SAME, *(pair[::-1] for pair in SAME)) if one in above}
    return {name: value for name, value in below.items() if name not in taken} | above


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings among a command's arguments that were given."""
    return {name: value for name, value in vars(args).items() if name in OWNER}


def check_builtin(given: dict[str, Any], fix: str = "--train_data FILE trains on your own rows") -> None:
    """Raises UserError for settings about the user's own rows in a run on the built-in rows."""
    if idle := [f"--{name} {given[name]}" for name in OF_OWN_ROWS if given.get(name) is not None]:
        raise UserError("these settings do not apply to the built-in rows", found=", ".join(idle), fix=fix)


def parse_strictly(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """`parser.parse_args`, but an unknown flag is a UserError that suggests the nearest known one."""
    optional = any(a.nargs == "?" and not a.option_strings for a in parser._actions)  # may also stand behind flags
    for_help = {"-h", "--help", "--version"} & set(argv)
    read = parser.parse_known_intermixed_args if optional and not for_help else parser.parse_known_args
    known, rest = read(list(argv))
    options = [o.removeprefix("--") for a in parser._actions for o in a.option_strings if o.startswith("--")]
    for word in rest:
        if word.startswith("-"):
            raise unknown_key(word.lstrip("-").split("=")[0].replace("-", "_"), "flag", options, "--")
        raise UserError("unexpected argument", found=word, expected="flags of the form --name value")
    return known


def read_recipe(path: str) -> dict[str, Any]:
    """Setting -> value from a YAML recipe, each checked against the type of its field. Raises UserError."""
    values: dict[str, Any] = {}
    for key, text in read_recipe_lines(find_file(path, "--config"), f"--config {path}").items():
        name = ALIASES.get(key, key)
        if name not in OWNER:
            raise unknown_key(key, f"key in {path}", [*OWNER, *ALIASES])
        if name in values:
            raise UserError(f"--config {path}: repeated key", found=f"{name} and {key}", expected="one of them")
        values[name] = convert(name, text, f"{path}: {key}")
    return values


def convert(name: str, value: str | float | None, where: str) -> Any:
    """`value`, text from a flag or a recipe (or a value from JSON), converted to the type of the field `name`. where:
    the place that a UserError names."""
    if value is not None and not isinstance(value, str):
        value = str(value).lower()
    section = SECTIONS[OWNER[name]]
    wanted = get_type_hints(section)[name]
    optional = type(None) in get_args(wanted)
    kind = next(a for a in get_args(wanted) if a is not type(None)) if get_origin(wanted) else wanted
    bounds = next(f for f in fields(section) if f.name == name).metadata["bounds"]
    if bounds is not None and value in bounds.also:  # a word in the place of a number
        return value
    if value is None or (optional and value in ("none", "null")):
        if optional:
            return None
        raise UserError(f"{where}: empty", expected=kind.__name__)
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[value.lower()]
        if kind is int and value != str(int(value)):
            raise ValueError
        if kind is float and ("_" in value or not value.isascii()):
            raise ValueError  # Python would accept it
        converted = kind(value)
        if kind is float and not math.isfinite(converted):
            raise ValueError
    except (ValueError, KeyError):
        raise UserError(f"{where}: wrong type", found=repr(value[:80]), expected=kind.__name__) from None
    choices = next(f for f in fields(section) if f.name == name).metadata["choices"]
    if choices and converted not in choices:
        close = nearest(str(converted), choices)
        raise UserError(
            f"{where}: unknown value",
            found=repr(value),
            expected=" | ".join(choices),
            fix=f"did you mean '{close}'?" if close else None,
        )
    return converted


def unknown_key(name: str, what: str, known: Iterable[str], dashes: str = "") -> UserError:
    close = nearest(name, known)
    return UserError(
        f"unknown {what}: {dashes}{name}",
        fix=f"did you mean {dashes}{close}?" if close else "see --help for the list",
    )


def as_text(word: str, where: str) -> str:
    """A text from the command line, decoded again as UTF-8 if the locale's encoding could not decode it (the C locale
    knows only ASCII). Not for paths: the system identifies them by their bytes. Raises UserError."""
    try:
        return word.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not valid text", found=error, expected="UTF-8, or a locale (LC_ALL) that fits the text"
        ) from None


def _from_flag(name: str, text: str) -> Any:
    is_text = name.endswith(("_prefix", "_template", "_column"))
    return convert(name, as_text(text, f"--{name}") if is_text else text, f"--{name}")


def add_number(
    parser: argparse._ActionsContainer, name: str, bounds: Bounds, text: str, default: float | None = None
) -> None:
    """Adds a numeric flag that is not a setting. text: its help."""
    parser.add_argument(f"--{name}", type=Number(name, bounds), default=default, help=text.replace("%", "%%"))


class Help(argparse.Action):
    """`--help` shows the main flags of a command; `--help all` also the other settings that it accepts."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if values != "all":
            parser.hide_settings()
        parser.print_help()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """The parser of a command: no abbreviated flag names, `--version`, and mistakes raise UserError."""

    def __init__(self, prog: str, description: str):
        look = partial(argparse.HelpFormatter, max_help_position=32)
        super().__init__(prog=prog, description=description, allow_abbrev=False, add_help=False, formatter_class=look)
        self.advanced: list[argparse.Action] = []  # shown only by `--help all`
        quiet: dict[str, Any] = {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "choices": ("all",)}
        self.add_argument(
            "-h", "--help", action=Help, nargs="?", help="show this and exit; all: show every flag", **quiet
        )
        self.add_argument("--version", action="version", version=f"ds_rag {ds_rag.__version__}")

    def error(self, message: str) -> Any:
        raise UserError(message, fix="see --help")

    def hide_settings(self) -> None:
        """Help on one screen: of the settings only the command's own, without their groups' introductions."""
        for action in self.advanced:
            action.help = argparse.SUPPRESS
        shown = [g for g in self._action_groups if any(a.help != argparse.SUPPRESS for a in g._group_actions)]
        for group in shown:
            group.description = None
            for action in group._group_actions:
                if action.help and action.help != argparse.SUPPRESS and action.dest in OWNER:
                    action.help, action.option_strings = brief(action.help), action.option_strings[:1]
        self._action_groups = shown
        needed = [a for a in self._actions if a.required and a.option_strings]
        words = [f"{a.option_strings[0]} {a.metavar or a.dest.upper()}" for a in needed]
        words += [f"[{a.dest}]" if a.nargs == "?" else a.dest for a in self._actions if not a.option_strings]
        self.usage = " ".join([self.prog, *words, "[flags]"])
        if self.advanced:
            self.epilog = f"{self.prog} --help all shows {len(self.advanced)} more flags, settings of ds-rag train."


def add_settings(
    parser: Parser,
    sections: Sequence[str] = tuple(SECTIONS),
    only: Collection[str] | None = None,
    own: Collection[str] | None = None,
) -> None:
    """Adds a flag for each setting of these sections. only: if given, just these settings. own: the settings that
    `--help` shows, the others are shown by `--help all`; None: all."""
    for section in sections:
        cls = SECTIONS[section]
        group = parser.add_argument_group(section, cls.__doc__)
        for f in fields(cls):
            if only is not None and f.name not in only:
                continue
            is_bool = get_type_hints(cls)[f.name] in (bool, bool | None)
            action = group.add_argument(
                *(f"--{n}" for n in (f.name, *f.metadata["aliases"])),
                dest=f.name,
                default=argparse.SUPPRESS,
                type=partial(_from_flag, f.name),
                nargs="?" if is_bool else None,
                const=True if is_bool else None,
                metavar="|".join(f.metadata["choices"] or ("true", "false") * is_bool) or f.name.split("_")[-1].upper(),
                help=(f.metadata["help"] + default_text(f.default)).replace("%", "%%"),
            )
            if own is not None and f.name not in own:
                parser.advanced.append(action)


def default_text(value: object) -> str:
    """What a setting's help says of its default; nothing where there is none."""
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f" (default: {shown})" if value is not None else ""


def brief(text: str) -> str:
    """A setting's help up to its first semicolon, with its default if that is short."""
    said, bracket, default = text.partition(" (default: ")
    return said.split(";")[0] + (bracket + default if len(default) < 14 else "")
