"""The database: tables, the one pool of connections, and migrations. Statements live with those who need them."""
