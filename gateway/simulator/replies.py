"""Replies of the simulated model, and what they depend on."""

from collections.abc import Callable

import msgspec

from gateway.domain.messages import JsonObject
from gateway.simulator.request import Chat, get_text, has_result_images


class SimulatedCall(msgspec.Struct):
    """A tool call.

    `arguments` is a string only if a fault makes it invalid.
    """

    name: str
    arguments: JsonObject | str


class Reply(msgspec.Struct):
    """The next message: calls or a text, after `reasoning`."""

    text: str = ""
    calls: list[SimulatedCall] = msgspec.field(default_factory=list[SimulatedCall])
    reasoning: str = ""


class PromptContext:
    """The parts of a conversation that responders use."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.prompt = chat.last_user_text
        own = (i for i, m in enumerate(chat.messages) if m["role"] == "user" and not has_result_images(m))
        last_user = max(own, default=-1)
        self.results = [get_text(m) for m in chat.messages[last_user + 1 :] if m["role"] == "tool"]
        self.earlier = [get_text(m) for m in chat.messages[:last_user] if m["role"] == "user"]

    def find_tool(self, name: str) -> str | None:
        """Return the available tool with this name, with or without a prefix."""
        if self.chat.tool_choice == "none":
            return None
        return next((tool for tool in self.chat.functions if tool == name or tool.endswith(f"_{name}")), None)

    def run_calls(self, calls: list[SimulatedCall], finish: Callable[[list[str]], str]) -> Reply:
        """Make the calls, then reply with `finish`.

        The calls are made one per step or all at once, as the model supports.
        """
        done = len(self.results)
        if done < len(calls):
            return Reply(calls=calls[done:] if self.chat.allows_many_calls else calls[done : done + 1])
        return Reply(finish(self.results))


Responder = Callable[[PromptContext], Reply | None]
