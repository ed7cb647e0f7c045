#!/bin/sh
# The product's role and database, made once when the container `postgresql` finds its volume empty; never the superuser's.
set -eu

secrets=${CREDENTIALS_DIRECTORY:-/run/secrets}
shared=${SLP_SHARED:-/etc/secure_llm_proxy}

# psql reads the password by itself: on a command line every user of the host could.
export SLP_ROLE_PASSWORD_FILE="$secrets/role_password"
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = 'panic';
SET password_encryption = 'scram-sha-256';
\set password `cat "$SLP_ROLE_PASSWORD_FILE"`
CREATE ROLE secure_llm_proxy LOGIN PASSWORD :'password';
CREATE DATABASE secure_llm_proxy OWNER secure_llm_proxy TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8';
SQL
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname secure_llm_proxy --file "$shared/role.sql"

# What the command line says (listen_addresses) wins over it.
printf "include = '%s'\n" "$shared/postgresql.conf" >>"$PGDATA/postgresql.conf"
