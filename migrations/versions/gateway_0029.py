"""Add the receivers of push notifications of tasks"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0029"
down_revision = "gateway_0028"
branch_labels = None
depends_on = None

_QUEUE = """
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
WHERE push.turn_id = turn.id AND (only_id IS NULL OR push.id = only_id) $$
"""
_ON_END = """
CREATE FUNCTION queue_push_of_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM queue_push(NEW, NEW.status, NULL);
    RETURN NULL;
END $$
"""
_ON_INPUT = """
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
END $$
"""
_ON_INPUT_BEFORE = """
CREATE OR REPLACE FUNCTION queue_webhook_of_input() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE turn turns;
BEGIN
    SELECT * INTO turn FROM turns WHERE id = NEW.turn_id AND options ? 'webhook_url';
    IF FOUND THEN
        PERFORM queue_webhook(turn, 'input.required', jsonb_build_object('input_id', NEW.id, 'call_id', NEW.call_id));
    END IF;
    RETURN NULL;
END $$
"""


def upgrade() -> None:
    op.create_table(
        "push_configs",
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn_id", "id"),
    )
    op.add_column("webhook_messages", sa.Column("push_id", sa.Text(), nullable=True))
    op.create_foreign_key(
        "fk_webhook_messages_push",
        "webhook_messages",
        "push_configs",
        ["turn_id", "push_id"],
        ["turn_id", "id"],
        ondelete="CASCADE",
    )
    for function in (_QUEUE, _ON_END, _ON_INPUT):
        op.execute(function)
    op.execute(
        """
        CREATE TRIGGER turns_push AFTER UPDATE OF status ON turns FOR EACH ROW
        WHEN (OLD.status IS DISTINCT FROM NEW.status AND NEW.status IN ('completed', 'failed', 'cancelled')
              AND NEW.options ? 'push')
        EXECUTE FUNCTION queue_push_of_end()
        """
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER turns_push ON turns")
    op.execute(_ON_INPUT_BEFORE)
    op.execute("DROP FUNCTION queue_push_of_end()")
    op.execute("DROP FUNCTION queue_push(turns, text, text)")
    op.drop_constraint("fk_webhook_messages_push", "webhook_messages")
    op.drop_column("webhook_messages", "push_id")
    op.drop_table("push_configs")
