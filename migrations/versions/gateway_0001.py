"""Create the gateway's tables"""

from alembic import op
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

revision = 'gateway_0001'
down_revision = None
branch_labels = ('gateway',)
depends_on = None


def upgrade() -> None:
    op.create_table('conversations',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('owner', sa.Text(), nullable=False),
    sa.Column('title', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('ix_conversations_owner', 'conversations', ['owner', sa.literal_column('id DESC')], unique=False)
    op.create_table('turn_events',
    sa.Column('turn_id', sa.Uuid(), nullable=False),
    sa.Column('first_seq', sa.Integer(), nullable=False),
    sa.Column('last_seq', sa.Integer(), nullable=False),
    sa.Column('payload', sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint('turn_id', 'first_seq')
    )
    op.create_table('workers',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('host', sa.Text(), nullable=False),
    sa.Column('pid', sa.BigInteger(), nullable=False),
    sa.Column('started_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('seen_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_table('turns',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('conversation_id', sa.Uuid(), nullable=True),
    sa.Column('owner', sa.Text(), nullable=False),
    sa.Column('user_label', sa.Text(), nullable=True),
    sa.Column('worker_id', sa.Uuid(), nullable=True),
    sa.Column('status', sa.Text(), nullable=False),
    sa.Column('prompt', sa.Text(), nullable=False),
    sa.Column('response', sa.Text(), server_default='', nullable=False),
    sa.Column('messages', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('model_name', sa.Text(), nullable=False),
    sa.Column('parameters', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('options', postgresql.JSONB(astext_type=sa.Text()), nullable=False),
    sa.Column('finish_reason', sa.Text(), nullable=True),
    sa.Column('usage', postgresql.JSONB(astext_type=sa.Text()), nullable=True),
    sa.Column('cost_usd', sa.Float(), nullable=True),
    sa.Column('steps', sa.Integer(), server_default='0', nullable=False),
    sa.Column('error', postgresql.JSONB(astext_type=sa.Text()), nullable=True),
    sa.Column('request_id', sa.Text(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('completed_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('first_token_ms', sa.Float(), nullable=True),
    sa.Column('duration_ms', sa.Float(), nullable=True),
    sa.Column('search', postgresql.TSVECTOR(), sa.Computed('to_tsvector(\'simple\'::regconfig, "left"(prompt, 50000) || \' \' || "left"(response, 50000))', persisted=True), nullable=True),
    sa.ForeignKeyConstraint(['conversation_id'], ['conversations.id'], ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id')
    )
    op.create_index('ix_turns_conversation', 'turns', ['conversation_id', 'id'], unique=False)
    op.create_index('ix_turns_owner', 'turns', ['owner', sa.literal_column('id DESC')], unique=False)
    op.create_index('ix_turns_running', 'turns', ['worker_id'], unique=False, postgresql_where=sa.text("status = 'running'"))
    op.create_index('ix_turns_search', 'turns', ['search'], unique=False, postgresql_using='gin')
    op.create_table('tool_calls',
    sa.Column('turn_id', sa.Uuid(), nullable=False),
    sa.Column('call_id', sa.Text(), nullable=False),
    sa.Column('step', sa.Integer(), nullable=False),
    sa.Column('server', sa.Text(), nullable=True),
    sa.Column('tool', sa.Text(), nullable=False),
    sa.Column('arguments', postgresql.JSONB(astext_type=sa.Text()), nullable=True),
    sa.Column('outcome', sa.Text(), nullable=True),
    sa.Column('content', postgresql.JSONB(astext_type=sa.Text()), nullable=True),
    sa.Column('structured', postgresql.JSONB(astext_type=sa.Text()), nullable=True),
    sa.Column('started_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('duration_ms', sa.Float(), nullable=True),
    sa.ForeignKeyConstraint(['turn_id'], ['turns.id'], ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('turn_id', 'call_id')
    )
    op.execute("CREATE VIEW chat_logs AS SELECT id, prompt, response, model_name, created_at FROM turns")


def downgrade() -> None:
    op.execute("DROP VIEW chat_logs")
    op.drop_table('tool_calls')
    op.drop_index('ix_turns_search', table_name='turns', postgresql_using='gin')
    op.drop_index('ix_turns_running', table_name='turns', postgresql_where=sa.text("status = 'running'"))
    op.drop_index('ix_turns_owner', table_name='turns')
    op.drop_index('ix_turns_conversation', table_name='turns')
    op.drop_table('turns')
    op.drop_table('workers')
    op.drop_table('turn_events')
    op.drop_index('ix_conversations_owner', table_name='conversations')
    op.drop_table('conversations')
