"""Owns the look at files that the settings name, for `gateway check`: the daemon itself reads them when it needs them.

Its rule: a section of settings that names files says itself what is wrong with them.
"""

from __future__ import annotations

import msgspec

from gateway.config.document import Faults, Node
from gateway.files import NamesFiles


def look(section: object, node: Node, place: str, now: float, faults: Faults, warnings: Faults) -> None:
    """Of that section and all in it; `place` are the keys that lead there, with dots."""
    if isinstance(section, NamesFiles) and not node.unread:  # else it would look at what nobody wrote
        for finding in section.look_at_files(now):
            into = faults if finding.fatal else warnings
            into.add(node.child(finding.key).line, f"{place}.{finding.key}", finding.text)
    if isinstance(section, msgspec.Struct):
        for field in msgspec.structs.fields(section):
            inner = getattr(section, field.name)
            if isinstance(inner, msgspec.Struct):
                key = field.encode_name
                look(inner, node.child(key), f"{place}.{key}", now, faults, warnings)
