"""The database: tables, the connection pool, and migrations.
SQL statements are in the modules that use them."""
