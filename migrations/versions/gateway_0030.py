"""Tell receivers of push notifications of sign-ins"""

from alembic import op

revision = "gateway_0030"
down_revision = "gateway_0029"
branch_labels = None
depends_on = None

_WAITS = """
CREATE FUNCTION waits_for_sign_in(waiting_turn_id uuid) RETURNS boolean LANGUAGE sql STABLE AS $$
SELECT coalesce(bool_and(question->>'kind' = 'authorization'), false)
FROM turn_inputs WHERE turn_id = waiting_turn_id AND answer IS NULL $$
"""
_QUEUE = """
CREATE OR REPLACE FUNCTION queue_push(turn turns, new_status text, only_id text) RETURNS void LANGUAGE sql AS $$
INSERT INTO webhook_messages (id, turn_id, owner, url, event, push_id, payload)
SELECT gen_random_uuid(), turn.id, turn.owner, push.url,
    CASE new_status WHEN 'waiting' THEN 'input.required' ELSE 'turn.' || new_status END, push.id,
    jsonb_build_object('statusUpdate', jsonb_build_object(
        'taskId', turn.id,
        'contextId', coalesce(conversation.external_id, turn.conversation_id::text, turn.id::text),
        'status', jsonb_build_object(
            'state', CASE new_status WHEN 'waiting' THEN {waiting}
                     WHEN 'cancelled' THEN 'TASK_STATE_CANCELED' ELSE 'TASK_STATE_' || upper(new_status) END,
            'timestamp', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))))::text
FROM push_configs AS push LEFT JOIN conversations AS conversation ON conversation.id = turn.conversation_id
WHERE push.turn_id = turn.id AND (only_id IS NULL OR push.id = only_id) $$
"""
_WAITING = "'TASK_STATE_' || CASE WHEN waits_for_sign_in(turn.id) THEN 'AUTH_REQUIRED' ELSE 'INPUT_REQUIRED' END"


def upgrade() -> None:
    op.execute(_WAITS)
    op.execute(_QUEUE.format(waiting=_WAITING))


def downgrade() -> None:
    op.execute(_QUEUE.format(waiting="'TASK_STATE_INPUT_REQUIRED'"))
    op.execute("DROP FUNCTION waits_for_sign_in(uuid)")
