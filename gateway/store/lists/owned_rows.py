"""SQL that lists rows of an owner by the index on owners.

PostgreSQL takes the rows of an owner for evenly spread over the table. To list those of an owner with many, it would
read the newest rows of all owners until enough are of this one. Only the index on the owner and the id has the order
of a column that is compared with an array.
"""

IS_OWNED = "owner = ANY (ARRAY[cast(:owner AS text)])"
NEWEST_FIRST = "owner, id DESC"
OLDEST_FIRST = "owner DESC, id"
