"""Daily usage, as `/api/v1/budget` and `/api/v1/admin/stats` show it."""

from datetime import date
from typing import Annotated

from fastapi import Query
from pydantic import BaseModel

Days = Annotated[int, Query(ge=1, le=366, description="Number of days (UTC), including today.")]


class DailyUsageView(BaseModel):
    """Turns that ended on a day (UTC), and its ratings."""

    day: date
    turns: int
    completed: int
    failed: int
    cancelled: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_usd: float
    up: int
    down: int
