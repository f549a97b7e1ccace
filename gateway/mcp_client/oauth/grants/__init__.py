"""OAuth grants that give tokens without a page for a person."""
