"""Indexes of messages in the errors of model servers.

The servers count the gateway's own messages, too.
"""

import re

from gateway.domain.errors import ModelRequestRefused
from gateway.llm.chat_body import list_client_indexes
from gateway.ports.model import ModelCall

_MESSAGE_PATH = re.compile(r"\bmessages(\.\[|\[|\.)(\d{1,6})(\]?)")


def name_client_messages(error: ModelRequestRefused, call: ModelCall) -> ModelRequestRefused:
    """Return the error with the client's names of messages.

    A message that is not the client's loses its index.
    """
    if type(error) is not ModelRequestRefused or not _MESSAGE_PATH.search(error.message):
        return error
    indexes = list_client_indexes(call)
    named: list[str] = []

    def replace_index(path: re.Match[str]) -> str:
        sent = int(path[2])
        index = indexes[sent] if sent < len(indexes) else None
        if index is None:
            return "messages"
        name = call.message_paths[index] if index < len(call.message_paths) else f"messages.{index}"
        named.append(name)
        list_name, _, number = name.rpartition(".")
        return f"{list_name}{path[1]}{number}{path[3]}" if list_name else name

    message = _MESSAGE_PATH.sub(replace_index, error.message)
    return ModelRequestRefused(message, param=named[0] if named else error.param)
