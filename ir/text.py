"""Whether the texts of a model can be read: protobuf hands over names that are not UTF-8 as bytes, or fails on them."""

from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message


def undecodable(message: Message, where: str = "model") -> str | None:
    """The place of a text in a message or below it that is not UTF-8; None where all can be read."""
    texts, parts = _fields(message.DESCRIPTOR)
    for field, many in texts:
        value = getattr(message, field)
        if any(isinstance(text, bytes) for text in (value if many else (value,))):
            return f"{where}.{field}"
    for field, many in parts:
        below = getattr(message, field) if many else [getattr(message, field)] if message.HasField(field) else ()
        for part in below:
            found = undecodable(part, f"{where}.{field}")
            if found is not None:
                return found
    return None


@cache
def _fields(descriptor: Descriptor) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """The text fields and the message fields of a message, with whether they are repeated: numbers are left alone."""
    fields: dict[int, list[tuple[str, bool]]] = {FieldDescriptor.TYPE_STRING: [], FieldDescriptor.TYPE_MESSAGE: []}
    for field in descriptor.fields:
        fields.setdefault(field.type, []).append((field.name, _repeated(field)))
    return fields[FieldDescriptor.TYPE_STRING], fields[FieldDescriptor.TYPE_MESSAGE]


def _repeated(field: Any) -> bool:
    """Whether a field is a list; protobuf 6 renamed what tells it."""
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)
