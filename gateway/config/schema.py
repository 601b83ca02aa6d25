"""Owns how settings types read a document, and the JSON Schema that tells editors the same.

Its rule: both follow from the types alone; a key that no type names is a fault, and all faults are found at once.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from gateway.address import Address
from gateway.config.document import Faults, Node, is_ambiguous, resolve
from gateway.errors import find_near, nearest
from gateway.files import read_whole, why_unreadable
from gateway.model.policy import Octets, Seconds, SecondsRange, decode_custom, encode_custom

_OF_A_SETTING = re.compile(r"(\w+)(?:\[(\d+)\])?(?:: | (?=must ))")
FAILED = object()
"""What stands for a value that could not be read; its faults are noted."""

Reader = Callable[[Node, str], Any]
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "nothing"}
_CUSTOM: dict[type, tuple[list[str], str]] = {
    Seconds: (["number", "string"], "A duration: seconds, or text such as 500ms, 30s, 5m, 1h30m"),
    SecondsRange: (["number", "string"], "Two durations: 1s..1m; one alone stands for both"),
    Octets: (["integer", "string"], "A size: bytes, or text such as 64KB, 10MB, 2GB"),
    Address: (["integer", "string"], "An address to listen on: 127.0.0.1:1883, [::1]:1883, :1883 (all interfaces)"),
}


def _split(kind: Any) -> tuple[list[Any], list[msgspec.Meta]]:
    """The members of a union (one, if it is none) and what Annotated says of it."""
    if get_origin(kind) is Annotated:
        inner, *notes = get_args(kind)
        return _split(inner)[0], [note for note in notes if isinstance(note, msgspec.Meta)]
    if get_origin(kind) in (Union, types.UnionType):
        return list(get_args(kind)), []
    return [kind], []


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _is_text(kind: Any) -> bool:
    return str in _split(kind)[0]


def describe(kind: Any) -> str:
    """What a value of this type is, in the words of an error message."""
    members, notes = _split(kind)
    if len(members) > 1:
        return " or ".join(describe(member) for member in members if member is not type(None))
    (member,) = members
    if get_origin(member) is Literal:
        return "one of " + ", ".join(str(value) for value in get_args(member))
    if _is_struct(member) or get_origin(member) is dict:
        return "keys and values"
    if get_origin(member) in (list, tuple):
        return "a list"
    words = _NAMES.get(member, getattr(member, "__name__", str(member)))
    for note in notes:
        words += "" if note.ge is None else f" >= {note.ge}"
        words += "" if note.le is None else f" and <= {note.le}" if note.ge is not None else f" <= {note.le}"
    return words


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def _stand_in(kind: Any) -> Any:
    """What stands where a setting without a default could not be read; whoever checks asks the node first."""
    members, _ = _split(kind)
    return "" if str in members else FAILED


class Decoder:
    """Reads nodes into values of a type. `special` reads the types it names by a function of its own.

    What can be read is read whatever stands beside it: a Struct has its default where a value of it failed, and its
    node says so (`Node.unread`), so that the rest of it can be checked, too."""

    def __init__(self, faults: Faults, folder: Path, special: Mapping[Any, Reader] | None = None) -> None:
        self.faults = faults
        self.folder = folder
        self.special = special or {}

    def decode(self, node: Node, kind: Any, key: str) -> Any:
        """The value, or FAILED after noting why."""
        if node.faulty:
            return FAILED
        members, _ = _split(kind)
        for member in (kind, *members):
            if member in self.special:
                return self.special[member](node, key)
        value = node.value
        if value is None and type(None) in members:
            return None
        for member in members:
            origin = get_origin(member)
            if _is_struct(member) and (isinstance(value, dict) or value is None):
                return self.struct(node, member, key)
            if origin is dict and (isinstance(value, dict) or value is None):
                inner = get_args(member)[1]
                items = {name: self.decode(item, inner, f"{key}.{name}") for name, item in (value or {}).items()}
                return {name: item for name, item in items.items() if item is not FAILED}
            if origin in (list, tuple) and isinstance(value, list):
                inner = get_args(member)[0]
                found = [self.decode(item, inner, f"{key}[{n}]") for n, item in enumerate(value)]
                # A list that lacks an item is another list: nothing is checked of it.
                return FAILED if any(item is FAILED for item in found) else origin(found)
            if origin in (list, tuple) and value is None:
                return origin()
        return self._leaf(node, kind, key)

    def struct(self, node: Node, kind: type[msgspec.Struct], key: str) -> Any:
        """A Struct; null is an empty mapping. `NAME_file` reads a text field NAME from a file beside the config."""
        given = node.value if isinstance(node.value, dict) else {}
        if not given and node.value not in (None, {}):
            return self._wrong(node, kind, key)
        fields = _fields(kind)
        values: dict[str, Any] = {}
        for name, item in given.items():
            path = f"{key}.{name}" if key else name
            secret = name.removesuffix("_file")
            if field := fields.get(name):
                value = self.decode(item, field.type, path)
            elif secret != name and secret in fields and _is_text(fields[secret].type):
                if secret in given:
                    self.faults.add(item.line, path, f"give either {secret} or {name}")
                field, value = fields[secret], self._secret(item, path)
            else:
                self.faults.add(item.line, path, f"unknown key{nearest(name, fields, 'keys')}")
                # Which this is meant to be, unless that is there as well.
                node.unread.update(near for near in find_near(name, fields) if near not in given)
                continue
            if value is FAILED:
                node.unread.add(field.encode_name)
            else:
                values[field.name] = value
        for field in fields.values():
            if field.required and field.name not in values:
                if field.encode_name not in node.unread:
                    self.faults.add(node.line, key, f'missing key "{field.encode_name}"')
                node.unread.add(field.encode_name)
                values[field.name] = _stand_in(field.type)
        if any(value is FAILED for value in values.values()):
            return FAILED
        return self._make(node, kind, key, values, fields)

    def _make(
        self, node: Node, kind: type[msgspec.Struct], key: str, values: dict[str, Any], fields: Mapping[str, Any]
    ) -> Any:
        try:
            return kind(**values)
        except (ValueError, TypeError) as error:  # what a `__post_init__` says
            if not node.unread:
                self._refused(node, key, str(error), fields)
            return FAILED

    def _refused(self, node: Node, key: str, text: str, fields: Mapping[str, Any]) -> None:
        """Notes it of the setting that it begins with: `url: expected ...`, `subscribe[1]: ...`, `ttl must ...`."""
        found = _OF_A_SETTING.match(text)
        if found is None or found[1] not in fields:
            self.faults.add(node.line, key, text)
            return
        place = node.child(found[1])
        path = f"{key}.{found[1]}" if key else found[1]
        if found[2] is not None:
            path += f"[{found[2]}]"
            if isinstance(place.value, list) and int(found[2]) < len(place.value):
                place = place.value[int(found[2])]
        self.faults.add(place.line, path, text[found.end() :])

    def _secret(self, node: Node, key: str) -> Any:
        if not isinstance(node.value, str):
            return self._wrong(node, str, key)
        path = self.folder / node.value
        try:
            return read_whole(path).rstrip("\r\n")
        except (OSError, ValueError) as error:
            self.faults.add(node.line, key, f"{path} cannot be read: {why_unreadable(error)}")
            return FAILED

    def _leaf(self, node: Node, kind: Any, key: str) -> Any:
        if is_ambiguous(node.value) and not _is_text(kind):
            digits = str(node.value).lstrip("+-").lstrip("0") or "0"
            text = f"{node.value} is octal to some and decimal to others; write {digits}, or 0x... for another base"
            self.faults.add(node.line, key, text)
            return FAILED
        try:
            return msgspec.convert(node.plain(), kind, dec_hook=decode_custom)
        except msgspec.ValidationError as error:
            # A secret of digits from the environment is still text, and "${PORT}" in quotes still a number: there
            # the quotes belong to the place, as in {port: "${PORT}"}, and not to the value.
            other = node.text if _is_text(kind) or node.text is None else resolve(node.text)
            if node.text is None or (other == node.value and type(other) is type(node.value)):
                return self._wrong(node, kind, key, error)
            return self._leaf(Node(node.line, other), kind, key)

    def _wrong(self, node: Node, kind: Any, key: str, error: Exception | None = None) -> Any:
        value = node.value
        members = [member for member in _split(kind)[0] if member is not type(None)]
        scalar = not isinstance(value, (dict, list))
        if error is not None and scalar and isinstance(error.__cause__, ValueError):
            self.faults.add(node.line, key, str(error.__cause__))
            return FAILED
        choices = [str(c) for m in members if get_origin(m) is Literal for c in get_args(m)]
        # A value meant as text may be a secret; any other is shown.
        if not scalar:
            got = "a list" if isinstance(value, list) else "keys and values"
            if isinstance(value, dict) and any(str in _split(member)[0] for member in members):
                names = ", ".join(value)
                # `{topic}` and `{body.id}` without quotes are mappings to YAML.
                if len(value) == 1 and value[names].value is None:
                    got += f'; a template is put in quotes, "{{{names}}}"'
        elif _is_text(kind):
            got = _NAMES[type(value)] + ("; put it in quotes" if value is not None else "")
        else:
            got = "nothing" if value is None else f'"{value}"' if isinstance(value, str) else str(value)
        near = nearest(value, choices) if isinstance(value, str) and choices else ""
        near = near if near.startswith("; did") else ""
        self.faults.add(node.line, key, f"expected {describe(kind)}, got {got}{near}")
        return FAILED


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Address) else encode_custom(value)


class SchemaWriter:
    """Makes JSON Schema (2020-12) for settings types. `special` names what stands for a type of its own."""

    def __init__(self, special: Mapping[Any, dict[str, Any]] | None = None) -> None:
        self.special = special or {}
        self.definitions: dict[str, Any] = {}

    def schema(self, kind: Any) -> dict[str, Any]:
        members, notes = _split(kind)
        for member in members:
            if member in self.special:
                return self.special[member]
        if len(members) > 1:
            return {"anyOf": [self.schema(member) for member in members]}
        (member,) = members
        origin = get_origin(member)
        if member is type(None):
            return {"type": "null"}
        if member in _CUSTOM:
            return {"type": _CUSTOM[member][0], "description": _CUSTOM[member][1]}
        if origin is Literal:
            return {"enum": list(get_args(member))}
        if origin is dict:
            return {"type": ["object", "null"], "additionalProperties": self.schema(get_args(member)[1])}
        if origin in (list, tuple):
            return {"type": ["array", "null"], "items": self.schema(get_args(member)[0])}
        if _is_struct(member):
            return self._struct(member)
        if member is str:
            return {"type": "string"}
        kinds = {int: "integer", float: "number", bool: "boolean"}
        if member not in kinds:
            return {}
        leaf: dict[str, Any] = {"type": kinds[member]}
        for note in notes:
            leaf |= {"minimum": note.ge} if note.ge is not None else {}
            leaf |= {"maximum": note.le} if note.le is not None else {}
        return {"anyOf": [leaf, {"type": "string", "pattern": r"\$\{"}]}

    def _struct(self, kind: type[msgspec.Struct]) -> dict[str, Any]:
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name not in self.definitions:
            self.definitions[name] = {}  # a type that holds itself ends here
            self.definitions[name] = self.object(kind)
        return {"$ref": f"#/$defs/{name}"}

    def object(self, kind: type[msgspec.Struct]) -> dict[str, Any]:
        """The schema of a Struct itself, without a reference."""
        properties: dict[str, Any] = {}
        required: list[dict[str, Any]] = []
        for field in msgspec.structs.fields(kind):
            entry = dict(self.schema(field.type))
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            if default is not msgspec.NODEFAULT and default is not None:
                # As JSON has it: a range of durations is a list there.
                entry["default"] = msgspec.json.decode(msgspec.json.encode(default, enc_hook=_plain))
            properties[field.encode_name] = entry
            if field.required:
                names = (
                    [field.encode_name, f"{field.encode_name}_file"] if _is_text(field.type) else [field.encode_name]
                )
                required.append({"anyOf": [{"required": [name]} for name in names]})
        made: dict[str, Any] = {"type": ["object", "null"] if not required else "object", "properties": properties}
        made["additionalProperties"] = False
        if any(_is_text(field.type) for field in msgspec.structs.fields(kind)):
            made["patternProperties"] = {"_file$": {"type": "string"}}
        if required:
            made["allOf"] = required
        if kind.__doc__:
            made["description"] = kind.__doc__.strip()
        return made
