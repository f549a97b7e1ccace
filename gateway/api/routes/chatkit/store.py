"""ChatKit's store over conversations and turns.

Items are read from the turns' events, so what ChatKit itself saves is not stored again.
"""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

from chatkit.store import NotFoundError, Store, StoreItemType
from chatkit.types import Attachment, ClientToolCallItem, Page, ThreadItem, ThreadMetadata
from fastapi import Request
from pydantic import TypeAdapter

from gateway.agent.service import TurnService
from gateway.api.routes.native.conversations import cancel_and_delete
from gateway.api.turn_folding import fold_stored_events
from gateway.common.pages import MAX_PAGE_BYTES
from gateway.domain.errors import InvalidRequest, NotFound
from gateway.domain.messages import JsonObject, Principal, ToolSpec
from gateway.store.conversations import ConversationStore
from gateway.store.lists.tasks import TaskListStore
from gateway.store.lists.turn_contents import TurnContentStore, find_followed, select_branch
from gateway.store.models import Conversation, Turn
from gateway.store.turns import TurnStore
from gateway.wire.a2a.messages import MessageOptions
from gateway.wire.chatkit.items import CALL_ECHO_KEY, ECHO_KEY, ItemHead, ItemWriter, parse_item_turn

T = TypeVar("T")
MAX_PAGE_ITEMS = 100
_ITEM: TypeAdapter[Any] = TypeAdapter(ThreadItem)


class RequestContext(NamedTuple):
    """The request that ChatKit's classes pass on."""

    request: Request
    principal: Principal
    options: MessageOptions
    client_tools: tuple[ToolSpec, ...] = ()


