"""The origins that `CORS_ORIGINS=dev` stands for."""

DEV_KEYWORD = "dev"
_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_PORTS = (
    *(1234, 3000, 3001, 3002, 4000, 4173, 4200, 4321, 5000, 5001, 5173, 5174, 5500, 6006, 7860, 8080, 8081, 8100, 8501),
    *(8888, 9000, 9090),
)
"""Default ports of development servers.

They are those of Parcel, React, Vite, Angular, Astro, Flask, Storybook, Gradio, Streamlit, Jupyter and others.
"""
DEV_ORIGINS = tuple(f"{scheme}://{host}:{port}" for port in _PORTS for host in _HOSTS for scheme in ("http", "https"))


def expand_dev_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Replace the word `dev` by the usual development origins."""
    expanded: dict[str, None] = {}
    for origin in origins:
        expanded |= dict.fromkeys(DEV_ORIGINS if origin.lower() == DEV_KEYWORD else (origin,))
    return tuple(expanded)
