"""Jobs in the database: the only code that writes them, and what reads them."""
