BEGIN;

CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL, 
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> tools_0001

CREATE SCHEMA IF NOT EXISTS tools;

CREATE TABLE tools.tasks (
    user_id TEXT NOT NULL, 
    id INTEGER NOT NULL, 
    title TEXT NOT NULL, 
    description TEXT DEFAULT '' NOT NULL, 
    status TEXT NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    completed_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (user_id, id), 
    CONSTRAINT ck_tasks_status CHECK (status IN ('pending', 'completed'))
);

CREATE TABLE tools.task_counters (
    user_id TEXT NOT NULL, 
    last_id INTEGER NOT NULL, 
    PRIMARY KEY (user_id)
);

INSERT INTO alembic_version (version_num) VALUES ('tools_0001') RETURNING alembic_version.version_num;

-- Running upgrade tools_0001 -> tools_0002

CREATE TABLE tools.task_calls (
    user_id TEXT NOT NULL, 
    key TEXT NOT NULL, 
    fingerprint BYTEA NOT NULL, 
    result TEXT, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (user_id, key)
);

CREATE INDEX ix_task_calls_created_at ON tools.task_calls (created_at);

UPDATE alembic_version SET version_num='tools_0002' WHERE alembic_version.version_num = 'tools_0001';

-- Running upgrade tools_0002 -> tools_0003

CREATE TABLE tools.http_tools (
    name TEXT NOT NULL, 
    draft JSON NOT NULL, 
    origin TEXT NOT NULL, 
    published JSON, 
    published_origin TEXT, 
    revision INTEGER NOT NULL, 
    published_revision INTEGER, 
    source JSON, 
    updated_by TEXT NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (name)
);

CREATE TABLE tools.http_tool_secrets (
    origin TEXT NOT NULL, 
    name TEXT NOT NULL, 
    value BYTEA NOT NULL, 
    updated_by TEXT NOT NULL, 
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (origin, name)
);

UPDATE alembic_version SET version_num='tools_0003' WHERE alembic_version.version_num = 'tools_0002';

-- Running upgrade  -> gateway_0001

CREATE TABLE conversations (
    id UUID NOT NULL, 
    owner TEXT NOT NULL, 
    title TEXT NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (id)
);

CREATE INDEX ix_conversations_owner ON conversations (owner, id DESC);

CREATE TABLE turn_events (
    turn_id UUID NOT NULL, 
    first_seq INTEGER NOT NULL, 
    last_seq INTEGER NOT NULL, 
    payload TEXT NOT NULL, 
    PRIMARY KEY (turn_id, first_seq)
);

CREATE TABLE workers (
    id UUID NOT NULL, 
    host TEXT NOT NULL, 
    pid BIGINT NOT NULL, 
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (id)
);

CREATE TABLE turns (
    id UUID NOT NULL, 
    conversation_id UUID, 
    owner TEXT NOT NULL, 
    user_label TEXT, 
    worker_id UUID, 
    status TEXT NOT NULL, 
    prompt TEXT NOT NULL, 
    response TEXT DEFAULT '' NOT NULL, 
    messages JSONB NOT NULL, 
    model_name TEXT NOT NULL, 
    parameters JSONB NOT NULL, 
    options JSONB NOT NULL, 
    finish_reason TEXT, 
    usage JSONB, 
    cost_usd FLOAT, 
    steps INTEGER DEFAULT '0' NOT NULL, 
    error JSONB, 
    request_id TEXT, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    completed_at TIMESTAMP WITH TIME ZONE, 
    first_token_ms FLOAT, 
    duration_ms FLOAT, 
    search TSVECTOR GENERATED ALWAYS AS (to_tsvector('simple'::regconfig, "left"(prompt, 50000) || ' ' || "left"(response, 50000))) STORED, 
    PRIMARY KEY (id), 
    FOREIGN KEY(conversation_id) REFERENCES conversations (id) ON DELETE CASCADE
);

CREATE INDEX ix_turns_conversation ON turns (conversation_id, id);

CREATE INDEX ix_turns_owner ON turns (owner, id DESC);

CREATE INDEX ix_turns_running ON turns (worker_id) WHERE status = 'running';

CREATE INDEX ix_turns_search ON turns USING gin (search);

CREATE TABLE tool_calls (
    turn_id UUID NOT NULL, 
    call_id TEXT NOT NULL, 
    step INTEGER NOT NULL, 
    server TEXT, 
    tool TEXT NOT NULL, 
    arguments JSONB, 
    outcome TEXT, 
    content JSONB, 
    structured JSONB, 
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    duration_ms FLOAT, 
    PRIMARY KEY (turn_id, call_id), 
    FOREIGN KEY(turn_id) REFERENCES turns (id) ON DELETE CASCADE
);