class ThreadStore(Store[RequestContext]):
    """Threads of one caller."""

    def __init__(self, request: Request, principal: Principal) -> None:
        state = request.app.state
        self._principal = principal
        self._service: TurnService = state.turn_service
        self._turns: TurnStore = state.turns
        self._conversations: ConversationStore = state.conversations
        self._contents: TurnContentStore = state.turn_contents
        self._lists: TaskListStore = state.task_lists
        self.answered_call: ClientToolCallItem | None = None

    def generate_thread_id(self, context: RequestContext) -> str:
        return f"thr_{uuid4().hex}"

    def generate_item_id(self, item_type: StoreItemType, thread: ThreadMetadata, context: RequestContext) -> str:
        return f"{item_type}-{uuid4().hex}"

    # --- threads

    async def load_thread(self, thread_id: str, context: RequestContext) -> ThreadMetadata:
        return _to_thread(await self.get_thread_conversation(thread_id))

    async def save_thread(self, thread: ThreadMetadata, context: RequestContext) -> None:
        """Create a thread's conversation, or rename it."""
        try:
            conversation = await self.get_thread_conversation(thread.id)
        except NotFoundError:
            conversation = await self._conversations.create_conversation(self._principal, {}, external_id=thread.id)
        if thread.title is not None and thread.title != conversation.title:
            await self._conversations.rename_conversation(conversation.id, thread.title)

    async def load_threads(
        self, limit: int, after: str | None, order: str, context: RequestContext
    ) -> Page[ThreadMetadata]:
        limit = _limit_page(limit)
        before = None if after is None else (await self.get_thread_conversation(after)).id
        found = await self._conversations.list_conversations(
            self._principal, limit=limit + 1, before=before, ascending=order == "asc"
        )
        threads = [_to_thread(conversation) for conversation in found[:limit]]
        return _build_page(threads, has_more=len(found) > limit)

    async def delete_thread(self, thread_id: str, context: RequestContext) -> None:
        conversation = await self.get_thread_conversation(thread_id)
        await cancel_and_delete(str(conversation.id), self._principal, self._conversations, self._service)

    async def get_thread_conversation(self, thread_id: str) -> Conversation:
        """Return the conversation of a thread.

        Raises:
            NotFoundError: the caller has no such thread.
        """
        try:
            return await self._conversations.get_conversation(thread_id, self._principal)
        except (NotFound, InvalidRequest, ValueError):
            raise NotFoundError("thread") from None

    # --- items

    async def load_thread_items(
        self, thread_id: str, after: str | None, limit: int, order: str, context: RequestContext
    ) -> Page[ThreadItem]:
        """Read items of the branch that the next message follows.

        A page may end before `limit`, by its bytes.
        """
        conversation = await self.get_thread_conversation(thread_id)
        limit, size = _limit_page(limit), 0
        items: list[ThreadItem] = []
        async for item in self._iterate_items(conversation, after, is_descending=order == "desc"):
            if len(items) == limit or size > MAX_PAGE_BYTES:
                return _build_page(items, has_more=True)
            size += len(str(item))
            items.append(_ITEM.validate_python(item))
        return _build_page(items, has_more=False)

    async def _iterate_items(
        self, conversation: Conversation, after: str | None, *, is_descending: bool
    ) -> AsyncIterator[JsonObject]:
        nodes = await self._contents.list_nodes(conversation.id)
        branch = select_branch(nodes, find_followed(nodes))
        last = branch[-1] if branch else None
        if is_descending:
            branch.reverse()
        if after is not None:
            found = await self.find_turn_id(conversation, after)
            if found is None or found not in branch:
                raise NotFoundError("item")
            branch = branch[branch.index(found) :]
        for turn_id in branch:
            items = (await self.read_turn(turn_id, conversation, followed=turn_id != last)).items
            for item in reversed(items) if is_descending else items:
                if after is None:
                    yield item
                elif item["id"] == after:
                    after = None

    async def load_item(self, thread_id: str, item_id: str, context: RequestContext) -> ThreadItem:
        conversation = await self.get_thread_conversation(thread_id)
        turn_id = await self.find_turn_id(conversation, item_id)
        if turn_id is not None:
            for item in (await self.read_turn(turn_id, conversation)).items:
                if item["id"] == item_id:
                    return _ITEM.validate_python(item)
        raise NotFoundError("item")

    async def find_turn_id(self, conversation: Conversation, item_id: str) -> UUID | None:
        """Find the turn of an item; None: there is none."""
        turn_id = parse_item_turn(item_id)
        if turn_id is None:
            return await self._lists.find_by_echo(conversation.id, ECHO_KEY, item_id)
        return turn_id

    async def read_turn(self, turn_id: UUID, conversation: Conversation, *, followed: bool = False) -> ItemWriter:
        """Fold a turn of the conversation.

        `followed`: another turn of its branch comes after it.

        Raises:
            NotFoundError: the caller has no such turn there.
        """
        return (await self.read_position(turn_id, conversation, followed=followed))[0]

    async def read_position(
        self, turn_id: UUID, conversation: Conversation, *, followed: bool = False
    ) -> tuple[ItemWriter, int]:
        """Fold a turn.

        Return the number of its last stored event, too.
        """
        stored = await self.get_turn_row(turn_id, conversation)
        writer = ItemWriter(_build_head(stored, conversation)._replace(followed=followed))
        return writer, await fold_stored_events(self._turns, stored, writer.write_event)

    async def get_turn_row(self, turn_id: UUID, conversation: Conversation) -> Turn:
        """Return a turn of the conversation.

        Raises:
            NotFoundError: the caller has no such turn there.
        """
        try:
            stored = await self._turns.get_turn(turn_id, self._principal)
        except NotFound:
            raise NotFoundError("item") from None
        if stored.conversation_id != conversation.id:
            raise NotFoundError("item")
        return stored

    async def add_thread_item(self, thread_id: str, item: ThreadItem, context: RequestContext) -> None:
        """Do nothing: the turn's events have the item."""

    async def save_item(self, thread_id: str, item: ThreadItem, context: RequestContext) -> None:
        """Hold the client call whose result has come.

        The turn's events have all other items.
        """
        if isinstance(item, ClientToolCallItem):
            self.answered_call = item

    async def delete_thread_item(self, thread_id: str, item_id: str, context: RequestContext) -> None:
        """Do nothing.

        A retry is a branch, and the items that it leaves are not listed.
        """

    # --- attachments, which are not supported

    async def save_attachment(self, attachment: Attachment, context: RequestContext) -> None:
        raise NotFoundError("attachment")

    async def load_attachment(self, attachment_id: str, context: RequestContext) -> Attachment:
        raise NotFoundError("attachment")

    async def delete_attachment(self, attachment_id: str, context: RequestContext) -> None:
        raise NotFoundError("attachment")


def _to_thread(conversation: Conversation) -> ThreadMetadata:
    assert conversation.created_at is not None
    thread_id = conversation.external_id or str(conversation.id)
    return ThreadMetadata(id=thread_id, title=conversation.title or None, created_at=conversation.created_at)


def _build_page(items: list[T], *, has_more: bool) -> Page[T]:
    last: Any = items[-1] if items else None
    return Page(data=items, has_more=has_more, after=last.id if has_more and last else None)


def _build_head(stored: Turn, conversation: Conversation) -> ItemHead:
    echo: JsonObject = stored.options.get("echo") or {}
    thread_id = conversation.external_id or str(conversation.id)
    user_item_id = echo.get(ECHO_KEY)
    continues = CALL_ECHO_KEY in echo
    model = stored.model_name
    return ItemHead(stored.id, thread_id, stored.prompt, user_item_id, stored.created_at, model, continues)


def _limit_page(limit: int) -> int:
    return min(max(limit, 1), MAX_PAGE_ITEMS)
