-- What is asked while findings are mended.

-- name: configuration_read_at
-- When this session last read the server's configuration (manual, 9.27.1).
select pg_catalog.pg_conf_load_time();