CREATE VIEW chat_logs AS SELECT id, prompt, response, model_name, created_at FROM turns;

INSERT INTO alembic_version (version_num) VALUES ('gateway_0001') RETURNING alembic_version.version_num;

-- Running upgrade gateway_0001 -> gateway_0002

ALTER TABLE turns ADD COLUMN idempotency_key TEXT;

ALTER TABLE turns ADD COLUMN cancel_requested BOOLEAN DEFAULT false NOT NULL;

CREATE UNIQUE INDEX ux_turns_idempotency ON turns (owner, idempotency_key);

UPDATE alembic_version SET version_num='gateway_0002' WHERE alembic_version.version_num = 'gateway_0001';

-- Running upgrade gateway_0002 -> gateway_0003

CREATE TABLE turn_inputs (
    id UUID NOT NULL, 
    turn_id UUID NOT NULL, 
    call_id TEXT NOT NULL, 
    question JSONB NOT NULL, 
    state TEXT, 
    answer JSONB, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (id), 
    FOREIGN KEY(turn_id) REFERENCES turns (id) ON DELETE CASCADE
);

CREATE INDEX ix_turn_inputs_turn ON turn_inputs (turn_id);

CREATE INDEX ix_turn_inputs_open ON turn_inputs (expires_at) WHERE answer IS NULL;

CREATE TABLE audit_log (
    id UUID NOT NULL, 
    at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    actor TEXT NOT NULL, 
    action TEXT NOT NULL, 
    subject TEXT NOT NULL, 
    detail JSONB NOT NULL, 
    PRIMARY KEY (id)
);

CREATE INDEX ix_audit_log_subject ON audit_log (subject);

CREATE FUNCTION audit_log_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'audit_log is append-only';
        END $$;

CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log FOR EACH STATEMENT EXECUTE FUNCTION audit_log_is_append_only();

UPDATE alembic_version SET version_num='gateway_0003' WHERE alembic_version.version_num = 'gateway_0002';

-- Running upgrade gateway_0003 -> gateway_0004

ALTER TABLE turns ADD COLUMN parent_id UUID;

ALTER TABLE turns ADD COLUMN busy_conversation_id UUID;

ALTER TABLE turns ADD COLUMN sent_messages INTEGER DEFAULT '0' NOT NULL;

UPDATE turns SET parent_id = earlier.parent_id FROM (
            SELECT id, lag(id) OVER (PARTITION BY conversation_id ORDER BY id) AS parent_id
            FROM turns WHERE conversation_id IS NOT NULL
        ) AS earlier WHERE turns.id = earlier.id AND earlier.parent_id IS NOT NULL;

CREATE INDEX ix_turns_parent ON turns (parent_id);

CREATE UNIQUE INDEX ux_turns_busy ON turns (busy_conversation_id);

UPDATE alembic_version SET version_num='gateway_0004' WHERE alembic_version.version_num = 'gateway_0003';

-- Running upgrade gateway_0004 -> gateway_0005

CREATE TABLE mcp_servers (
    name TEXT NOT NULL, 
    config JSONB, 
    disabled BOOLEAN DEFAULT false NOT NULL, 
    changed_by TEXT NOT NULL, 
    changed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (name)
);

CREATE TABLE mcp_tools (
    server TEXT NOT NULL, 
    tool TEXT NOT NULL, 
    definition JSONB NOT NULL, 
    changed_to JSONB, 
    first_seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    changed_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (server, tool)
);

UPDATE alembic_version SET version_num='gateway_0005' WHERE alembic_version.version_num = 'gateway_0004';

-- Running upgrade gateway_0005 -> gateway_0006

CREATE TABLE oauth_grants (
    server TEXT NOT NULL, 
    owner TEXT NOT NULL, 
    url TEXT NOT NULL, 
    sealed BYTEA NOT NULL, 
    changed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (server, owner, url)
);

CREATE TABLE oauth_logins (
    ticket TEXT NOT NULL, 
    login JSONB NOT NULL, 
    state TEXT, 
    callback BYTEA, 
    outcome TEXT, 
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (ticket)
);

UPDATE alembic_version SET version_num='gateway_0006' WHERE alembic_version.version_num = 'gateway_0005';

-- Running upgrade gateway_0006 -> gateway_0007

