"""The chat: a conversation on a terminal, or a script of one, on the one engine."""
