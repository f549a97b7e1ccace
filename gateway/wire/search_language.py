"""Languages of searches.

They are ISO 639 codes, or names of text search configurations of Postgres.
"""

_CONFIGURATIONS = {
    "ar": "arabic",
    "hy": "armenian",
    "eu": "basque",
    "ca": "catalan",
    "da": "danish",
    "nl": "dutch",
    "en": "english",
    "fi": "finnish",
    "fr": "french",
    "de": "german",
    "el": "greek",
    "hi": "hindi",
    "hu": "hungarian",
    "id": "indonesian",
    "ga": "irish",
    "it": "italian",
    "lt": "lithuanian",
    "ne": "nepali",
    "no": "norwegian",
    "nb": "norwegian",
    "nn": "norwegian",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sr": "serbian",
    "es": "spanish",
    "sv": "swedish",
    "ta": "tamil",
    "tr": "turkish",
    "yi": "yiddish",
}


def normalize_search_language(language: str) -> str:
    """Return the configuration of a language.

    Accepts a configuration or a code, also with a region (`en-US`), in any case.
    """
    name = language.strip().lower()
    return _CONFIGURATIONS.get(name.replace("_", "-").partition("-")[0], name)