ALTER TABLE turns ADD COLUMN key TEXT;

ALTER TABLE turns ADD COLUMN cached BOOLEAN DEFAULT false NOT NULL;

CREATE INDEX ix_turns_completed ON turns (completed_at);

CREATE INDEX ix_turns_owner_completed ON turns (owner, completed_at);

CREATE TABLE cached_responses (
    owner TEXT NOT NULL, 
    key BYTEA NOT NULL, 
    turn_id UUID NOT NULL, 
    kept_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (owner, key), 
    FOREIGN KEY(turn_id) REFERENCES turns (id) ON DELETE CASCADE
);

CREATE INDEX ix_cached_responses_turn ON cached_responses (turn_id);

CREATE INDEX ix_cached_responses_kept ON cached_responses (kept_at);

CREATE INDEX ix_cached_responses_expires ON cached_responses (expires_at);

UPDATE alembic_version SET version_num='gateway_0007' WHERE alembic_version.version_num = 'gateway_0006';

-- Running upgrade gateway_0007 -> gateway_0008

CREATE TABLE api_keys (
    id UUID NOT NULL, 
    hash TEXT NOT NULL, 
    prefix TEXT NOT NULL, 
    name TEXT DEFAULT '' NOT NULL, 
    owner TEXT NOT NULL, 
    role TEXT NOT NULL, 
    scopes JSONB, 
    models JSONB, 
    servers JSONB, 
    tools JSONB, 
    budget JSONB, 
    created_by TEXT NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    expires_at TIMESTAMP WITH TIME ZONE, 
    last_used_at TIMESTAMP WITH TIME ZONE, 
    revoked_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (id)
);

CREATE UNIQUE INDEX ux_api_keys_hash ON api_keys (hash);

CREATE UNIQUE INDEX ux_api_keys_prefix ON api_keys (prefix);

CREATE INDEX ix_api_keys_owner ON api_keys (owner, id DESC);

ALTER TABLE turns ADD COLUMN caller JSONB;

CREATE TABLE turn_usage (
    turn_id UUID NOT NULL, 
    owner TEXT NOT NULL, 
    key TEXT, 
    model_name TEXT NOT NULL, 
    status TEXT NOT NULL, 
    prompt_tokens BIGINT NOT NULL, 
    completion_tokens BIGINT NOT NULL, 
    total_tokens BIGINT NOT NULL, 
    cost_usd FLOAT, 
    error_code TEXT, 
    at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (turn_id)
);

CREATE INDEX ix_turn_usage_owner ON turn_usage (owner, at) INCLUDE (total_tokens, cost_usd);

CREATE INDEX ix_turn_usage_key ON turn_usage (key, at) INCLUDE (total_tokens, cost_usd) WHERE key IS NOT NULL;

CREATE INDEX ix_turn_usage_at ON turn_usage (at);

INSERT INTO turn_usage (turn_id, owner, model_name, status, prompt_tokens, completion_tokens, total_tokens,
                                cost_usd, error_code, at)
        SELECT id, owner, model_name, status, coalesce((usage->>'prompt_tokens')::bigint, 0),
               coalesce((usage->>'completion_tokens')::bigint, 0), coalesce((usage->>'total_tokens')::bigint, 0),
               cost_usd, error->>'code', completed_at
        FROM turns WHERE completed_at IS NOT NULL;

CREATE TABLE turn_feedback (
    turn_id UUID NOT NULL, 
    owner TEXT NOT NULL, 
    rating TEXT NOT NULL, 
    comment TEXT, 
    at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (turn_id), 
    FOREIGN KEY(turn_id) REFERENCES turns (id) ON DELETE CASCADE
);

CREATE INDEX ix_turn_feedback_owner ON turn_feedback (owner, at);

CREATE INDEX ix_turn_feedback_at ON turn_feedback (at);

CREATE INDEX ix_tool_calls_started ON tool_calls (started_at);

CREATE INDEX ix_audit_log_actor ON audit_log (actor, id DESC);

CREATE INDEX ix_audit_log_action ON audit_log (action, id DESC);

UPDATE alembic_version SET version_num='gateway_0008' WHERE alembic_version.version_num = 'gateway_0007';

-- Running upgrade gateway_0008 -> gateway_0009

ALTER TABLE turn_usage ADD COLUMN cached_tokens BIGINT DEFAULT '0' NOT NULL;

ALTER TABLE turn_usage ADD COLUMN reasoning_tokens BIGINT DEFAULT '0' NOT NULL;

