"""`agent-gateway tools-token`: a token for the tool server's port."""

import time
from typing import Annotated

import typer

from gateway.cli.errors import report_config_errors
from gateway.config import load_settings

_MAX_MINUTES = 7 * 24 * 60


def print_token(
    user: Annotated[str, typer.Option(help="The user that the calls are made for.")] = "local",
    minutes: Annotated[float, typer.Option(min=0.1, max=_MAX_MINUTES, help="Minutes until the token expires.")] = 60.0,
    audience: Annotated[str, typer.Option(help="TOOLS_SERVER_AUDIENCE, or the URL of its /mcp.")] = "tools-server",
) -> None:
    """Print a token for the tool server's port.

    Send it as `Authorization: Bearer TOKEN`. It is signed with the key of this machine's gateway.
    """
    from gateway.mcp_client.caller_identity import ISSUER
    from gateway.mcp_client.identity_keys import IdentityKeys
    from gateway.store.encryption import load_encryption_secrets

    with report_config_errors():
        keys = IdentityKeys(load_encryption_secrets(load_settings()))
    now = int(time.time())
    print(keys.sign({"iss": ISSUER, "aud": audience, "sub": user, "iat": now, "exp": now + int(minutes * 60)}))
