"""Checks of the images of a request.

The gateway fetches no image. The model's server may fetch those at URLs, if IMAGE_URLS permits it.
"""

import binascii
import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import cast
from urllib.parse import urlsplit

from gateway.domain.errors import InvalidRequest, ListTooLong, TextTooLong, UnsupportedParameter
from gateway.domain.images import IMAGE_TYPES, list_images
from gateway.domain.messages import JsonObject, TurnRequest
from gateway.ports.model import ModelInfo
from gateway.settings.images import ImageSettings
from gateway_runtime.public_addresses import is_public

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,", re.ASCII | re.IGNORECASE)
_HTTPS_PORT = 443
_NUMBER = re.compile(r"0x[0-9a-f]*|\d+", re.ASCII | re.IGNORECASE)


class ImagePolicy:
    """Limits of images in requests, and who may see them."""

    def __init__(self, settings: ImageSettings) -> None:
        self._max_bytes = settings.max_image_bytes
        self._max_images = settings.max_images
        self._passes_urls = settings.image_urls == "pass"

    def check(self, request: TurnRequest, model: ModelInfo, list_seeing: Callable[[], list[str]]) -> tuple[str, ...]:
        """Check the images of a request; return warnings.

        `list_seeing` lists the models that the caller may use instead. Images of earlier messages and of tools are
        replaced by a note if the model cannot see them.

        Raises:
            InvalidRequest: an image is too large, malformed, or at a URL that is not permitted.
            UnsupportedParameter: the model cannot see the image that the request asks about.
        """
        if not any(isinstance(message.content, list) for message in request.messages):
            return ()
        images = list(_iterate_images(request))
        if not images:
            return ()
        if len(images) > self._max_images:
            message = f"messages: at most {self._max_images} images are allowed (MAX_IMAGES), not {len(images)}."
            raise ListTooLong(message, param="messages")
        for path, url in images:
            self._check_url(url, path)
        if model.may_see_images:
            return ()
        path = _find_asked_image(request)
        if path is not None and not request.drop_unsupported:
            others = f"; models that can: {', '.join(seeing)[:500]}" if (seeing := list_seeing()) else ""
            raise UnsupportedParameter(f"{path}: the model {model.id!r} cannot see images{others}.", param=path)
        return (f"Images were left out: the model {model.id!r} cannot see them.",)

    def _check_url(self, url: object, path: str) -> None:
        if not isinstance(url, str):
            raise InvalidRequest(f"{path}: image_url.url must be a text.", param=path)
        if not url.startswith("data:"):
            self._check_address(url, path)
            return
        head = _DATA_URL.match(url)
        if head is None or head[1].lower() not in IMAGE_TYPES:
            raise InvalidRequest(f"{path}: send {', '.join(IMAGE_TYPES)} as a base64 data URL.", param=path)
        size = (len(url) - head.end()) * 3 // 4
        if size > self._max_bytes:
            message = f"{path}: an image may have at most {self._max_bytes:,} bytes (MAX_IMAGE_BYTES), not {size:,}."
            raise TextTooLong(message, param=path)
        try:
            b64decode(url[head.end() :], validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest(f"{path}: the image is not valid base64.", param=path) from None

    def _check_address(self, url: str, path: str) -> None:
        if not self._passes_urls:
            raise InvalidRequest(f"{path}: images at URLs are refused here (IMAGE_URLS): send a data URL.", param=path)
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError:
            host, parts = "", urlsplit("")
        if parts.scheme not in ("http", "https") or not host or _is_internal(host):
            raise InvalidRequest(f"{path}: an image must be at a public http or https URL.", param=path)


def _is_internal(host: str) -> bool:
    """Whether a host belongs to an internal network."""
    if host == "localhost" or ("." not in host.strip(".") and ":" not in host):
        return True
    if host.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        return not is_public(ip_address(host), _HTTPS_PORT)
    except ValueError:
        return bool(_NUMBER.fullmatch(host.strip(".").rpartition(".")[2]))  # another spelling of an address


def _iterate_images(request: TurnRequest) -> Iterator[tuple[str, object]]:
    """Yield each image's path and URL."""
    for index, message in enumerate(request.messages):
        for part in list_images(message):
            source: object = part.get("image_url")
            url = cast("JsonObject", source).get("url") if isinstance(source, dict) else source
            yield _get_path(request, index), url


def _get_path(request: TurnRequest, index: int) -> str:
    paths = request.message_paths
    return paths[index] if index < len(paths) else f"messages.{index}"


def _find_asked_image(request: TurnRequest) -> str | None:
    """Return the path of the last message with images of the user.

    A message right after results of tools has theirs.
    """
    index = len(request.messages) - 1
    message = request.messages[index]
    if message.role != "user" or not list_images(message):
        return None
    follows_results = index > 0 and request.messages[index - 1].role == "tool"
    return None if follows_results else _get_path(request, index)