ALTER TABLE turn_usage ADD COLUMN queue_time FLOAT DEFAULT '0' NOT NULL;

ALTER TABLE turn_usage ADD COLUMN model_time FLOAT DEFAULT '0' NOT NULL;

ALTER TABLE turn_usage ADD COLUMN generation_time FLOAT DEFAULT '0' NOT NULL;

ALTER TABLE turn_usage ADD COLUMN steps INTEGER DEFAULT '0' NOT NULL;

ALTER TABLE turn_usage ADD COLUMN conversation_id UUID;

ALTER TABLE turn_usage ADD COLUMN cached BOOLEAN DEFAULT false NOT NULL;

UPDATE turn_usage
        SET steps = turns.steps, conversation_id = turns.conversation_id, cached = turns.cached,
            key = coalesce(turn_usage.key, turns.key),
            cached_tokens = coalesce((usage->>'cached_tokens')::bigint, 0),
            reasoning_tokens = coalesce((usage->>'reasoning_tokens')::bigint, 0),
            queue_time = coalesce((usage->>'queue_time')::float8, 0),
            model_time = coalesce((usage->>'model_time')::float8, 0),
            generation_time = coalesce((usage->>'generation_time')::float8, 0)
        FROM turns WHERE turns.id = turn_usage.turn_id;

DROP INDEX ix_turns_owner_completed;

DROP INDEX ix_turns_completed;

ALTER TABLE turns DROP COLUMN key;

UPDATE alembic_version SET version_num='gateway_0009' WHERE alembic_version.version_num = 'gateway_0008';

-- Running upgrade gateway_0009 -> gateway_0010

CREATE TABLE budget_holds (
    turn_id UUID NOT NULL, 
    owner TEXT NOT NULL, 
    key TEXT, 
    tokens BIGINT NOT NULL, 
    usd FLOAT NOT NULL, 
    step_tokens BIGINT NOT NULL, 
    step_usd FLOAT NOT NULL, 
    PRIMARY KEY (turn_id), 
    FOREIGN KEY(turn_id) REFERENCES turns (id) ON DELETE CASCADE
);

CREATE INDEX ix_budget_holds_owner ON budget_holds (owner);

ALTER TABLE api_keys ADD COLUMN limits JSONB;

UPDATE alembic_version SET version_num='gateway_0010' WHERE alembic_version.version_num = 'gateway_0009';

-- Running upgrade gateway_0010 -> gateway_0011

ALTER TABLE turns ADD COLUMN epoch INTEGER DEFAULT '0' NOT NULL;

ALTER TABLE turns ADD COLUMN attempts INTEGER DEFAULT '0' NOT NULL;

ALTER TABLE workers ADD COLUMN lease_until TIMESTAMP WITH TIME ZONE;

CREATE INDEX ix_turn_usage_error ON turn_usage (error_code, at) WHERE error_code IS NOT NULL;

CREATE FUNCTION refuse_stale_write(turn_id uuid) RETURNS uuid LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'another worker owns this turn' USING ERRCODE = 'GW001', DETAIL = turn_id::text;
        END $$;

UPDATE alembic_version SET version_num='gateway_0011' WHERE alembic_version.version_num = 'gateway_0010';

-- Running upgrade gateway_0011 -> gateway_0012

CREATE SEQUENCE turn_positions;

GRANT USAGE ON SEQUENCE turn_positions TO PUBLIC;

ALTER TABLE turns ADD COLUMN position BIGINT;

ALTER TABLE turns ALTER COLUMN position SET DEFAULT nextval('turn_positions');

ALTER SEQUENCE turn_positions OWNED BY turns.position;

CREATE INDEX ix_turns_position ON turns (conversation_id, position NULLS FIRST, id);

CREATE TABLE conversation_waiters (
    id BIGINT GENERATED ALWAYS AS IDENTITY, 
    conversation_id UUID NOT NULL, 
    worker_id UUID NOT NULL, 
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    PRIMARY KEY (id)
);

CREATE INDEX ix_conversation_waiters ON conversation_waiters (conversation_id, id);

UPDATE alembic_version SET version_num='gateway_0012' WHERE alembic_version.version_num = 'gateway_0011';

-- Running upgrade gateway_0012 -> gateway_0013

ALTER TABLE oauth_grants ADD COLUMN refreshing_until TIMESTAMP WITH TIME ZONE;

UPDATE alembic_version SET version_num='gateway_0013' WHERE alembic_version.version_num = 'gateway_0012';

