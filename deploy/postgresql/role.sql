-- What the role of Secure LLM Proxy may and may not, run by the installer in its database as the superuser; may be repeated.

-- The database is ours alone: by default every role may connect and make temporary tables.
REVOKE ALL ON DATABASE secure_llm_proxy FROM PUBLIC;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO secure_llm_proxy;
ALTER ROLE secure_llm_proxy NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
-- A worker that hangs in a transaction would keep its locks: nothing of ours stays in one for a minute.
ALTER ROLE secure_llm_proxy SET idle_in_transaction_session_timeout = '60s';
-- Names can't be redirected by a schema that somebody else made.
ALTER ROLE secure_llm_proxy SET search_path = public;
