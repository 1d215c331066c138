-- The image of PostgreSQL runs this file once as its superuser, when its volume is empty.
-- Textmill's role owns its database, creates tables and indexes there, and has no other right.

-- The server logs statements that fail; these contain the password.
SET log_min_error_statement = panic;
\getenv password DATABASE_PASSWORD
CREATE ROLE textmill LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    PASSWORD :'password';
CREATE DATABASE textmill OWNER textmill;
REVOKE CONNECT, TEMPORARY ON DATABASE textmill FROM PUBLIC;
REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;
