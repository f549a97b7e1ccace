"""The database and its repositories, opened and closed."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from uuid import UUID

from gateway.common.concurrency import SupervisedTask, TaskRegistry
from gateway.common.lease import WorkerLease
from gateway.common.timeouts import Timeouts
from gateway.composition.observed import choose_journal, choose_questions
from gateway.composition.supervision import supervise
from gateway.config import Settings
from gateway.mcp_client.identity_keys import IdentityKeys
from gateway.ports.observer import Observer
from gateway.store.admin.user_data import UserDataStore, delete_old_turns_forever
from gateway.store.api_keys import KeyStore
from gateway.store.audit import AuditStore
from gateway.store.bus import PostgresBus
from gateway.store.conversations import ConversationStore
from gateway.store.database import Database
from gateway.store.encryption import Cipher, load_encryption_secrets
from gateway.store.health import StorageHealth
from gateway.store.journal.postgres_journal import PostgresJournal
from gateway.store.mcp_servers import ServerStore
from gateway.store.oauth_grants import PostgresGrantStore
from gateway.store.questions import QuestionStore
from gateway.store.search.indexer import SearchIndexer
from gateway.store.tasks.waits import TaskWaitStore
from gateway.store.turns import TurnStore, prune_forever
from gateway.store.upstream.ledger import RequestLedgerStore
from gateway.store.upstream.objects import UpstreamObjectStore
from gateway.store.usage import UsageStore
from gateway.store.webhooks.push_configs import PushConfigStore
from gateway.store.webhooks.queue import WebhookStore
from gateway.store.workers import WorkerStore
from gateway_runtime.postgres.connections import ConnectionTimeouts
from gateway_runtime.redaction.redactor import Redactor, load_rules


@dataclass(frozen=True)
class Store:
    """The database and its repositories. `build_agent` starts the bus after its subscribers."""

    database: Database
    journal: PostgresJournal
    bus: PostgresBus
    turns: TurnStore
    workers: WorkerStore
    conversations: ConversationStore
    usage: UsageStore
    questions: QuestionStore
    tasks: TaskWaitStore
    keys: KeyStore
    audit: AuditStore
    user_data: UserDataStore
    servers: ServerStore
    grants: PostgresGrantStore
    redactor: Redactor
    cipher: Cipher
    identity_keys: IdentityKeys
    webhooks: WebhookStore
    requests: RequestLedgerStore
    push_configs: PushConfigStore
    upstream_objects: UpstreamObjectStore


def _create_database(settings: Settings) -> Database:
    assert settings.postgres_url is not None
    limits = ConnectionTimeouts(
        statement=settings.database_statement_timeout_seconds,
        lock=settings.database_lock_timeout_seconds,
        silence=settings.database_silence_timeout_seconds,
    )
    return Database(
        settings.postgres_url,
        direct_url=settings.database_direct_url,
        pool_size=settings.database_pool_size,
        limits=limits,
    )


@asynccontextmanager
async def build_store(
    settings: Settings,
    timeouts: Timeouts,
    worker_id: UUID,
    tasks: TaskRegistry,
    observer: Observer | None = None,
) -> AsyncGenerator[Store]:
    """Open the database and start the journal.

    On exit, the journal commits the waiting writes.
    """
    database = _create_database(settings)
    redactor = load_rules(settings.redaction_rules)
    journal = choose_journal(observer)(
        database.direct,
        worker_id,
        flush_seconds=settings.journal_flush_ms / 1000,
        timeout_seconds=timeouts.journal,
        retry_seconds=settings.storage_retry_seconds,
        redactor=redactor,
    )
    cipher = Cipher(*(secrets := load_encryption_secrets(settings)))
    workers, turns = WorkerStore(database, worker_id), TurnStore(database)
    retention, user_data = timedelta(days=settings.journal_retention_days), UserDataStore(database)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        supervise(SupervisedTask("journal retention", partial(prune_forever, turns, retention)), tasks, stack)
        if settings.turn_retention_days is not None:
            retain = partial(delete_old_turns_forever, user_data, timedelta(days=settings.turn_retention_days))
            supervise(SupervisedTask("turn retention", retain), tasks, stack)
        stack.callback(workers.close)
        supervise(SearchIndexer(database).task, tasks, stack)
        journal.start()
        tasks.add(*journal.tasks)
        stack.push_async_callback(journal.stop)
        yield Store(
            database=database,
            journal=journal,
            bus=PostgresBus(database.direct),
            turns=turns,
            workers=workers,
            conversations=ConversationStore(database, redactor=redactor),
            usage=UsageStore(database, worker_id, redactor=redactor),
            questions=choose_questions(observer)(
                database, worker_id, lifetime=timedelta(days=settings.input_expiry_days), redactor=redactor
            ),
            tasks=TaskWaitStore(database, worker_id),
            keys=KeyStore(database),
            audit=AuditStore(database),
            user_data=user_data,
            servers=ServerStore(database, cipher),
            grants=PostgresGrantStore(database, cipher),
            redactor=redactor,
            cipher=cipher,
            identity_keys=IdentityKeys(secrets),
            requests=RequestLedgerStore(database),
            webhooks=WebhookStore(database, cipher),
            push_configs=PushConfigStore(database, cipher),
            upstream_objects=UpstreamObjectStore(database),
        )


def build_storage_health(
    settings: Settings, timeouts: Timeouts, store: Store, lease: WorkerLease, stack: AsyncExitStack
) -> StorageHealth:
    """Return the check of the storage for `/ready`, closed with `stack`."""
    url, limits = settings.postgres_url, store.database.connector.limits
    assert url is not None
    health = StorageHealth(url, store.journal, lambda: lease.is_valid, limits=limits, max_age_seconds=timeouts.health)
    stack.push_async_callback(health.close)
    return health