-- Running upgrade gateway_0013 -> gateway_0014

ALTER TABLE mcp_tools ADD COLUMN details JSONB;

ALTER TABLE mcp_tools ADD COLUMN details_changed_to JSONB;

UPDATE alembic_version SET version_num='gateway_0014' WHERE alembic_version.version_num = 'gateway_0013';

-- Running upgrade gateway_0014 -> gateway_0015

ALTER TABLE api_keys ADD COLUMN made_with TEXT;

CREATE INDEX ix_api_keys_made_with ON api_keys (made_with);

UPDATE alembic_version SET version_num='gateway_0015' WHERE alembic_version.version_num = 'gateway_0014';

-- Running upgrade gateway_0015 -> gateway_0016

ALTER TABLE audit_log ADD COLUMN seq BIGINT;

ALTER TABLE audit_log ADD COLUMN hash TEXT;

CREATE FUNCTION audit_log_entry(entry audit_log) RETURNS text LANGUAGE sql STABLE AS $$
        SELECT jsonb_build_object(
            'seq', entry.seq, 'id', entry.id, 'actor', entry.actor, 'action', entry.action, 'subject', entry.subject,
            'detail', entry.detail, 'at', to_char(entry.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        )::text $$;

CREATE FUNCTION audit_log_hash(previous text, entry audit_log) RETURNS text LANGUAGE sql STABLE AS $$
        SELECT encode(sha256(convert_to(coalesce(previous, repeat('0', 64)) || audit_log_entry(entry), 'UTF8')), 'hex')
        $$;

ALTER TABLE audit_log DISABLE TRIGGER audit_log_append_only;

DO $$
        DECLARE entry audit_log; previous text; number bigint = 0;
        BEGIN
            FOR entry IN SELECT * FROM audit_log ORDER BY id LOOP
                number = number + 1;
                entry.seq = number;
                previous = audit_log_hash(previous, entry);
                UPDATE audit_log SET seq = number, hash = previous WHERE id = entry.id;
            END LOOP;
        END $$;

ALTER TABLE audit_log ENABLE TRIGGER audit_log_append_only;

CREATE UNIQUE INDEX ux_audit_log_seq ON audit_log (seq);

CREATE FUNCTION audit_log_chain() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE last record;
        BEGIN
            PERFORM pg_advisory_xact_lock(hashtextextended('audit_log chain', 0));
            SELECT seq, hash INTO last FROM audit_log WHERE seq IS NOT NULL ORDER BY seq DESC LIMIT 1;
            NEW.seq = coalesce(last.seq, 0) + 1;
            NEW.hash = audit_log_hash(last.hash, NEW);
            RETURN NEW;
        END $$;

CREATE TRIGGER audit_log_chain BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_log_chain();

UPDATE alembic_version SET version_num='gateway_0016' WHERE alembic_version.version_num = 'gateway_0015';

-- Running upgrade gateway_0016 -> gateway_0017

ALTER TABLE turns ADD COLUMN search_terms TSVECTOR;

CREATE INDEX ix_turns_search_terms ON turns USING gin (search_terms);

CREATE INDEX ix_turns_without_terms ON turns (owner, id DESC) WHERE search_terms IS NULL;

UPDATE alembic_version SET version_num='gateway_0017' WHERE alembic_version.version_num = 'gateway_0016';

-- Running upgrade gateway_0017 -> gateway_0018

ALTER TABLE conversations ADD COLUMN external_id TEXT;

CREATE UNIQUE INDEX ux_conversations_external_id ON conversations (owner, external_id);

UPDATE alembic_version SET version_num='gateway_0018' WHERE alembic_version.version_num = 'gateway_0017';

-- Running upgrade gateway_0018 -> gateway_0019

ALTER TABLE mcp_servers ADD COLUMN created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL;

ALTER TABLE oauth_grants ADD COLUMN challenge TEXT;

UPDATE alembic_version SET version_num='gateway_0019' WHERE alembic_version.version_num = 'gateway_0018';

-- Running upgrade gateway_0019 -> gateway_0020

ALTER TABLE turns ADD COLUMN origin_id UUID;

ALTER TABLE turns ADD COLUMN is_replay BOOLEAN DEFAULT false NOT NULL;

ALTER TABLE tool_calls ADD COLUMN source TEXT;

UPDATE alembic_version SET version_num='gateway_0020' WHERE alembic_version.version_num = 'gateway_0019';

-- Running upgrade gateway_0020 -> gateway_0021

ALTER TABLE turns ALTER COLUMN search DROP EXPRESSION;

ALTER TABLE turns ADD COLUMN has_terms BOOLEAN DEFAULT false NOT NULL;

DROP INDEX ix_turns_without_terms;

DROP INDEX ix_turns_search_terms;

ALTER TABLE turns DROP COLUMN search_terms;

CREATE INDEX ix_turns_without_terms ON turns (owner, id DESC) WHERE NOT has_terms;

CREATE FUNCTION set_search_words() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.search = to_tsvector('simple'::regconfig, "left"(NEW.prompt, 50000) || ' ' || "left"(NEW.response, 50000));
            RETURN NEW;
        END $$;

CREATE TRIGGER turns_search_words BEFORE INSERT OR UPDATE OF prompt, response ON turns FOR EACH ROW WHEN (NOT NEW.has_terms) EXECUTE FUNCTION set_search_words();

UPDATE alembic_version SET version_num='gateway_0021' WHERE alembic_version.version_num = 'gateway_0020';

-- Running upgrade gateway_0021 -> gateway_0022

ALTER TABLE conversations ADD COLUMN notes JSONB;

UPDATE alembic_version SET version_num='gateway_0022' WHERE alembic_version.version_num = 'gateway_0021';

-- Running upgrade gateway_0022 -> gateway_0023

ALTER TABLE turns ADD COLUMN history_summary JSONB;

UPDATE alembic_version SET version_num='gateway_0023' WHERE alembic_version.version_num = 'gateway_0022';

-- Running upgrade gateway_0023 -> gateway_0024

ALTER TABLE api_keys ADD COLUMN gateway_tools TEXT;

UPDATE alembic_version SET version_num='gateway_0024' WHERE alembic_version.version_num = 'gateway_0023';

-- Running upgrade gateway_0024 -> gateway_0025

ALTER TABLE turns ADD COLUMN request_hash TEXT;

UPDATE alembic_version SET version_num='gateway_0025' WHERE alembic_version.version_num = 'gateway_0024';

-- Running upgrade gateway_0025 -> gateway_0026

CREATE TABLE webhook_messages (
    id UUID NOT NULL, 
    turn_id UUID NOT NULL, 
    owner TEXT NOT NULL, 
    url TEXT NOT NULL, 
    event TEXT NOT NULL, 
    payload TEXT NOT NULL, 
    attempts INTEGER DEFAULT '0' NOT NULL, 
    error TEXT, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    next_attempt_at TIMESTAMP WITH TIME ZONE DEFAULT now(), 
    delivered_at TIMESTAMP WITH TIME ZONE, 
    failed_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (id), 
    FOREIGN KEY(turn_id) REFERENCES turns (id) ON DELETE CASCADE
);

CREATE INDEX ix_webhook_messages_turn ON webhook_messages (turn_id);

CREATE INDEX ix_webhook_messages_owner ON webhook_messages (owner, failed_at);

CREATE INDEX ix_webhook_messages_due ON webhook_messages (next_attempt_at) WHERE next_attempt_at IS NOT NULL;

CREATE FUNCTION queue_webhook(turn turns, event text, data jsonb) RETURNS void LANGUAGE sql AS $$
INSERT INTO webhook_messages (id, turn_id, owner, url, event, payload)
VALUES (gen_random_uuid(), turn.id, turn.owner, turn.options->>'webhook_url', event, jsonb_build_object(
    'type', event,
    'timestamp', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
    'data', jsonb_build_object('turn_id', turn.id, 'conversation_id', turn.conversation_id) || data)::text) $$;

CREATE FUNCTION queue_webhook_of_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM queue_webhook(NEW, 'turn.' || NEW.status, jsonb_build_object('status', NEW.status)
        || CASE WHEN NEW.error IS NULL THEN '{}'::jsonb ELSE jsonb_build_object('error_code', NEW.error->>'code') END);
    RETURN NULL;
END $$;

CREATE FUNCTION queue_webhook_of_input() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE turn turns;
BEGIN
    SELECT * INTO turn FROM turns WHERE id = NEW.turn_id AND options ? 'webhook_url';
    IF FOUND THEN
        PERFORM queue_webhook(turn, 'input.required', jsonb_build_object('input_id', NEW.id, 'call_id', NEW.call_id));
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER turns_webhook AFTER UPDATE OF status ON turns FOR EACH ROW
        WHEN (OLD.status IS DISTINCT FROM NEW.status AND NEW.status IN ('completed', 'failed', 'cancelled')
              AND NEW.options ? 'webhook_url')
        EXECUTE FUNCTION queue_webhook_of_end();

CREATE TRIGGER turn_inputs_webhook AFTER INSERT ON turn_inputs FOR EACH ROW
        EXECUTE FUNCTION queue_webhook_of_input();

UPDATE alembic_version SET version_num='gateway_0026' WHERE alembic_version.version_num = 'gateway_0025';

-- Running upgrade gateway_0026 -> gateway_0027

ALTER TABLE turn_usage ADD COLUMN endpoint TEXT;

CREATE TABLE request_holds (
    id UUID NOT NULL, 
    owner TEXT NOT NULL, 
    key TEXT, 
    tokens BIGINT NOT NULL, 
    usd FLOAT NOT NULL, 
    expires_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (id)
);

CREATE INDEX ix_request_holds_owner ON request_holds (owner);

CREATE TABLE upstream_objects (
    id TEXT NOT NULL, 
    kind TEXT NOT NULL, 
    owner TEXT NOT NULL, 
    key TEXT, 
    body JSONB NOT NULL, 
    estimate JSONB, 
    hold_id UUID, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    checked_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    settled_at TIMESTAMP WITH TIME ZONE, 
    PRIMARY KEY (id)
);

CREATE INDEX ix_upstream_objects_owner ON upstream_objects (owner, kind, created_at DESC, id DESC);

CREATE INDEX ix_upstream_objects_open ON upstream_objects (checked_at) WHERE kind = 'batch' AND settled_at IS NULL;

UPDATE alembic_version SET version_num='gateway_0027' WHERE alembic_version.version_num = 'gateway_0026';

-- Running upgrade gateway_0027 -> gateway_0028

ALTER TABLE turns ADD COLUMN trace_context JSONB;

UPDATE alembic_version SET version_num='gateway_0028' WHERE alembic_version.version_num = 'gateway_0027';

-- Running upgrade gateway_0028 -> gateway_0029

CREATE TABLE push_configs (
    turn_id UUID NOT NULL, 
    id TEXT NOT NULL, 
    owner TEXT NOT NULL, 
    url TEXT NOT NULL, 
    sealed BYTEA NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (turn_id, id), 
    FOREIGN KEY(turn_id) REFERENCES turns (id) ON DELETE CASCADE
);

ALTER TABLE webhook_messages ADD COLUMN push_id TEXT;

ALTER TABLE webhook_messages ADD CONSTRAINT fk_webhook_messages_push FOREIGN KEY(turn_id, push_id) REFERENCES push_configs (turn_id, id) ON DELETE CASCADE;

CREATE FUNCTION queue_push(turn turns, new_status text, only_id text) RETURNS void LANGUAGE sql AS $$
INSERT INTO webhook_messages (id, turn_id, owner, url, event, push_id, payload)
SELECT gen_random_uuid(), turn.id, turn.owner, push.url,
    CASE new_status WHEN 'waiting' THEN 'input.required' ELSE 'turn.' || new_status END, push.id,
    jsonb_build_object('statusUpdate', jsonb_build_object(
        'taskId', turn.id,
        'contextId', coalesce(conversation.external_id, turn.conversation_id::text, turn.id::text),
        'status', jsonb_build_object(
            'state', CASE new_status WHEN 'waiting' THEN 'TASK_STATE_INPUT_REQUIRED'
                     WHEN 'cancelled' THEN 'TASK_STATE_CANCELED' ELSE 'TASK_STATE_' || upper(new_status) END,
            'timestamp', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))))::text
