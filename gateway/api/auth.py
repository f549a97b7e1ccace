"""Who is calling."""

import hmac
import ipaddress

from starlette.datastructures import Headers

from gateway.config import ConfigError, Settings
from gateway.errors import NotAuthenticated
from gateway.messages import LOCAL, Principal


def authenticate(headers: Headers, settings: Settings) -> Principal:
    """The principal of a request. Without `API_KEY` everyone is `local`, and a key nobody asked for is ignored.

    Raises:
        NotAuthenticated: a key is asked for, and none or a wrong one came.
    """
    if settings.api_key is None:
        return LOCAL
    given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ").strip()
    if not given:
        raise NotAuthenticated
    if not hmac.compare_digest(given.encode(), settings.api_key.get_secret_value().encode()):
        raise NotAuthenticated("This API key is not valid.")
    return LOCAL


def refuse_open_gateway(settings: Settings) -> None:
    """Anyone who can reach the port could use the model's key and the tools.

    Raises:
        ConfigError: the gateway would listen beyond this machine without a key.
    """
    if settings.api_key is None and not settings.gateway_allow_anonymous and not is_loopback(settings.gateway_host):
        raise ConfigError(
            f"GATEWAY_HOST: {settings.gateway_host} can be reached from other machines: "
            "set API_KEY, or GATEWAY_ALLOW_ANONYMOUS=true if that is what you want"
        )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
