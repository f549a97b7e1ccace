"""`python -m gateway_console`: run the console."""

import sys

from gateway_console.server import run_console
from gateway_console.settings import load_console_settings
from gateway_runtime.errors import ConfigError


def main() -> None:
    try:
        run_console(load_console_settings())
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
