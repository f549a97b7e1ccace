"""Settings of images in requests and results."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings


class ImageSettings(BaseSettings):
    """Settings of images in requests and results.

    `image_urls`: whether the model's server gets URLs of images, which it may fetch. The gateway fetches none.
    """

    image_urls: Literal["pass", "refuse"] = "pass"
    max_images: int = Field(default=20, ge=0)
    max_image_bytes: int = Field(default=3 * 1024 * 1024, ge=1)