FROM push_configs AS push LEFT JOIN conversations AS conversation ON conversation.id = turn.conversation_id
WHERE push.turn_id = turn.id AND (only_id IS NULL OR push.id = only_id) $$;

CREATE FUNCTION queue_push_of_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM queue_push(NEW, NEW.status, NULL);
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION queue_webhook_of_input() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE turn turns;
BEGIN
    SELECT * INTO turn FROM turns WHERE id = NEW.turn_id AND options ?| ARRAY['webhook_url', 'push'];
    IF FOUND AND turn.options ? 'webhook_url' THEN
        PERFORM queue_webhook(turn, 'input.required', jsonb_build_object('input_id', NEW.id, 'call_id', NEW.call_id));
    END IF;
    IF FOUND AND turn.options ? 'push' THEN
        PERFORM queue_push(turn, 'waiting', NULL);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER turns_push AFTER UPDATE OF status ON turns FOR EACH ROW
        WHEN (OLD.status IS DISTINCT FROM NEW.status AND NEW.status IN ('completed', 'failed', 'cancelled')
              AND NEW.options ? 'push')
        EXECUTE FUNCTION queue_push_of_end();

UPDATE alembic_version SET version_num='gateway_0029' WHERE alembic_version.version_num = 'gateway_0028';

