"""Authentication of the gateway as a client at a token endpoint."""

import base64
from typing import Literal
from urllib.parse import quote

from mcp.shared.auth import OAuthClientInformationFull, OAuthMetadata

from gateway.domain.messages import JsonObject

AuthMethod = Literal["none", "client_secret_basic", "client_secret_post"]
_BASIC, _POST, _NONE = "client_secret_basic", "client_secret_post", "none"


def choose_auth_method(client: OAuthClientInformationFull, metadata: OAuthMetadata | None) -> AuthMethod:
    """Choose how a client authenticates at the token endpoint.

    A method of its registration or entry wins. Otherwise the first of Basic and POST that the metadata offers; both
    RFC 7591 and RFC 8414 take Basic if they say nothing.
    """
    if not client.client_secret:
        return _NONE
    registered = client.token_endpoint_auth_method
    if registered in ("client_secret_basic", "client_secret_post"):
        return registered
    offered = metadata.token_endpoint_auth_methods_supported if metadata is not None else None
    if registered == _NONE and (offered is None or _NONE in offered):
        return _NONE
    return _POST if offered is not None and _BASIC not in offered and _POST in offered else _BASIC


def add_client_authentication(client: OAuthClientInformationFull, form_fields: JsonObject) -> dict[str, str]:
    """Add a client's secret to the form, or return it as headers.

    Basic takes both parts form-encoded (RFC 6749, section 2.3.1), as the SDK sends them with a code. A registration
    that an older release stored may have no method.
    """
    form_fields["client_id"] = client.client_id
    method = client.token_endpoint_auth_method
    if not client.client_secret or method == _NONE:
        return {}
    if method != _BASIC:
        form_fields["client_secret"] = client.client_secret
        return {}
    credentials = f"{quote(client.client_id, safe='')}:{quote(client.client_secret, safe='')}"
    return {"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"}
