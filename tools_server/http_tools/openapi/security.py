"""Authentication of OpenAPI as named secrets."""

from dataclasses import dataclass, field

from gateway_runtime.http_tools.definitions import WireField
from tools_server.http_tools.openapi.document import JsonObject, OpenApiDocument, Unsupported, as_list, as_object
from tools_server.http_tools.openapi.names import to_identifier


@dataclass
class Authentication:
    """Headers and query fields with secrets, and what each secret is."""

    headers: dict[str, str] = field(default_factory=dict[str, str])
    query: list[WireField] = field(default_factory=list[WireField])
    cookies: list[str] = field(default_factory=list[str])
    secrets: dict[str, str] = field(default_factory=dict[str, str])


def map_security(document: OpenApiDocument, operation: JsonObject) -> Authentication:
    """Map the first alternative whose schemes are all supported.

    Raises:
        Unsupported: there is none.
    """
    alternatives = as_list(operation.get("security", document.root.get("security")))
    if not alternatives:
        return Authentication()
    schemes = as_object(as_object(document.root.get("components")).get("securitySchemes"))
    reason = Unsupported("its authentication is not supported")
    # An operation that may be called without authentication usually shows more with it.
    for alternative in sorted(map(as_object, alternatives), key=lambda names: not names):
        authentication = Authentication()
        try:
            for name in alternative:
                _add_scheme(authentication, name, document.resolve(schemes.get(name)))
        except Unsupported as error:
            reason = Unsupported(f"its authentication is not supported: {error}")
            continue
        return authentication
    raise reason


def _add_scheme(authentication: Authentication, name: str, scheme: JsonObject) -> None:
    secret = to_identifier(name)
    kind, place = scheme.get("type"), scheme.get("in")
    key = str(scheme.get("name") or "")
    match kind, place, str(scheme.get("scheme") or "").lower():
        case "apiKey", "header", _:
            authentication.headers[key] = f"{{secret.{secret}}}"
            description = f"the value of the header {key}"
        case "apiKey", "query", _:
            authentication.query.append(WireField(name=key, value=f"{{secret.{secret}}}"))
            description = f"the value of the query field {key}"
        case "apiKey", "cookie", _:
            authentication.cookies.append(f"{key}={{secret.{secret}}}")
            description = f"the value of the cookie {key}"
        case "http", _, "bearer":
            authentication.headers["Authorization"] = f"Bearer {{secret.{secret}}}"
            description = "a bearer token"
        case "http", _, "basic":
            authentication.headers["Authorization"] = f"Basic {{base64.{secret}}}"
            description = "user:password"
        case (("oauth2" | "openIdConnect"), _, _):
            authentication.headers["Authorization"] = f"Bearer {{secret.{secret}}}"
            description = "an access token, which the tool server does not renew"
        case _:
            raise Unsupported(f"{name[:60]} is of type {str(kind)[:30]}")
    authentication.secrets[secret] = description
