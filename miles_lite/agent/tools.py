"""Tool schemas: what the model is told of a tool, what it may pass, and the script that a call becomes.

Invariant: a `Tool` that exists can be run; a value that a model wrote reaches a script only as the quoted text of a
variable, never as a part of the script.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable

from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import Json, JsonMapping, JsonObject, is_unicode
from miles_lite.process.user_code import load_named
from miles_lite.sandboxes.shell import assignments

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHELLS_OWN = frozenset(
    """_ CDPATH COLUMNS COPROC DIRSTACK ENV EPOCHREALTIME EPOCHSECONDS EUID EXECIGNORE FUNCNAME FUNCNEST GLOBIGNORE
    GLOBSORT GROUPS HOME HOSTNAME HOSTTYPE IFS LANG LINENO LINES MACHTYPE MAILCHECK MAPFILE OLDPWD OPTARG OPTERR OPTIND
    OSTYPE PATH PIPESTATUS POSIXLY_CORRECT PPID PS4 PWD RANDOM READLINE_LINE REPLY SECONDS SHELL SHELLOPTS SHLVL
    SRANDOM TIMEFORMAT TMOUT TMPDIR UID""".split()
)
MAX_DEPTH = 64
"""How deeply the arguments of a call may be nested."""
_SHELLS_PREFIXES = ("BASH", "COMP_", "LC_", "LD_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One tool. Exactly one of `template` (bash) and `handler` is set.

    `parameters` is a JSON schema of type object; `exec_args` are the arguments that the template sees as variables.
    """

    name: str
    description: str
    parameters: JsonMapping
    exec_args: tuple[str, ...]
    template: str | None = None
    handler: Callable[..., Any] | None = None

    @property
    def required(self) -> list[str]:
        return list(self.parameters.get("required", ()))

    def line(self) -> str:
        """`- read_file(path: string, start?: integer) Read a file`: required ones in their order, then the others."""
        properties = self.parameters.get("properties", {})
        optional = sorted(set(properties) - set(self.required))
        names = [(name, "") for name in self.required] + [(name, "?") for name in optional]
        shown = ", ".join(f"{name}{mark}: {_type(properties.get(name, {}))}" for name, mark in names)
        return f"- {self.name}({shown}) {' '.join(self.description.split())}".rstrip()

    def openai(self) -> JsonObject:
        """The tool as OpenAI's chat API and chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def problem(self, arguments: Json) -> str | None:
        """What is wrong with a call's arguments, in words for the model; None when nothing is."""
        if text := _bad_text(arguments):
            return text
        kind = jsonschema.validators.validator_for(self.parameters, jsonschema.Draft202012Validator)
        validator = kind(self.parameters, registry=Registry())  # an empty one: no reference is fetched
        try:
            error = jsonschema.exceptions.best_match(validator.iter_errors(arguments))
        except Unresolvable as unknown:
            return f"the tool's own schema cannot be used: {unknown}"
        return None if error is None else f"{error.json_path}: {error.message[:500]}"

    def script(self, arguments: JsonMapping) -> str:
        """The arguments as variables, then the template. An argument that is not a string is its JSON text; one that
        is absent stays unset."""
        assert self.template is not None
        given = [name for name in self.exec_args if name in arguments]
        return f"{assignments({name: _shell_text(arguments[name]) for name in given})}{self.template}\n"


def load_tools(path: Path | str) -> list[Tool]:
    """The tools of a JSON file: `{"tools": [...]}` or a list. Raises UserError naming file, tool and field."""
    with user_error(f"--tools: cannot read {path}", OSError), user_error(f"--tools: {path} is not JSON", ValueError):
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    return parse_tools(data, where=str(path))


def parse_tools(data: Json, *, where: str = "tools") -> list[Tool]:
    """Tools from OpenAI's JSON, with `_exec`, `_exec_args` or `_handler` (a callable or "module:name", "file.py:name")
    beside the name. Raises UserError."""
    entries = data.get("tools") if isinstance(data, dict) else data
    if not isinstance(entries, list):
        raise UserError(f'{where}: expected {{"tools": [...]}} or a list of tools')
    tools = [_tool(entry, f"{where}: tool {number}") for number, entry in enumerate(entries, 1)]
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: two tools are called {name}; rename one")
    return tools


def _tool(entry: Json, where: str) -> Tool:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not an object")
    function = entry["function"] if isinstance(entry.get("function"), dict) else entry
    fields = {**entry, **function}
    name = fields.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"{where}: its name is {name!r}, but must match [A-Za-z_][A-Za-z0-9_]*")
    where = f"{where} ({name})"
    parameters = _parameters(fields.get("parameters") or {"type": "object", "properties": {}}, where)
    template, handler = fields.get("_exec"), fields.get("_handler")
    if (template is None) == (handler is None):
        raise UserError(f"{where}: give either _exec (a bash template) or _handler (a Python callable)")
    if template is not None and (not isinstance(template, str) or "\0" in template):
        raise UserError(f"{where}: _exec must be the text of a bash script")
    return Tool(
        name=name,
        description=str(fields.get("description") or ""),
        parameters=parameters,
        exec_args=() if template is None else _exec_args(fields.get("_exec_args"), parameters, where),
        template=template,
        handler=handler
        if handler is None or callable(handler)
        else load_named(str(handler), given_as=f"{where}: cannot load _handler"),
    )


def _parameters(schema: Json, where: str) -> JsonObject:
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise UserError(f"{where}: parameters must be a JSON schema of type object")
    try:
        jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator).check_schema(schema)
    except jsonschema.SchemaError as error:
        raise UserError(f"{where}: parameters is no valid JSON schema: {error.json_path}: {error.message}") from error
    for argument in [*schema.get("properties", {}), *schema.get("required", ())]:
        if not _NAME.fullmatch(argument):
            raise UserError(f"{where}: argument {argument!r} must match [A-Za-z_][A-Za-z0-9_]*")
    return {"type": "object", **schema}


def _exec_args(given: Json, schema: JsonMapping, where: str) -> tuple[str, ...]:
    properties = schema.get("properties", {})
    names = sorted(properties) if given is None else given
    if not isinstance(names, list) or not all(name in properties for name in names):
        raise UserError(f"{where}: _exec_args must be a list of names out of {sorted(properties)}")
    for name in names:
        if name in _SHELLS_OWN or name.startswith(_SHELLS_PREFIXES):
            raise UserError(f"{where}: argument {name} is a variable of the shell itself; rename it")
    return tuple(names)


def _type(schema: Json) -> str:
    kind = schema.get("type", "any") if isinstance(schema, dict) else "any"
    return kind if isinstance(kind, str) else "|".join(kind)


def _shell_text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _bad_text(value: Json) -> str | None:
    """Why strings in `value` fit in no shell variable or UTF-8 text."""
    waiting: list[tuple[Json, str, int]] = [(value, "$", 0)]
    while waiting:
        item, path, depth = waiting.pop()
        if depth > MAX_DEPTH:
            return f"$: nested deeper than {MAX_DEPTH}"
        if isinstance(item, str) and "\0" in item:
            return f"{path}: the text holds a NUL character"
        if isinstance(item, str) and not is_unicode(item):
            return f"{path}: the text holds half of a surrogate pair"
        if isinstance(item, dict):
            waiting += [(part, f"{path}.{name}", depth + 1) for name, part in item.items() if is_unicode(name)]
            waiting += [(name, f"a name in {path}", depth + 1) for name in item]
        elif isinstance(item, list):
            waiting += [(part, f"{path}[{index}]", depth + 1) for index, part in enumerate(item)]
    return None
