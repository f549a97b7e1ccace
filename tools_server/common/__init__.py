"""Parts that several tools share: the database, and guarded HTTP sessions."""
