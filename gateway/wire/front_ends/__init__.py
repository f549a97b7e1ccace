"""Parts of the formats of front ends, which send whole chats."""