-- Running upgrade gateway_0029 -> gateway_0030

CREATE FUNCTION waits_for_sign_in(waiting_turn_id uuid) RETURNS boolean LANGUAGE sql STABLE AS $$
SELECT coalesce(bool_and(question->>'kind' = 'authorization'), false)
FROM turn_inputs WHERE turn_id = waiting_turn_id AND answer IS NULL $$;

CREATE OR REPLACE FUNCTION queue_push(turn turns, new_status text, only_id text) RETURNS void LANGUAGE sql AS $$
INSERT INTO webhook_messages (id, turn_id, owner, url, event, push_id, payload)
SELECT gen_random_uuid(), turn.id, turn.owner, push.url,
    CASE new_status WHEN 'waiting' THEN 'input.required' ELSE 'turn.' || new_status END, push.id,
    jsonb_build_object('statusUpdate', jsonb_build_object(
        'taskId', turn.id,
        'contextId', coalesce(conversation.external_id, turn.conversation_id::text, turn.id::text),
        'status', jsonb_build_object(
            'state', CASE new_status WHEN 'waiting' THEN 'TASK_STATE_' || CASE WHEN waits_for_sign_in(turn.id) THEN 'AUTH_REQUIRED' ELSE 'INPUT_REQUIRED' END
                     WHEN 'cancelled' THEN 'TASK_STATE_CANCELED' ELSE 'TASK_STATE_' || upper(new_status) END,
            'timestamp', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))))::text
