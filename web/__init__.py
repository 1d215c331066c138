"""Templates and static files of the pages; no Python lives here."""
