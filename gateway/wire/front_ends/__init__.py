"""What the formats of front ends share: chats that are sent whole each time."""
