"""The server: many users at once over one engine."""
