"""Queue messages of webhooks"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0026"
down_revision = "gateway_0025"
branch_labels = None
depends_on = None

_QUEUE = """
CREATE FUNCTION queue_webhook(turn turns, event text, data jsonb) RETURNS void LANGUAGE sql AS $$
INSERT INTO webhook_messages (id, turn_id, owner, url, event, payload)
VALUES (gen_random_uuid(), turn.id, turn.owner, turn.options->>'webhook_url', event, jsonb_build_object(
    'type', event,
    'timestamp', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
    'data', jsonb_build_object('turn_id', turn.id, 'conversation_id', turn.conversation_id) || data)::text) $$
"""
_ON_END = """
CREATE FUNCTION queue_webhook_of_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM queue_webhook(NEW, 'turn.' || NEW.status, jsonb_build_object('status', NEW.status)
        || CASE WHEN NEW.error IS NULL THEN '{}'::jsonb ELSE jsonb_build_object('error_code', NEW.error->>'code') END);
    RETURN NULL;
END $$
"""
_ON_INPUT = """
CREATE FUNCTION queue_webhook_of_input() RETURNS trigger LANGUAGE plpgsql AS $$
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
        "webhook_messages",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("turn_id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=True),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["turn_id"], ["turns.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_webhook_messages_turn", "webhook_messages", ["turn_id"])
    op.create_index("ix_webhook_messages_owner", "webhook_messages", ["owner", "failed_at"])
    op.create_index(
        "ix_webhook_messages_due",
        "webhook_messages",
        ["next_attempt_at"],
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    for function in (_QUEUE, _ON_END, _ON_INPUT):
        op.execute(function)
    op.execute(
        """
        CREATE TRIGGER turns_webhook AFTER UPDATE OF status ON turns FOR EACH ROW
        WHEN (OLD.status IS DISTINCT FROM NEW.status AND NEW.status IN ('completed', 'failed', 'cancelled')
              AND NEW.options ? 'webhook_url')
        EXECUTE FUNCTION queue_webhook_of_end()
        """
    )
    op.execute(
        """
        CREATE TRIGGER turn_inputs_webhook AFTER INSERT ON turn_inputs FOR EACH ROW
        EXECUTE FUNCTION queue_webhook_of_input()
        """
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER turn_inputs_webhook ON turn_inputs")
    op.execute("DROP TRIGGER turns_webhook ON turns")
    op.execute("DROP FUNCTION queue_webhook_of_input()")
    op.execute("DROP FUNCTION queue_webhook_of_end()")
    op.execute("DROP FUNCTION queue_webhook(turns, text, jsonb)")
    op.drop_table("webhook_messages")