FROM push_configs AS push LEFT JOIN conversations AS conversation ON conversation.id = turn.conversation_id
WHERE push.turn_id = turn.id AND (only_id IS NULL OR push.id = only_id) $$;

UPDATE alembic_version SET version_num='gateway_0030' WHERE alembic_version.version_num = 'gateway_0029';

-- Running upgrade gateway_0030 -> gateway_0031

ALTER TABLE api_keys ADD COLUMN code TEXT;

UPDATE alembic_version SET version_num='gateway_0031' WHERE alembic_version.version_num = 'gateway_0030';

-- Running upgrade gateway_0031 -> gateway_0032

CREATE TABLE toolsets (
    name TEXT NOT NULL, 
    definition JSONB NOT NULL, 
    changed_by TEXT NOT NULL, 
    changed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (name)
);

ALTER TABLE api_keys ADD COLUMN toolset TEXT;

UPDATE alembic_version SET version_num='gateway_0032' WHERE alembic_version.version_num = 'gateway_0031';

-- Running upgrade gateway_0032 -> gateway_0033

CREATE TABLE tool_tasks (
    id UUID NOT NULL, 
    turn_id UUID NOT NULL, 
    call_id TEXT NOT NULL, 
    task JSONB NOT NULL, 
    due_at TIMESTAMP WITH TIME ZONE NOT NULL, 
    settled_at TIMESTAMP WITH TIME ZONE, 
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL, 
    PRIMARY KEY (id), 
    FOREIGN KEY(turn_id) REFERENCES turns (id) ON DELETE CASCADE
);

CREATE INDEX ix_tool_tasks_turn ON tool_tasks (turn_id);

CREATE INDEX ix_tool_tasks_due ON tool_tasks (due_at) WHERE settled_at IS NULL;

ALTER TABLE turns ADD COLUMN waits_for_task BOOLEAN DEFAULT false NOT NULL;

UPDATE alembic_version SET version_num='gateway_0033' WHERE alembic_version.version_num = 'gateway_0032';

-- Running upgrade gateway_0033 -> gateway_0034

CREATE INDEX ix_turns_period_search ON turns USING gin ((ARRAY[owner]), (ARRAY[owner || left(id::text, 4)]), search);

DROP INDEX ix_turns_search;

UPDATE alembic_version SET version_num='gateway_0034' WHERE alembic_version.version_num = 'gateway_0033';

INSERT INTO alembic_version SELECT version_num FROM unnest(ARRAY['gateway_0010', 'tools_0001']) AS previous (version_num) WHERE EXISTS (SELECT FROM alembic_version AS newer WHERE newer.version_num > previous.version_num AND split_part(newer.version_num, '_', 1) = split_part(previous.version_num, '_', 1));

COMMIT;

