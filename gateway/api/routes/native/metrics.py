"""`/metrics`: figures for Prometheus."""

from typing import Annotated

from fastapi import APIRouter, Header, Response

from gateway.api.deps import MetricsDep, PrincipalDep
from gateway.domain.errors import Forbidden, NotFound

router = APIRouter(tags=["health"])


@router.get("/metrics", include_in_schema=False)
async def get_metrics(
    principal: PrincipalDep, metrics: MetricsDep, accept: Annotated[str, Header(include_in_schema=False)] = ""
) -> Response:
    """All metrics of this gateway, in a format of Prometheus.

    Needs METRICS=on, and a key of an admin or one with the scope `metrics`: the figures are those of all users.
    """
    if metrics is None:
        raise NotFound("Metrics are not served here: METRICS is off, or METRICS_PORT has them.")
    if principal.role != "admin" and "metrics" not in (principal.scopes or ()):
        raise Forbidden("Metrics need the role of an admin, or a key whose scopes name `metrics`.")
    page, content_type = await metrics.render(accept)
    return Response(page, headers={"Content-Type": content_type})
